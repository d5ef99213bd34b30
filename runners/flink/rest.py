"""A Flink cluster's REST API, as far as a run needs it.

Paths and fields: nightlies.apache.org/flink/flink-docs-release-1.19/docs/ops/rest_api. Those used here
are the same up to Flink 2.2.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from typing import Any

import httpx

from llmdo.runners.flink.jar import FLINK_VERSIONS, SUPPORTED, FlinkError

LOCAL = "[local]"
_TIMEOUT = 10.0  # seconds
# States of jobs that have ended for good.
_OVER = frozenset({"FAILED", "CANCELED", "FINISHED", "SUSPENDED"})
# The first is the name since Flink 1.20, which takes precedence there; the second is still read.
_CHECKPOINT_KEYS = ("execution.checkpointing.dir", "state.checkpoints.dir")


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a cluster reports of itself.

    Attributes:
        url: of its REST API.
        flink: its version, one of FLINK_VERSIONS.
        free_slots: how many subtasks could begin now.
        hosts: where it runs: the JobManager's, then each TaskManager's.
        configuration: its own settings, such as ``rest.port``.
    """

    url: str
    flink: str
    free_slots: int
    hosts: tuple[str, ...]
    configuration: dict[str, str]

    @property
    def grows(self) -> bool:
        """Whether it starts TaskManagers for jobs that need more slots than it has."""
        return "kubernetes.cluster-id" in self.configuration or "yarn.application.id" in self.configuration

    @property
    def checkpoints(self) -> str | None:
        """Where it keeps checkpoints of jobs that do not say; None is the JobManager's memory."""
        return next((self.configuration[key] for key in _CHECKPOINT_KEYS if key in self.configuration), None)

    @property
    def is_here(self) -> bool:
        """Whether all of it runs on this machine."""
        return all(is_this_machine(host) for host in self.hosts)


@dataclass(frozen=True, slots=True)
class FlinkJob:
    """A job on a cluster."""

    id: str
    name: str
    state: str

    @property
    def over(self) -> bool:
        """Whether it has ended for good."""
        return self.state in _OVER


def url_of(master: str) -> str:
    """The address of the REST API that ``host:port`` or a URL names. Raises FlinkError."""
    found = re.fullmatch(r"(https?://)?([\w.-]+|\[[0-9a-fA-F:]+\]):(\d+)/?", master)
    if found is None:
        raise FlinkError(f"--flink-master {master}: write {LOCAL}, or HOST:PORT of a JobManager's REST API")
    scheme, host, port = found.groups()
    return f"{scheme or 'http://'}{host}:{port}"


def look_at(url: str) -> Cluster:
    """Asks a cluster about itself. Raises FlinkError for one that does not answer, or whose version is not accepted."""
    version = str(_get(url, "/config").get("flink-version"))
    flink = ".".join(version.split(".")[:2])
    if flink not in FLINK_VERSIONS:
        raise FlinkError(
            f"the cluster at {url} is Flink {version}, and llmdo runs on {SUPPORTED}: use a cluster of one of these"
        )
    managers = _get(url, "/taskmanagers")["taskmanagers"]
    settings = _get(url, "/jobmanager/config")
    return Cluster(
        url,
        flink,
        int(_get(url, "/overview")["slots-available"]),
        (str(httpx.URL(url).host), *(_host_of(str(manager["path"])) for manager in managers)),
        {str(row["key"]): str(row["value"]) for row in settings},
    )


def jobs(url: str, name: str) -> list[FlinkJob]:
    """The jobs of this name. Raises FlinkError."""
    rows = _get(url, "/jobs/overview")["jobs"]
    return [FlinkJob(row["jid"], row["name"], row["state"]) for row in rows if row["name"] == name]


def cancel(url: str, job: FlinkJob) -> None:
    """Cancels a job; returns before it has ended. Raises FlinkError."""
    try:
        httpx.patch(f"{url}/jobs/{job.id}?mode=cancel", timeout=_TIMEOUT).raise_for_status()
    except httpx.HTTPError as error:
        raise FlinkError(f"job {job.name} at {url} could not be cancelled ({error}): cancel it there") from None


def is_this_machine(host: str) -> bool:
    """Whether a name or an address is this machine's own; an unknown one is not."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return any(_is_own(family, str(address[0])) for family, _, _, _, address in found)


def _is_own(family: socket.AddressFamily, address: str) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _host_of(path: str) -> str:
    """Of ``pekko.tcp://flink@10.0.0.7:6122/user/rpc/taskmanager_0``; one within the JobManager has none."""
    found = re.search(r"@(\[[^\]]+\]|[^:/]+)[:/]", path)
    return found[1] if found else "localhost"


def _get(url: str, path: str) -> Any:
    try:
        reply = httpx.get(url + path, timeout=_TIMEOUT, follow_redirects=True)
        reply.raise_for_status()
        return reply.json()
    except (httpx.HTTPError, ValueError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FlinkError(
            f"no Flink answers at {url}{path} ({said}): check --flink-master and that the JobManager runs"
        ) from None
