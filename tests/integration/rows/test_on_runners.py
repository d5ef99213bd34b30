"""AskModel on Prism, batch and streaming, and as a job that Dataflow would get; RunInference on Prism."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.ml.inference.base import KeyedModelHandler, PredictionResult, RunInference
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.testing.test_stream import TestStream as Stream  # pytest collects what begins with Test
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms import window
from apache_beam.utils.timestamp import Timestamp

from llmdo import AskModel, ModelHandler
from llmdo.backends.engine.registry import close_engines
from llmdo.runners.prism.binary import find_prism
from llmdo.runners.prism.runner import prism_arguments, running_prism
from tests.local.cloudflare import Running
from tests.runners.google_packages import google_packages_or_skip

MODEL = "@cf/meta/llama-3.3-70b-instruct-fp8-fast"
ROOT = Path(__file__).parents[3]


@pytest.fixture
def prism(cloudflare: Running) -> Iterator[list[str]]:
    """Arguments of a pipeline on a Prism of its own, whose steps work in this process."""
    close_engines()
    with running_prism(find_prism(None)) as endpoint:
        yield prism_arguments(endpoint)
    close_engines()


def paid(cloudflare: Running) -> list[int]:
    """How often each prompt was answered for money."""
    return list(cloudflare.stats()["paid"]["by_prompt"].values())


@pytest.mark.prism
def test_a_batch_on_prism_is_answered_and_paid_once(prism: list[str], cloudflare: Running, tmp_path: Path) -> None:
    for _ in range(2):
        with beam.Pipeline(options=PipelineOptions(prism)) as pipeline:
            rows = pipeline | beam.Create([beam.Row(id=number, text=f"t{number}") for number in range(30)])
            step = AskModel(MODEL, "Say {text}", ledger=str(tmp_path), concurrency=8)
            answers, failures = rows | step.with_exception_handling()
            found = answers | beam.Reshuffle() | beam.Map(lambda row: (row.id, row.answer))
            assert_that(found, equal_to([(number, f"echo: Say t{number}") for number in range(30)]))
            assert_that(failures | beam.Map(lambda row: row.message), equal_to([]), label="no failures")
    assert paid(cloudflare) == [1] * 30


def outcome(pair: tuple[int, PredictionResult]) -> tuple[int, str]:
    """The answer about a number, or the name of the error."""
    number, result = pair
    return number, getattr(result.inference, "text", type(result.inference).__name__)


@pytest.mark.slow
@pytest.mark.prism
def test_run_inference_on_prism_has_its_errors_apart_and_is_paid_once(
    prism: list[str], cloudflare: Running, tmp_path: Path
) -> None:
    for _ in range(2):
        with beam.Pipeline(options=PipelineOptions(prism)) as pipeline:
            handler = ModelHandler(MODEL, prompt="Say {text}", ledger=str(tmp_path), concurrency=8)
            examples = pipeline | beam.Create([(n, {"text": f"t{n}"} if n % 10 else {}) for n in range(30)])
            found = examples | RunInference(KeyedModelHandler(handler)) | beam.Map(outcome)
            wrong = [(n, "BadLine") for n in range(0, 30, 10)]
            assert_that(found, equal_to([*wrong, *((n, f"echo: Say t{n}") for n in range(30) if n % 10)]))
    assert paid(cloudflare) == [1] * 27


noted: list[tuple[int, list[str]]] = []  # of the module: the steps work in this process


def note(window_of: tuple[int, Any]) -> None:
    noted.append((window_of[0], list(window_of[1])))


@pytest.mark.prism
def test_a_stream_on_prism_is_answered_in_the_windows_of_its_rows(prism: list[str], cloudflare: Running) -> None:
    noted.clear()
    stream = Stream().advance_watermark_to(0)
    for second in (1, 4, 11, 12, 25):
        stream = stream.add_elements([window.TimestampedValue(f"at {second}", Timestamp(second))])
        stream = stream.advance_watermark_to(second)
    with beam.Pipeline(options=PipelineOptions([*prism, "--streaming"])) as pipeline:
        answers = pipeline | stream.advance_watermark_to_infinity() | AskModel(MODEL, concurrency=2)
        _ = (
            answers
            | "Ten seconds each" >> beam.WindowInto(window.FixedWindows(10))
            | "Windows" >> beam.Map(lambda row, at=beam.DoFn.WindowParam: (int(at.start), row.answer))
            | beam.GroupByKey()
            | "Note" >> beam.Map(note)
        )
    said = {0: ["echo: at 1", "echo: at 4"], 10: ["echo: at 11", "echo: at 12"], 20: ["echo: at 25"]}
    assert {start: sorted(answers) for start, answers in noted} == said
    assert len(noted) == len(said)
    assert paid(cloudflare) == [1] * 5


# A pipeline as anybody may write it, given to Beam's own runner for Dataflow. Google's storage and API cannot be had
# here: what would be put into the bucket goes into the folder, and the job is made for a launcher, who would send it.
SUBMITTED = """
import sys
from pathlib import Path
import apache_beam as beam
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions
from apache_beam.runners.dataflow.internal import apiclient
import llmdo

