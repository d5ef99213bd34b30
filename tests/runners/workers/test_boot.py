"""Workers that a runner starts by a command: on a real Prism, in processes of their own."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_provision_api_pb2, beam_runner_api_pb2, endpoints_pb2
from apache_beam.portability.common_urns import artifact_roles
from google.protobuf import text_format

from llmdo.backends.engine.recall import Recall
from llmdo.backends.errors import BadReply
from llmdo.backends.requests import ChatRequest
from llmdo.pipelines import jsonl
from llmdo.pipelines.options import JsonlOptions
from llmdo.runners.inspecting.verify import verify
from llmdo.runners.portable import job_arguments
from llmdo.runners.prism.runner import running_prism
from llmdo.runners.workers.boot import BootError, worker_environment
from llmdo.runners.workers.settings import set_environment, worker_arguments
from llmdo.storage.ledger.opening import open_ledger
from llmdo.storage.objects.local import LocalStore
from llmdo.storage.runs.budgets import BudgetBook
from tests.runners.google_packages import google_packages_or_skip
from tests.settings.test_secret_manager import PLACE, FakeGoogle, addresses, serving

ROOT = Path(__file__).parents[3]
MODEL = "@cf/meta/llama-3.3-70b-instruct-fp8-fast"
NOTHING_GIVEN = argparse.Namespace(control_endpoint="", logging_endpoint="", artifact_endpoint="")


@pytest.fixture
def boot(tmp_path: Path) -> Path:
    """What pip makes of the entry point ``llmdo-worker``."""
    script = tmp_path / "llmdo-worker"
    script.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path[0] = {str(ROOT)!r}\n"
        "from llmdo.runners.workers.boot import main\nmain()\n"
    )
    script.chmod(0o755)
    return script


@pytest.fixture
def binary() -> Path:
    path = Path(os.environ.get("LLMDO_PRISM") or ROOT / ".cache" / "prism" / "prism")
    if not path.is_file():
        pytest.fail(f"there is no Prism at {path}: run `make test`, or set LLMDO_PRISM")
    return path


def in_processes(endpoint: Any, boot: Path) -> list[str]:
    return [
        *job_arguments(endpoint),
        "--experiments=prism_disable_sdf_split",
        "--environment_type=PROCESS",
        f"--environment_config={json.dumps({'command': str(boot)})}",
    ]


def test_steps_run_in_a_process_of_their_own_with_the_settings_and_secrets_of_the_job(
    binary: Path, boot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("R2_ENDPOINT_URL", "https://r2.example")
    monkeypatch.delenv("CLOUDFLARE_API_TOKEN", raising=False)
    seen = tmp_path / "seen.json"

    def look(_: None) -> None:
        names = ("R2_ENDPOINT_URL", "CLOUDFLARE_API_TOKEN")
        seen.write_text(json.dumps({"pid": os.getpid(), **{name: os.environ.get(name) for name in names}}))

    with serving(FakeGoogle({PLACE: b"secret-of-the-worker"})) as address:
        for name, value in addresses(address).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("PYTHONPATH", f"{google_packages_or_skip()}{os.pathsep}{ROOT}")
        settings = worker_arguments((f"CLOUDFLARE_API_TOKEN={PLACE}",))
        monkeypatch.delenv("R2_ENDPOINT_URL")  # a worker inherits Prism's environment, which is this one's from here on
        with running_prism(binary) as endpoint:
            pipeline = beam.Pipeline(options=PipelineOptions([*in_processes(endpoint, boot), *settings]))
            pipeline | beam.Create([None]) | beam.Map(look)
            pipeline.run().wait_until_finish()
    found = json.loads(seen.read_text())
    assert found["pid"] != os.getpid()
    assert found["R2_ENDPOINT_URL"] == "https://r2.example"
    assert found["CLOUDFLARE_API_TOKEN"] == "secret-of-the-worker"
    assert "CLOUDFLARE_API_TOKEN" not in os.environ


def test_the_whole_graph_runs_in_processes_of_their_own(
    binary: Path, boot: Path, tmp_path: Path, cloudflare: Any
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("".join(f'{{"prompt": "line {n}"}}\n' for n in range(40)) + "no JSON\n")
    output = tmp_path / "out"
    options = JsonlOptions(
        files=(str(source),),
        output=str(output),
        model=MODEL,
        runner="prism",
        ledger="none",
        batch_seconds=1,
        budget="1M tokens/day",
    )
    with running_prism(binary) as endpoint:
        pipeline = beam.Pipeline(options=PipelineOptions(in_processes(endpoint, boot)))
        jsonl.build(pipeline, options, "a-run")
        pipeline.run().wait_until_finish()
    result = verify(str(output), [str(source)])
    assert result.ok
    (manifest,) = output.rglob("_manifest.json")
    counts = json.loads(manifest.read_text())
    assert (counts["answered"], counts["failed"]) == (40, 1), counts
    record = BudgetBook(LocalStore(output), "").read()
    assert record is not None
    assert record.spent["day"].tokens + sum(one.tokens for one in record.leases.values()) >= counts["output_tokens"] > 0


def test_a_worker_is_told_what_the_runner_said() -> None:
    info = beam_provision_api_pb2.ProvisionInfo(
        control_endpoint=endpoints_pb2.ApiServiceDescriptor(url="localhost:1"),
        status_endpoint=endpoints_pb2.ApiServiceDescriptor(url="localhost:3"),
        runner_capabilities=["a", "b"],
    )
    info.pipeline_options["beam:option:job_name:v1"] = "j"
    given = argparse.Namespace(control_endpoint="localhost:9", logging_endpoint="localhost:2", artifact_endpoint="")
    environment = worker_environment(info, given)
    assert json.loads(environment["PIPELINE_OPTIONS"]) == {"beam:option:job_name:v1": "j"}
    assert environment["RUNNER_CAPABILITIES"] == "a b"
    for name, url in (("CONTROL", "localhost:1"), ("LOGGING", "localhost:2"), ("STATUS", "localhost:3")):
        descriptor = endpoints_pb2.ApiServiceDescriptor()
        text_format.Merge(environment[f"{name}_API_SERVICE_DESCRIPTOR"], descriptor)
        assert descriptor.url == url


def test_a_job_that_brings_packages_is_refused_by_name() -> None:
    def staged(name: str) -> Any:
        role = beam_runner_api_pb2.ArtifactStagingToRolePayload(staged_name=name)
        return beam_runner_api_pb2.ArtifactInformation(
            role_urn=artifact_roles.STAGING_TO.urn, role_payload=role.SerializeToString()
        )

    endpoint = endpoints_pb2.ApiServiceDescriptor(url="localhost:1")
    info = beam_provision_api_pb2.ProvisionInfo(control_endpoint=endpoint, logging_endpoint=endpoint)
    info.dependencies.append(staged("submission_environment_dependencies.txt"))
    assert worker_environment(info, NOTHING_GIVEN)
    info.dependencies.append(staged("requirements.txt"))
    with pytest.raises(BootError, match=r"brings requirements\.txt: install"):
        worker_environment(info, NOTHING_GIVEN)


def test_a_runner_that_is_not_there_is_a_sentence_and_exit_code_1(boot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"import sys; sys.path[0] = {str(ROOT)!r}\nimport llmdo.runners.workers.boot as b\n"
    code += "b._CONNECT_TIMEOUT = 0.5\nb.main()"
    ended = subprocess.run(
        [sys.executable, "-c", code, "--id=1", "--provision_endpoint=127.0.0.1:9"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "llmdo-worker: the runner at 127.0.0.1:9 does not describe the job (DEADLINE_EXCEEDED)" in ended.stderr


def test_a_secret_of_the_environment_is_not_among_the_plain_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", "0" * 32)
    monkeypatch.setenv("STORE_ID", "store")
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "secret-1234567")
    monkeypatch.setenv("OPENAI_API_KEY", "secret-1234567")
    arguments = worker_arguments((f"STORE_ID={PLACE}",))
    assert f"--llmdo_env=CLOUDFLARE_ACCOUNT_ID={'0' * 32}" in arguments
    assert f"--llmdo_env_from=STORE_ID={PLACE}" in arguments
    assert not [one for one in arguments if one.startswith("--llmdo_env=STORE_ID")]
    assert "secret-1234567" not in " ".join(arguments)


def test_settings_of_a_worker_that_has_them_already_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"STORE_ID": "mine"})
    set_environment({"llmdo_env": ["STORE_ID=theirs", "R2_ENDPOINT_URL=https://r2.example/?a=b"]})
    assert os.environ == {"STORE_ID": "mine", "R2_ENDPOINT_URL": "https://r2.example/?a=b"}


# Four calls are in flight in a worker, and four wait. They end when the worker says that it waits for them, or never.
CALLING = """
import asyncio, logging, sys, threading, time
from llmdo.backends.engine import registry as engine
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.requests import ChatRequest
from llmdo.backends.responses import ChatResponse
from llmdo.backends.usage import Usage
from llmdo.runners.workers import worker
from llmdo.transforms.answers.ledger_settings import LedgerSettings

