"""A real Flink cluster on this machine, with the pool of its Python workers: for development and tests.

``python -m tests.servers.flink`` keeps one up until Ctrl-C. Flink comes from PyPI: apache-flink-libraries is its
distribution without the shell scripts.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from llmdo.runners.flink import loopback_agent
from llmdo.runners.flink import rest as flink_rest
from llmdo.runners.flink.jar import FlinkError, java
from llmdo.runners.servers import Endpoint, running_server
from llmdo.runners.temporary import temporary_folder
from llmdo.settings.environment import cache_folder
from llmdo.settings.tools import ToolError, one_at_a_time, say, succeed, workshop
from tests.fakes.ports import free_port

FLINK = "1.19.0"
PACKAGE = f"apache-flink-libraries=={FLINK}"
# Of its source distribution, the only one.
FLINK_SHA256 = "bb3115c1c63702f95c3f89d5d952e9d98e26fd35b980a265d139790a6ea2c2a2"
_REGISTERED_TIMEOUT = 60.0  # seconds
_JOB_MANAGER = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
_TASK_MANAGER = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
_REST = re.compile(rb"Rest endpoint listening at (\S+)")
_REGISTERED = re.compile(rb"Successful registration at resource manager (\S+)")
_POOL = re.compile(rb"workers are started by (\S+)")
# What Flink's own scripts give to Java 17: env.java.opts.all of its config.yaml.
_OPENED = (
    *("java.lang", "java.net", "java.io", "java.nio", "java.lang.reflect", "java.text", "java.time", "java.util"),
    *("java.util.concurrent", "java.util.concurrent.atomic", "java.util.concurrent.locks", "sun.nio.ch"),
)
# Its scripts compute the sizes from the machine's memory; a TaskManager started without them needs all of these.
_SETTINGS = {
    "jobmanager.rpc.address": "localhost",
    "rest.address": "localhost",
    "rest.bind-address": "localhost",
    "rest.port": "0",
    "taskmanager.host": "localhost",
    "taskmanager.cpu.cores": "1",
    "taskmanager.memory.framework.heap.size": "128m",
    "taskmanager.memory.framework.off-heap.size": "128m",
    "taskmanager.memory.jvm-metaspace.size": "256m",
    "taskmanager.memory.jvm-overhead.min": "192m",
    "taskmanager.memory.jvm-overhead.max": "192m",
    "taskmanager.memory.task.heap.size": "256m",
    "taskmanager.memory.task.off-heap.size": "64m",
    "taskmanager.memory.network.min": "64m",
    "taskmanager.memory.network.max": "64m",
    "taskmanager.memory.managed.size": "64m",
    # As a job on several machines would have it: not all of it on the first.
    "cluster.evenly-spread-out-slots": "true",
    # A TaskManager that was killed is missed after two of these. Milliseconds.
    "heartbeat.interval": "1000",
}


def find_libraries() -> Path:
    """The folder with Flink's jars, from the cache or PyPI (230 MB). Raises FlinkError."""
    cache = cache_folder() / f"flink-{FLINK}"
    jars = cache / "lib"
    if jars.is_dir():
        return jars
    with one_at_a_time(cache), workshop(cache) as folder:
        if not jars.is_dir():
            say(f"fetching Flink {FLINK} (pip download {PACKAGE}, 230 MB, once) …")
            try:
                succeed(_download(folder), {})
                _unpack(next(folder.glob("*.tar.gz")), folder / "lib")
            except (ToolError, OSError, StopIteration, tarfile.TarError, subprocess.SubprocessError) as error:
                raise FlinkError(
                    f"Flink {FLINK} could not be fetched ({error}): check pip's index, try again"
                ) from None
            (folder / "lib").replace(jars)
    return jars