def stage_file(self, place, name, stream, *_, **__):
    Path(name).write_bytes(stream.read())

def sent(*_):
    raise AssertionError("it is the launcher that sends the job")

apiclient.DataflowApplicationClient.stage_file = stage_file
apiclient.DataflowApplicationClient.submit_job_description = sent
GoogleCloudOptions._warn_if_soft_delete_policy_enabled = lambda *_: None
pipeline = beam.Pipeline(options=PipelineOptions(sys.argv[1:]))
rows = pipeline | beam.Create([beam.Row(id=1, text="a")])
schema = {"type": "object", "properties": {"label": {"type": "string"}}}
step = llmdo.AskModel("openai/gpt-4o-mini", "Label {text}", schema=schema, ledger="r2://llmdo/paid/", rpm=900)
answers, failures = rows | step.with_exception_handling()
answers | beam.Map(print)
pipeline.run()
"""


def test_dataflow_would_get_a_job_with_the_step_and_without_the_key(tmp_path: Path) -> None:
    key = "sk-for-tests-of-dataflow"
    arguments = {
        "runner": "DataflowRunner",
        "project": "my-project",
        "region": "europe-west1",
        "temp_location": "gs://my-bucket/temp",
        "sdk_container_image": "registry.example.com/llmdo:1",
        "sdk_location": "container",
        "template_location": "gs://my-bucket/job.json",
        "job_name": "somebody-elses",
        "experiments": "disable_logging_submission_environment",
    }
    own = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    nowhere = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    path = f"{google_packages_or_skip()}{os.pathsep}{ROOT}"
    ended = subprocess.run(
        [
            *(sys.executable, "-c", SUBMITTED, "--no_auth", "--no_save_main_session"),
            *(f"--{name}={value}" for name, value in arguments.items()),
        ],
        cwd=tmp_path,
        env={**own, **nowhere, "OPENAI_API_KEY": key, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    job: dict[str, Any] = json.loads((tmp_path / "job.json").read_text())
    assert (job["name"], job["type"]) == ("somebody-elses", "JOB_TYPE_BATCH")
    graph = (tmp_path / "pipeline.pb").read_bytes()
    components = beam_runner_api_pb2.Pipeline.FromString(graph).components
    names = {one.unique_name for one in components.transforms.values()}
    step = "AskModel/Ask openai/gpt-4o-mini"
    assert {f"{step}/ParDo(_Ask)", "AskModel/Answered", "AskModel/Without an answer"} <= names, sorted(names)
    urns = {coder.spec.urn for coder in components.coders.values()}
    assert "beam:coder:row:v1" in urns  # rows have their schema on the way
    assert key.encode() not in graph
    assert key not in json.dumps(job)