waits = threading.Event()

class Heard(logging.StreamHandler):
    def emit(self, record):
        super().emit(record)
        if "waiting for 4 calls in flight" in record.getMessage():
            waits.set()

logging.getLogger().addHandler(Heard())

class Slow:
    name = "slow"
    async def execute(self, request):
        while sys.argv[3] == "never" or not waits.is_set():
            await asyncio.sleep(0.01)
        return ChatResponse("re", "stop", Usage(1, 1), request.model)
    async def aclose(self):
        pass

def harness(argv):
    calls = engine.get_engine(CallSettings(4, kept=LedgerSettings(argv[1])))
    for key in range(8):
        calls.submit("slow", ChatRequest("m", (), request_id=str(key)), lambda done: None)
    while calls.stats().in_flight < 4:
        time.sleep(0.01)
    print("calling", flush=True)
    if argv[2] == "stay":
        time.sleep(60)

engine.connect = lambda name, gateway: Slow()
worker.sdk_worker_main.main = harness
worker.main()
"""


@pytest.mark.fast("stay-signals0-*sqlite*", "hang up-*/ledger/")
@pytest.mark.parametrize("ledger", ["sqlite:///{}/ledger.sqlite", "{}/ledger/"])
@pytest.mark.parametrize(
    ("how", "signals", "kept", "code"),
    [
        ("stay", [signal.SIGTERM], 4, 128 + signal.SIGTERM),
        ("stay", [signal.SIGTERM, signal.SIGTERM], 0, -signal.SIGTERM),
        ("hang up", [], 4, 0),
    ],
)
def test_a_worker_that_is_terminated_or_hung_up_on_keeps_the_answers_of_its_calls_in_flight(
    tmp_path: Path, ledger: str, how: str, signals: list[int], kept: int, code: int
) -> None:
    place = ledger.format(tmp_path)
    command = [sys.executable, "-c", CALLING, place, how, "soon" if kept else "never"]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert worker.stdout and worker.stderr
    assert worker.stdout.readline() == b"calling\n"
    for at, number in enumerate(signals):
        while at and b"waiting for 4 calls in flight" not in (line := worker.stderr.readline()):
            assert line, "it ended at the first signal"
        worker.send_signal(number)
    worker.communicate(timeout=240)
    assert worker.returncode == code
    opened = open_ledger(place)
    assert opened is not None
    assert asyncio.run(_found(opened)) == kept


async def _found(ledger: Any) -> int:
    """How many of the eight answers are there."""

    async def never(request: Any) -> Any:
        raise BadReply("it was not kept")

    recall, found = Recall(ledger, "same-line"), 0
    for key in range(8):
        try:
            await recall.answer("slow", ChatRequest("m", (), request_id=str(key)), never)
            found += 1
        except BadReply:
            pass
    await recall.aclose()
    return found
