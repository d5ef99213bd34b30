"""AskModel in a pipeline of another language: Beam's own service expands it and runs it, in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import grpc
import pytest
from apache_beam.coders import RowCoder
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import external_transforms_pb2
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.external import ExternalTransform
from apache_beam.transforms.fully_qualified_named_transform import PYTHON_FULLY_QUALIFIED_NAMED_TRANSFORM_URN
from apache_beam.typehints.schemas import named_fields_from_element_type, named_tuple_to_schema

from llmdo.runners.flink.jar import find_jar, java
from llmdo.runners.prism.binary import find_prism
from tests.integration.openai_service import MODEL, Service, serving

JAVA = Path(__file__).with_name("AskFromJava.java")
UNTIL_S = 120.0
SCHEMA = json.dumps({"type": "object", "properties": {"mood": {"type": "string"}}, "required": ["mood"]})


@dataclass(frozen=True)
class Expansion:
    """Beam's expansion service for Python, with the worker that it offers; its models are a service on loopback."""

    address: str
    models: Service


@pytest.fixture(scope="module")
def expansion(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Expansion]:
    """The service, which expands nothing but AskModel."""
    log = tmp_path_factory.mktemp("expansion") / "log"
    with serving() as models, socket.socket() as held, log.open("w") as out:
        # Bound as long as the service is: gRPC shares the port by the same option, and the system gives it to no other.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("0.0.0.0", 0))
        address = f"localhost:{held.getsockname()[1]}"
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "apache_beam.runners.portability.expansion_service_main"),
                f"--port={held.getsockname()[1]}",
                "--fully_qualified_name_glob=llmdo.AskModel",
                *("--serve_loopback_worker", "--environment_type=EXTERNAL", f"--environment_config={address}"),
            ],
            env=os.environ | {"OPENAI_BASE_URL": models.url, "OPENAI_API_KEY": "sk-test"},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            with grpc.insecure_channel(address) as channel:
                ready, end = grpc.channel_ready_future(channel), time.monotonic() + UNTIL_S
                while not ready.done():
                    assert process.poll() is None and time.monotonic() < end, log.read_text()
                    time.sleep(0.1)
            yield Expansion(address, models)
        finally:
            process.kill()
            process.wait()


class Arguments(NamedTuple):
    field0: str


class Parameters(NamedTuple):
    max_tokens: int
    temperature: float


class Named(NamedTuple):
    prompt: str
    concurrency: int
    parameters: Parameters


class Payload(NamedTuple):
    """What Java's PythonExternalTransform sends: the name, a row of arguments, a row of those with names."""

    constructor: str
    args: Arguments
    kwargs: Named


def asked_as_java_does(name: str, *, address: str) -> ExternalTransform:
    named = Named("Mood of {text}?", 4, Parameters(9, 0.0))
    row = Payload(name, Arguments(MODEL), named)
    schema = named_tuple_to_schema(Payload)
    sent = external_transforms_pb2.ExternalConfigurationPayload(schema=schema, payload=RowCoder(schema).encode(row))
    return ExternalTransform(PYTHON_FULLY_QUALIFIED_NAMED_TRANSFORM_URN, sent.SerializeToString(), address)


def options(runner: str, workers: str) -> list[str]:
    """All steps run in the service's process.

    Prism needs that: it has one table of metrics' short names in a job, and each process has names of its own.
    """
    where = [f"--runner={runner}", "--environment_type=EXTERNAL", f"--environment_config={workers}"]
    if runner == "FlinkRunner":
        return [*where, f"--flink_job_server_jar={find_jar(None)}"]
    return [*where, f"--prism_location={find_prism(None)}"] if runner == "PrismRunner" else where


@pytest.mark.parametrize(
    "runner",
    [
        "FnApiRunner",
        pytest.param("FlinkRunner", marks=[pytest.mark.flink, pytest.mark.slow]),
        pytest.param("PrismRunner", marks=[pytest.mark.prism, pytest.mark.slow]),
    ],
)
def test_a_step_that_another_language_names_asks_about_each_row_once(expansion, runner):
    with beam.Pipeline(options=PipelineOptions(options(runner, expansion.address))) as pipeline:
        rows = pipeline | beam.Create([beam.Row(id=n, text=f"t{n}") for n in range(5)], reshuffle=False)
        answers = rows | asked_as_java_does("llmdo.AskModel", address=expansion.address)
        fields = dict(named_fields_from_element_type(answers.element_type))
        assert list(fields) == ["id", "text", "answer", "error"]
        plain = answers | "Plain" >> beam.Map(lambda row: (row.id, row.text, row.answer.partition(": ")[2], row.error))
        assert_that(plain, equal_to([(n, f"t{n}", f"Mood of t{n}?", None) for n in range(5)]))
    assert expansion.models.asked() == [f"Mood of t{n}?" for n in range(5)]


def test_a_service_expands_no_name_but_those_that_it_was_started_for(expansion):
    rows: Any = beam.Pipeline(runner="FnApiRunner") | beam.Create([beam.Row(text="t")])
    with pytest.raises(RuntimeError, match="not allowed by filter"):
        rows | asked_as_java_does("llmdo.ModelHandler", address=expansion.address)
    assert expansion.models.asked() == []


@pytest.mark.slow
@pytest.mark.flink
def test_java_expands_it_and_sees_the_answers_columns(expansion):
    """Java's own coders and External, which its PythonExternalTransform is made of; that one's jar is not needed."""
    assert shutil.which("javac"), "a JRE cannot compile"
    command = [java(), "-cp", find_jar(None), JAVA, expansion.address, MODEL, SCHEMA]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    columns = [line.split() for line in done.stdout.splitlines() if line.startswith("column ")]
    assert columns == [
        ["column", "id", "INT64", "required"],
        ["column", "text", "STRING", "required"],
        ["column", "answer", "STRING", "null"],
        ["column", "mood", "STRING", "null"],
        ["column", "error", "STRING", "null"],
    ]
