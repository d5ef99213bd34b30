from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.io.flink.flink_streaming_impulse_source import FlinkStreamingImpulseSource
from apache_beam.options.pipeline_options import PipelineOptions

from llmdo.pipelines.options import JsonlOptions
from llmdo.pipelines.usage import UsageError
from llmdo.runners.flink import loopback_agent
from llmdo.runners.flink import rest as flink_rest
from llmdo.runners.flink.checks import FlinkPlan, check
from llmdo.runners.flink.loopback_agent import AgentError
from llmdo.runners.flink.rest import Cluster
from llmdo.runners.flink.runner import flink_arguments, job_name, launch, running_job_server
from llmdo.runners.listening import open_to_strangers
from llmdo.runners.servers import Endpoint
from tests.integration.flink_world import flink_cluster
from tests.servers.flink import LocalCluster

__all__ = ["flink_cluster"]  # a fixture

ENDPOINT = Endpoint("localhost:8099", Path("/tmp/server/log"), 1)
CLUSTER = Cluster("http://localhost:8081", "1.19", 4, ("localhost", "localhost"), {})


def options(output: str = "out/", **flink: Any) -> JsonlOptions:
    return JsonlOptions(files=("in/",), output=output, model="@cf/a/b", runner="flink", flink=flink)


def plan(cluster: Cluster | None, environment: Any = "LOOPBACK", config: str | None = None) -> FlinkPlan:
    return FlinkPlan(Path("java"), Path("job-server.jar"), cluster, environment, config)


def told(given: JsonlOptions, how: FlinkPlan) -> dict[str, Any]:
    """What the pipeline's options say, by name; without those that are not set."""
    parsed = PipelineOptions(flink_arguments(given, how, ENDPOINT, "llmdo-out-1"))
    return {name: value for name, value in parsed.get_all_options().items() if value not in (None, [])}


def test_a_job_streams_with_bundles_checkpoints_and_restarts_as_the_options_say() -> None:
    said = told(
        options(
            parallelism=3,
            bundle_ranges=7,
            bundle_seconds=0.25,
            checkpoint_seconds=45,
            checkpoint_dir="s3://bucket/checkpoints",
            flink_restarts=4,
        ),
        plan(CLUSTER, "EXTERNAL", "localhost:50000"),
    )
    assert said["streaming"] is True
    expected = {
        "job_endpoint": "localhost:8099",
        "job_name": "llmdo-out-1",
        "parallelism": 3,
        "max_bundle_size": "7",
        "max_bundle_time_mills": "250",
        "checkpointing_interval": "45000",
        "min_pause_between_checkpoints": "45000",
        "unaligned_checkpoint_enabled": "true",
        "fail_on_checkpointing_errors": "false",
        "tolerable_checkpoint_failure_number": "2147483647",
        "state_backend": "filesystem",
        "state_backend_storage_path": "s3://bucket/checkpoints",
        "number_of_execution_retries": "4",
        "execution_retry_delay": "5000",
        "environment_type": "EXTERNAL",
        "environment_config": "localhost:50000",
    }
    assert {name: said.get(name) for name in expected} == expected


def test_no_argument_is_unknown(caplog: pytest.LogCaptureFixture) -> None:
    told(options(), plan(None))
    assert "unparseable" not in caplog.text.lower()


def test_checkpoints_of_the_job_servers_own_cluster_go_to_its_folder_and_a_clusters_where_it_says() -> None:
    assert told(options(), plan(None))["state_backend_storage_path"] == "file:///tmp/server/checkpoints"
    assert "state_backend_storage_path" not in told(options(), plan(CLUSTER))


def test_settings_go_to_workers_that_do_not_have_this_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", "0" * 32)
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "a-secret-that-must-not-be-seen")
    process = flink_arguments(options(), plan(CLUSTER, "PROCESS", '{"command": "llmdo-worker"}'), ENDPOINT, "job")
    assert f"--llmdo_env=CLOUDFLARE_ACCOUNT_ID={'0' * 32}" in process
    assert not any("a-secret" in argument for argument in process)
    assert not any("llmdo_env" in argument for argument in flink_arguments(options(), plan(None), ENDPOINT, "job"))


@pytest.mark.parametrize(
    ("output", "name"),
    [
        ("r2://bucket/My Answers/", "llmdo-my-answers"),
        ("r2://bucket/", "llmdo-bucket"),
        ("/", "llmdo"),
        ("r2://bucket/" + "x" * 200 + "/", "llmdo-" + "x" * 64),
    ],
)
def test_a_job_is_named_after_its_output_and_no_two_alike(output: str, name: str) -> None:
    first, second = job_name(options(output)), job_name(options(output))
    assert re.fullmatch(re.escape(name) + "-[0-9a-f]{8}", first)
    assert first != second
    # Of Beam's PipelineOptions.
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,1022}[a-z0-9])?", first)


