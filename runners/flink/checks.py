"""Checks of Flink before a job is sent: everything that is wrong is reported at once."""

from __future__ import annotations

import json
import logging
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from llmdo.pipelines.options import JsonlOptions
from llmdo.pipelines.runner_options import EnvironmentType, FlinkOptions
from llmdo.pipelines.usage import UsageError
from llmdo.runners.flink import rest as flink_rest
from llmdo.runners.flink.jar import (
    FLINK_VERSION,
    FLINK_VERSIONS,
    FlinkError,
    beam_version_of,
    find_jar,
    flink_version_of,
    java,
    way_to_jar,
)
from llmdo.runners.flink.rest import LOCAL, Cluster
from llmdo.storage.ledger.ledger import SQLITE_SCHEME

_log = logging.getLogger(__name__)

# Where a worker pool listens in Beam's own examples and containers.
DEFAULT_POOL = "localhost:50000"
# Streaming jobs ran no splittable DoFn before it (github.com/apache/beam/issues/19637).
SDF_SINCE = (2, 77)
_CONNECT_TIMEOUT = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class FlinkPlan:
    """How a job will run; made by ``check``.

    Attributes:
        cluster: None is a small one inside the job server.
        environment: how it starts Python; and ``config`` where.
    """

    java: Path
    jar: Path
    cluster: Cluster | None
    environment: EnvironmentType
    config: str | None


def check(options: JsonlOptions) -> FlinkPlan:
    """Checks all that a job on Flink needs; warns of what may go wrong later.

    Raises UsageError for what the user must correct, FlinkError for a missing job server or Java.
    """
    flink = options.flink
    found = java()
    problems: list[str] = []
    cluster: Cluster | None = None
    try:
        if flink.flink_master != LOCAL:
            cluster = flink_rest.look_at(flink_rest.url_of(flink.flink_master))
    except FlinkError as error:
        problems.append(str(error))
    jar = find_jar(flink.flink_job_server_jar, cluster.flink if cluster else FLINK_VERSION)
    problems += _versions(jar, cluster, flink)
    environment = flink.environment
    config = flink.environment_config or (DEFAULT_POOL if environment == "EXTERNAL" else None)
    here = cluster is None or cluster.is_here
    problems += _ENVIRONMENTS[environment](config, here)
    if cluster is not None:
        problems += [*_slots(cluster, flink), *_places(options, cluster)]
    if problems:
        raise UsageError(problems)
    for warning in _warnings(options, cluster, flink_version_of(jar)):
        _warn_once(warning)
    return FlinkPlan(found, jar, cluster, environment, config)


@cache
def _warn_once(warning: str) -> None:
    # ``stream`` checks again whenever it restarts its pipeline.
    _log.warning("%s", warning)


def _versions(jar: Path, cluster: Cluster | None, flink: FlinkOptions) -> Iterator[str]:
    if flink.flink_sdf and (version := beam_version_of(jar))[:2] < SDF_SINCE:
        has = ".".join(map(str, version))
        yield f"--flink-sdf needs a job server of Beam 2.77 or newer, and {jar} is {has}: omit it"
    if cluster is not None and (made_for := flink_version_of(jar)) != cluster.flink:
        yield (
            f"the cluster at {cluster.url} is Flink {cluster.flink}, and {jar} is a job server for Flink {made_for}: "
            f"{way_to_jar(cluster.flink)}"
        )


def _slots(cluster: Cluster, flink: FlinkOptions) -> Iterator[str]:
    if flink.parallelism > cluster.free_slots and not cluster.grows:
        yield (
            f"--parallelism {flink.parallelism}: the cluster at {cluster.url} has {cluster.free_slots} free slots: "
            "lower it, end other jobs, or start more TaskManagers"
        )


def _places(options: JsonlOptions, cluster: Cluster) -> Iterator[str]:
    """What workers on other machines could not see."""
    if cluster.is_here:
        return
    elsewhere = f"which the machines of the cluster at {cluster.url} do not see"
    if options.local_files:
        yield f"{options.local_files[0]} is on this machine, {elsewhere}: use r2://BUCKET/PREFIX/, or --queue"
    if not options.output_location.bucket:
        yield f"--output {options.output} is on this machine, {elsewhere}: use r2://BUCKET/PREFIX/"
    if options.kept.ledger.startswith(SQLITE_SCHEME):
        yield f"the ledger {options.kept.ledger} is on this machine, {elsewhere}: use --ledger r2://BUCKET/PREFIX/"


def _warnings(options: JsonlOptions, cluster: Cluster | None, version: str) -> Iterator[str]:
    if not FLINK_VERSIONS[version]:
        yield (
            f"llmdo is not tested on Flink {version}, only on {FLINK_VERSION}: try a small input first, and check its "
            "answers with llmdo verify"
        )
    if cluster is None:
        return
    place = options.flink.checkpoint_dir or cluster.checkpoints
    if place is None:
        yield (
            "the cluster keeps checkpoints in the JobManager's memory, 5 MB a step at most; nothing is lost where one "
            "fails, but give a place with --checkpoint-dir"
        )
    elif not cluster.is_here and urlsplit(place).scheme in ("", "file"):
        yield f"checkpoints go to {place}: if that is not one folder for all machines, use s3://… or hdfs://…"
    # The JobManager's host is the first.
    managers = len(cluster.hosts) - 1
    if managers > options.workers and (options.rpm or options.tpm):
        yield f"the cluster has {managers} TaskManagers, each calls at the full rate: --workers {managers} divides it"


def _loopback(config: str | None, here: bool) -> Iterator[str]:
    if config is not None:
        yield f"--environment-config {config}: LOOPBACK needs no configuration: omit it"
    if not here:
        yield (
            "--environment-type LOOPBACK runs the steps in this process, which other machines do not reach: "
            "use EXTERNAL, PROCESS or DOCKER"
        )


def _external(config: str | None, here: bool) -> Iterator[str]:
    host, _, port = str(config).rpartition(":")
    if not host or not port.isdecimal():
        yield f"--environment-config {config}: write the worker pool's HOST:PORT"
        return
    # On other machines, localhost is each TaskManager's own.
    if not here and flink_rest.is_this_machine(host):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT).close()
    except (OSError, OverflowError) as error:
        yield (
            f"no worker pool answers at {config} ({error}): start one with "
            f"python -m llmdo.runners.workers.pool --service_port={port}"
        )


def _process(config: str | None, here: bool) -> Iterator[str]:
    example = '{"command": "/path/to/.venv/bin/llmdo-worker"}'
    try:
        command = json.loads(config or "")["command"]
    except (ValueError, TypeError, KeyError):
        yield f"--environment-config {config}: PROCESS needs JSON with a command, such as {example}"
        return
    if here and shutil.which(str(command)) is None:
        yield f"--environment-config: there is no program {command}; it is llmdo-worker, as in {example}"


def _docker(config: str | None, here: bool) -> Iterator[str]:
    if not config:
        yield "--environment-type DOCKER: name the image with --environment-config; Dockerfile here makes one"
    if here and shutil.which("docker") is None:
        yield "--environment-type DOCKER: there is no docker on PATH: install it, or use PROCESS or EXTERNAL"


_ENVIRONMENTS = {"LOOPBACK": _loopback, "EXTERNAL": _external, "PROCESS": _process, "DOCKER": _docker}