def _download(folder: Path) -> list[str | Path]:
    # pip takes hashes from files only.
    pinned = folder / "requirements.txt"
    pinned.write_text(f"{PACKAGE} --hash=sha256:{FLINK_SHA256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    return [*pip, "--require-hashes", "--dest", folder, "--requirement", pinned]


def _unpack(archive: Path, target: Path) -> None:
    target.mkdir()
    with tarfile.open(archive) as content:
        for member in content:
            if re.fullmatch(r"[^/]+/deps/lib/[^/]+\.jar", member.name) and (source := content.extractfile(member)):
                with (target / Path(member.name).name).open("wb") as file:
                    shutil.copyfileobj(source, file)


class LocalCluster:
    """A cluster that ``running_cluster`` started. Each process is known by its id, and stopped by it.

    Attributes:
        master: host and port of the JobManager's REST API, as ``--flink-master`` takes it; ``url`` is its URL.
        pool: host and port of the worker pool, as ``--environment-config`` takes it; ``pool_process`` serves there.
        task_managers: in the order in which they were started; killed ones stay.
    """

    def __init__(self, stack: ExitStack, folder: Path, slots: int) -> None:
        self._stack, self._folder = stack, folder
        self._classpath = ":".join(str(jar) for jar in sorted(find_libraries().glob("*.jar")))
        self._java: list[str | Path] = [java(), *loopback_agent.java_arguments(loopback_agent.find_agent())]
        settings = {**_SETTINGS, "taskmanager.numberOfTaskSlots": str(slots), "io.tmp.dirs": str(folder / "tmp")}
        settings |= {
            "jobmanager.rpc.port": str(free_port()),
            "state.checkpoints.dir": (folder / "checkpoints").as_uri(),
        }
        (folder / "tmp").mkdir()
        (folder / "flink-conf.yaml").write_text("".join(f"{name}: {value}\n" for name, value in settings.items()))
        self.master = self._flink("Flink's JobManager", _JOB_MANAGER, _REST).address
        self.url = flink_rest.url_of(self.master)
        self.task_managers: list[Endpoint] = []
        self.pool = f"localhost:{free_port()}"
        self.start_pool()

    def start_task_manager(self) -> None:
        """Starts one more; returns when the JobManager knows it."""
        self.task_managers.append(self._flink("Flink's TaskManager", _TASK_MANAGER, _REGISTERED))

    def free_slots(self) -> int:
        """How many subtasks could begin now. Raises FlinkError."""
        return flink_rest.look_at(self.url).free_slots

    def start_pool(self) -> None:
        """Starts the pool, in a process group with the Python workers that it starts; again if it was killed."""
        command = [sys.executable, "-m", "llmdo.runners.workers.pool", f"--service_port={self.pool.rpartition(':')[2]}"]
        self.pool_process = self._stack.enter_context(
            running_server("the pool of Python workers", lambda _: command, _POOL)
        )

    def _flink(self, name: str, main: str, serving: re.Pattern[bytes]) -> Endpoint:
        command: Sequence[str | Path] = [
            *self._java,
            # Quick to start rather than quick for long.
            *("-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"),
            *(f"-Djava.io.tmpdir={self._folder / 'tmp'}", "-Dlog4j2.level=INFO", "-cp", self._classpath),
            *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED),
            *(main, "--configDir", self._folder),
        ]
        return self._stack.enter_context(running_server(name, lambda _: command, serving))


@contextmanager
def running_cluster(task_managers: int = 2, slots: int = 2) -> Iterator[LocalCluster]:
    """Starts a cluster and its pool on free ports, and stops them at the end; removes all that they wrote.

    ``slots`` are those of each TaskManager. Workers have this process's environment. Raises ToolError.
    """
    with temporary_folder() as folder, ExitStack() as stack:
        cluster = LocalCluster(stack, folder, slots)
        with ThreadPoolExecutor() as pool:
            for started in [pool.submit(cluster.start_task_manager) for _ in range(task_managers)]:
                started.result()
        end = time.monotonic() + _REGISTERED_TIMEOUT
        while cluster.free_slots() < task_managers * slots and time.monotonic() < end:
            time.sleep(0.1)
        yield cluster


def main() -> int:
    """Keeps a cluster up until it is interrupted."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background commands ignore the first one
        signal.signal(number, signal.default_int_handler)
    try:
        with running_cluster() as cluster:
            print(f"Flink {FLINK} serves at {cluster.url}, 2 TaskManagers, 4 slots; Ctrl-C stops it. Use it with:")
            print(
                f"  llmdo run … --runner flink --flink-master {cluster.master} --environment-config {cluster.pool} "
                "--parallelism 4",
                flush=True,
            )
            signal.pause()
    except KeyboardInterrupt:
        return 0
    except ToolError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