@pytest.mark.flink
def test_a_job_server_that_others_may_reach_is_refused_before_any_job_unless_that_is_allowed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loopback_agent, "java_arguments", lambda _: [])  # as a jar that the rules do not fit
    given = check(options())
    with (
        pytest.raises(
            UsageError,
            match=r"^Beam's job server for Flink \(.*\.jar\) listens on \[::\]:\d+, \[::\]:\d+: whoever .*; omit "
            r"--flink-job-server-jar and LLMDO_FLINK_JAR, .*, or accept that with --allow-open-ports$",
        ),
        running_job_server(given),
    ):
        pytest.fail("it was started")
    assert not [line for line in caplog.messages if "listens on" in line]
    with running_job_server(given, allow_open=True) as endpoint:
        assert len(open_to_strangers(endpoint.pid)) == 2
    assert [line for line in caplog.messages if "listens on [::]:" in line]


def test_without_the_agent_no_job_server_is_started_unless_that_is_allowed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    def missing(jar: Path) -> Path:
        raise AgentError(f"it is not beside {jar}")

    monkeypatch.setattr(loopback_agent, "find_agent", missing)
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho 'JobService started on localhost:8099'\nexec sleep 60\n")
    java.chmod(0o755)
    given = FlinkPlan(java, Path("job-server.jar"), None, "LOOPBACK", None)
    with (
        pytest.raises(AgentError, match=r"it is not beside job-server.jar, or accept .* with --allow-open-ports"),
        running_job_server(given),
    ):
        pytest.fail("it was started")
    with running_job_server(given, allow_open=True) as endpoint:
        assert endpoint.address == "localhost:8099"
    assert "it is not beside job-server.jar" in caplog.text


def run_batches(arguments: list[str], path: Path) -> str:
    """20 elements in batches of 8, whose sizes go into a file; gives the job's last state."""

    def keep(pair: tuple[str, list[int]]) -> None:
        with path.open("a") as file:
            file.write(f"{len(pair[1])}\n")

    pipeline = beam.Pipeline(options=PipelineOptions(arguments))
    _ = (
        pipeline
        | FlinkStreamingImpulseSource().set_interval_ms(10).set_message_count(20)
        | "Key" >> beam.Map(lambda _: ("key", 1))
        | beam.GroupIntoBatches(8, max_buffering_duration_secs=60)
        | "Keep" >> beam.Map(keep)
    )
    return pipeline.run().wait_until_finish()


def batches(path: Path) -> list[int]:
    return sorted(map(int, path.read_text().split()))


@pytest.mark.slow
@pytest.mark.flink
def test_a_streaming_graph_with_batches_runs_to_its_end_in_the_job_server(tmp_path: Path) -> None:
    with launch(options(parallelism=2, bundle_seconds=0.1, checkpoint_seconds=1)) as arguments:
        assert run_batches(arguments, tmp_path / "batches") == "DONE"
    assert batches(tmp_path / "batches") == [4, 8, 8]


@pytest.mark.slow
@pytest.mark.flink
def test_the_same_graph_runs_on_a_cluster_whose_workers_are_in_a_pool(
    tmp_path: Path, flink_cluster: LocalCluster
) -> None:
    given = options(
        flink_master=flink_cluster.master, environment_config=flink_cluster.pool, parallelism=4, bundle_seconds=0.1
    )
    with launch(given) as arguments:
        assert run_batches(arguments, tmp_path / "batches") == "DONE"
    assert batches(tmp_path / "batches") == [4, 8, 8]


@pytest.mark.slow
@pytest.mark.flink
def test_a_job_ends_with_the_run_that_began_it(flink_cluster: LocalCluster) -> None:
    given = options(
        flink_master=flink_cluster.master, environment_config=flink_cluster.pool, parallelism=4, bundle_seconds=0.1
    )
    name = ""
    with pytest.raises(KeyError), launch(given) as arguments:
        (name,) = [argument.partition("=")[2] for argument in arguments if argument.startswith("--job_name=")]
        pipeline = beam.Pipeline(options=PipelineOptions(arguments))
        _ = pipeline | FlinkStreamingImpulseSource().set_interval_ms(10) | "Keep" >> beam.Map(len)
        pipeline.run()
        wait_for(lambda: [job.state for job in flink_rest.jobs(flink_cluster.url, name)] == ["RUNNING"])
        raise KeyError("the run failed")
    wait_for(lambda: [job.state for job in flink_rest.jobs(flink_cluster.url, name)] == ["CANCELED"])
    wait_for(lambda: flink_cluster.free_slots() == 4)


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not come true"
        time.sleep(0.1)


@pytest.mark.flink
def test_what_the_job_server_leaves_behind_is_nothing(tmp_path: Path) -> None:
    with launch(options()) as arguments:
        (folder,) = [
            Path(a.removeprefix("--state_backend_storage_path=file://")).parent for a in arguments if "storage" in a
        ]
        assert folder.is_dir()
    assert not folder.exists()
