"""The job that Dataflow would get, built by Beam's own code from the command line, and sent nowhere."""

from __future__ import annotations

import base64
import bz2
import json
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from apache_beam.portability.api import beam_runner_api_pb2

from tests.runners.google_packages import google_packages_or_skip
from tests.runners.test_dataflow import GOOD, PLACES, SECRETS

ROOT = Path(__file__).parents[3]
OTHER_SECRETS = {
    "OPENAI_API_KEY": "sk-openai-for-tests",
    "BRAINTRUST_API_KEY": "sk-braintrust-for-tests",
    "ANTHROPIC_API_KEY": "sk-ant-for-tests",
    "AWS_SECRET_ACCESS_KEY": "aws-secret-for-tests",
    "CLOUDFLARE_AI_GATEWAY_TOKEN": "gateway-token-for-tests",
}
STEPS = ["Find files", "Open files", "Read lines", "Answer lines", "Write shards", "Settle files"]


@pytest.fixture(scope="session")
def google() -> Path:
    return google_packages_or_skip()


def llmdo(google: Path, tmp_path: Path, command: str, *arguments: str, **also: str) -> subprocess.CompletedProcess[str]:
    named = {"project": 0, "region": 0, "temp_location": 0, "container_image": 0}
    given = [f"--{name.replace('_', '-')}={GOOD[name]}" for name in named]
    place = [f"--env-from={one}" for one in (*PLACES, "CLOUDFLARE_AI_GATEWAY_TOKEN=projects/p/secrets/gw/versions/1")]
    environment = {
        **{name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")},
        **SECRETS,
        **OTHER_SECRETS,
        **{"CLOUDFLARE_ACCOUNT_ID": "0123456789abcdef" * 2, "PYTHONPATH": str(google), "TMPDIR": str(tmp_path)},
        # Nobody may be asked: there is no such proxy.
        **{"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"},
        **also,
    }
    return subprocess.run(
        [
            *(sys.executable, "-m", "llmdo", command, "--runner=dataflow", "--output=r2://bucket/out/"),
            *("--ledger=none", *given, *place, *arguments),
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="session")
def stream_job(google: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ``--json`` says, with the job file and the graph read in."""
    tmp_path = tmp_path_factory.mktemp("job")
    ended = llmdo(
        *(google, tmp_path, "stream", "--queue=a-queue", "--dry-run", "--json", "--max-num-workers=9"),
        *("--service-account=w@my-project.iam.gserviceaccount.com", "--gateway=a-gateway", "--rpm=900"),
    )
    assert ended.returncode == 0, ended.stderr
    said: dict[str, Any] = json.loads(ended.stdout)
    path = Path(said["job_file"])
    return said | {"file": json.loads(path.read_text()), "graph": (path.parent / "pipeline.pb").read_bytes()}


def test_the_job_has_the_graphs_steps_in_their_order(stream_job: dict[str, Any]) -> None:
    graph = beam_runner_api_pb2.Pipeline.FromString(stream_job["graph"]).components
    named = {transform.unique_name for transform in graph.transforms.values()}
    assert stream_job["steps"] == STEPS
    assert named >= {*STEPS, "Answer lines/Call the model"}
    # Splittable reading, native there: the source polls and the ranges of files are read by SDFs.
    splittable = [
        transform.unique_name
        for transform in graph.transforms.values()
        if transform.spec.urn == "beam:transform:pardo:v1"
        and beam_runner_api_pb2.ParDoPayload.FromString(transform.spec.payload).restriction_coder_id
    ]
    assert {name.split("/")[0] for name in splittable} == {"Find files", "Read lines"}


def test_the_job_is_a_streaming_one_with_our_image_and_limits(stream_job: dict[str, Any]) -> None:
    job = stream_job["file"]
    (pool,) = job["environment"]["workerPools"]
    assert job["type"] == "JOB_TYPE_STREAMING"
    assert job["labels"] == {"app": "llmdo", "command": "stream"}
    assert re.fullmatch(r"llmdo-stream-\d{8}-\d{6}-[0-9a-f]{4}", job["name"])
    assert pool["workerHarnessContainerImage"] == GOOD["container_image"]
    assert [image["containerImage"] for image in pool["sdkHarnessContainerImages"]] == [GOOD["container_image"]]
    assert pool["autoscalingSettings"] == {"algorithm": "AUTOSCALING_ALGORITHM_BASIC", "maxNumWorkers": 9}
    assert job["environment"]["serviceAccountEmail"] == "w@my-project.iam.gserviceaccount.com"
    assert job["environment"]["tempStoragePrefix"].startswith("storage.googleapis.com/my-bucket/temp/")
    experiments = job["environment"]["experiments"]
    assert {"enable_streaming_engine", "no_use_multiple_sdk_containers", "use_runner_v2"} <= set(experiments)
    # Nothing is brought along: the image has all, and no list of this machine's packages goes into the bucket.
    assert "packages" not in pool
    options = job["environment"]["sdkPipelineOptions"]["options"]
    assert options["sdk_location"] == "container"
    assert options["dry_run"] is False
    assert options["no_auth"] is False
    assert "llmdo.runners.workers.settings" in options["beam_plugins"]
    assert options["llmdo_env"] == [f"CLOUDFLARE_ACCOUNT_ID={'0123456789abcdef' * 2}"]
    assert set(PLACES) < set(options["llmdo_env_from"])


def unpacked(graph: bytes) -> list[bytes]:
    """The pickled steps of a graph, which Beam compresses."""
    found = []
    for text in re.findall(rb"[A-Za-z0-9+/]{64,}={0,2}", graph):
        for unpack in (bz2.decompress, zlib.decompress):
            try:
                found.append(unpack(base64.b64decode(text)))
            except (OSError, ValueError, zlib.error):
                continue
    return found


def test_no_secret_is_in_the_job_nor_in_its_pickled_steps(stream_job: dict[str, Any]) -> None:
    steps = unpacked(stream_job["graph"])
    # A check that could see nothing would pass: what steps do hold is seen.
    assert any(b"a-gateway" in step for step in steps)
    assert any(b"r2://bucket" in step or b"a-queue" in step for step in steps)
    seen = [json.dumps(stream_job["file"]).encode(), stream_job["graph"], *steps]
    for name, secret in {**SECRETS, **OTHER_SECRETS}.items():
        assert not [text for text in seen if secret.encode() in text], name


def test_bounded_work_is_a_streaming_job_too_and_people_see_where_it_is(google: Path, tmp_path: Path) -> None:
    ended = llmdo(google, tmp_path, "run", "--input=r2://bucket/in/", "--dry-run", COLUMNS="200")
    assert ended.returncode == 0, ended.stderr
    said = " ".join(ended.stdout.split())
    (path,) = tmp_path.rglob("job.json")
    assert f"Nothing was sent; the job is {path}" in said
    assert all(step in said for step in STEPS)
    assert "from Secret Manager: CLOUDFLARE_API_TOKEN=projects/" in said
    job = json.loads(path.read_text())
    assert (job["type"], job["labels"]["command"]) == ("JOB_TYPE_STREAMING", "run")


def test_a_job_that_cannot_work_is_not_built(google: Path, tmp_path: Path) -> None:
    ended = llmdo(google, tmp_path, "stream", "--queue=a-queue", "--dry-run", "--temp-location=nowhere")
    assert ended.returncode == 2
    assert "--temp-location nowhere: write gs://BUCKET/PREFIX" in " ".join(ended.stderr.split())
    assert not list(tmp_path.iterdir())
