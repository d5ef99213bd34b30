"""Where a graph runs on Flink: starts Beam's job server, which submits to a cluster or is a small one itself."""

from __future__ import annotations

import logging
import re
import uuid
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from apache_beam.options.pipeline_options import PipelineOptions

from llmdo.pipelines.options import JsonlOptions
from llmdo.runners.flink import loopback_agent
from llmdo.runners.flink import rest as flink_rest
from llmdo.runners.flink.checks import FlinkPlan, check
from llmdo.runners.flink.jar import JAR_VARIABLE, FlinkError
from llmdo.runners.flink.loopback_agent import AgentError
from llmdo.runners.flink.rest import LOCAL
from llmdo.runners.listening import ALLOW, refuse_strangers
from llmdo.runners.portable import job_arguments
from llmdo.runners.servers import Endpoint, running_server
from llmdo.runners.workers.settings import worker_arguments
from llmdo.transforms.lines.planned import parcels_in_bundle

_log = logging.getLogger(__name__)

# Between a failure and Flink's next try. Milliseconds.
_RESTART_DELAY = 5_000
# Java's largest int, which is also what fail_on_checkpointing_errors=false sets.
_UNLIMITED = 2**31 - 1
_JOB_SERVER_OPTIONS = (
    *("max_bundle_size", "max_bundle_time_mills"),
    *("checkpointing_interval", "min_pause_between_checkpoints", "fail_on_checkpointing_errors"),
    *("unaligned_checkpoint_enabled", "tolerable_checkpoint_failure_number"),
    *("state_backend", "state_backend_storage_path"),
    *("number_of_execution_retries", "execution_retry_delay", "shutdown_sources_after_idle_ms"),
)
_NAME = "Beam's job server for Flink"
_SERVING = re.compile(rb"JobService started on (\S+)")
_REMEDY = (
    f"omit --flink-job-server-jar and {JAR_VARIABLE}, so that llmdo builds one that listens on 127.0.0.1 only "
    "(with Maven and Java)"
)


class FlinkSettings(PipelineOptions):
    """Options of the job server that Beam's Python SDK does not have, and would warn of.

    Names: FlinkPipelineOptions of Beam's Flink runner.
    """

    @classmethod
    def _add_argparse_args(cls, parser: ArgumentParser) -> None:
        for name in _JOB_SERVER_OPTIONS:
            parser.add_argument(f"--{name}", default=None)


@contextmanager
def launch(options: JsonlOptions) -> Iterator[list[str]]:
    """Yields the arguments of a pipeline that runs on Flink; the job ends with the context.

    A process that is killed leaves its job on the cluster behind, which continues. Raises UsageError and FlinkError for
    what ``check`` finds, what ``running_job_server`` does, and ServerDied for a job server that ended in the middle.
    """
    plan = check(options)
    name = job_name(options)
    with running_job_server(plan, allow_open=options.allow_open_ports) as endpoint:
        try:
            yield flink_arguments(options, plan, endpoint, name)
        finally:
            if plan.cluster is not None:
                _end_jobs(plan.cluster.url, name)


def job_name(options: JsonlOptions) -> str:
    """Unique, and derived from where answers go: ``llmdo-answers-3f9a41c2``."""
    folder = re.sub(r"[^a-z0-9]+", "-", options.output.rstrip("/").rpartition("/")[2].lower()).strip("-")
    return "-".join(filter(None, ("llmdo", folder[:64], uuid.uuid4().hex[:8])))


def running_job_server(plan: FlinkPlan, *, allow_open: bool = False) -> AbstractContextManager[Endpoint]:
    """Starts a job server on free ports and stops it at the end; see ``running_server``.

    All that it serves, now and once a job runs, is on loopback. Raises AgentError if that is impossible, and
    UsageError if the server listens on more after all, unless ``allow_open``.
    """
    closed = _closed(plan.jar, allow_open=allow_open)

    def command(folder: Path) -> list[str | Path]:
        return [
            plan.java,
            *closed,
            f"-Djava.io.tmpdir={folder}",
            # It submits, or is the whole cluster; half of the memory, which Java takes as it needs it, is for Python.
            *("-XX:MaxRAMPercentage=40", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"),
            "-Dorg.slf4j.simpleLogger.log.org.apache.beam.runners.jobsubmission=info",
            *("-jar", plan.jar),
            f"--flink-master={plan.cluster.url if plan.cluster else LOCAL}",
            # Free ones, which the log names; a negative one: no service for steps of other languages.
            *("--job-port=0", "--artifact-port=0", "--expansion-port=-1"),
            f"--artifacts-dir={folder / 'artifacts'}",
        ]

    check = partial(refuse_strangers, f"{_NAME} ({plan.jar})", remedy=_REMEDY, allowed=allow_open)
    return running_server(_NAME, command, _SERVING, check)


def _closed(jar: Path, *, allow_open: bool) -> list[str]:
    """Java's arguments for a job server on loopback only."""
    try:
        return loopback_agent.java_arguments(loopback_agent.find_agent(jar))
    except AgentError as error:
        if not allow_open:
            raise AgentError(f"{error}, or accept that other machines may reach it with {ALLOW}") from None
        _log.warning("%s", error)
        return []


def flink_arguments(options: JsonlOptions, plan: FlinkPlan, endpoint: Endpoint, name: str) -> list[str]:
    """Pipeline arguments for a streaming job."""
    flink = options.flink
    # The job server's own cluster would keep them in memory, 5 MB a step at most.
    own_place = (endpoint.log.parent / "checkpoints").as_uri() if plan.cluster is None else None
    checkpoints = flink.checkpoint_dir or own_place
    return [
        *job_arguments(endpoint),
        "--streaming",
        f"--job_name={name}",
        f"--parallelism={flink.parallelism}",
        f"--environment_type={plan.environment}",
        *([f"--environment_config={plan.config}"] if plan.config else []),
        *(worker_arguments(()) if plan.environment in ("PROCESS", "DOCKER") else []),
        # Elements of any kind: ranges of files, parcels of lines, answers.
        f"--max_bundle_size={flink.bundle_ranges or parcels_in_bundle(options.concurrency.calls)}",
        f"--max_bundle_time_mills={_milliseconds(flink.bundle_seconds)}",
        f"--checkpointing_interval={_milliseconds(flink.checkpoint_seconds)}",
        # A checkpoint waits for all bundles to end, and then they all start again.
        f"--min_pause_between_checkpoints={_milliseconds(flink.checkpoint_seconds)}",
        *(["--state_backend=filesystem", f"--state_backend_storage_path={checkpoints}"] if checkpoints else []),
        # It would also wait behind all lines that are on their way to a step: minutes of calls.
        "--unaligned_checkpoint_enabled=true",
        # A checkpoint that fails does not fail the job: the option's name in job servers for Flink 1, and for Flink 2.
        # Each ignores what it does not know.
        "--fail_on_checkpointing_errors=false",
        f"--tolerable_checkpoint_failure_number={_UNLIMITED}",
        f"--number_of_execution_retries={flink.flink_restarts}",
        f"--execution_retry_delay={_RESTART_DELAY}",
        # A source that has ended ends the job; by default it stays, idle, for the sake of checkpoints.
        "--shutdown_sources_after_idle_ms=0",
    ]


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _end_jobs(url: str, name: str) -> None:
    """Cancels what still runs, so that no job outlives the run that started it."""
    try:
        for job in flink_rest.jobs(url, name):
            if not job.over:
                _log.info("cancelling job %s on %s", name, url)
                flink_rest.cancel(url, job)
    except FlinkError as error:
        _log.warning("%s", error)
