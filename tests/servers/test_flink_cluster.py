from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from llmdo.runners.flink.jar import FlinkError
from tests.runners.prism.test_runner import alive, gone
from tests.servers import flink as flink_server
from tests.servers.flink import find_libraries, running_cluster

ROOT = Path(__file__).parents[2]


def distribution(path: Path, names: list[str]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            member = tarfile.TarInfo(f"apache-flink-libraries-1.19.0/{name}")
            member.size = 3
            archive.addfile(member, io.BytesIO(b"jar"))
    return path


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pip that copies a small distribution to the given place, and counts its calls."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = distribution(
        tmp_path / "apache-flink-libraries-1.19.0.tar.gz",
        ["deps/lib/flink-dist-1.19.0.jar", "deps/lib/log4j-api.jar", "deps/opt/flink-python.jar", "setup.py"],
    )
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\necho "$*" >> {tmp_path}/calls\nwhile [ "$1" != --dest ]; do shift; done\n'
        f'cp {made} "$2"\ncat "$4" >> {tmp_path}/requirements\n'
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    return python


def test_flink_is_fetched_once_and_only_its_libraries_are_kept(tmp_path: Path, pip: Path) -> None:
    first = find_libraries()
    assert sorted(jar.name for jar in first.iterdir()) == ["flink-dist-1.19.0.jar", "log4j-api.jar"]
    assert find_libraries() == first
    (call,) = (tmp_path / "calls").read_text().splitlines()
    assert "--require-hashes" in call.split()
    assert (tmp_path / "requirements").read_text() == (
        f"apache-flink-libraries==1.19.0 --hash=sha256:{flink_server.FLINK_SHA256}\n"
    )
    assert sorted(path.name for path in first.parent.iterdir()) == ["lib", "lock"]


def test_a_fetch_that_fails_is_said_and_leaves_nothing(tmp_path: Path, pip: Path) -> None:
    pip.write_text("#!/bin/sh\necho 'ERROR: No matching distribution found'\nexit 1\n")
    with pytest.raises(
        FlinkError, match=r"Flink 1.19.0 could not be fetched \(.*No matching distribution found\): check"
    ):
        find_libraries()
    assert [path.name for path in (flink_server.cache_folder() / "flink-1.19.0").iterdir()] == ["lock"]


def test_flink_with_another_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the real pip, which finds the package in a folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    distribution(tmp_path / "apache-flink-libraries-1.19.0.tar.gz", ["deps/lib/flink-dist-1.19.0.jar", "setup.py"])
    with pytest.raises(FlinkError, match=r"Flink 1.19.0 could not be fetched \(.*DO NOT MATCH THE HASHES.*\)"):
        find_libraries()
    assert [path.name for path in (flink_server.cache_folder() / "flink-1.19.0").iterdir()] == ["lock"]


@pytest.mark.slow
@pytest.mark.flink
def test_a_cluster_has_its_slots_loses_those_of_a_dead_machine_and_leaves_nothing_behind() -> None:
    with running_cluster(task_managers=2, slots=2) as cluster:
        folder = cluster._folder
        pids = [endpoint.pid for endpoint in cluster.task_managers] + [cluster.pool_process.pid]
        assert cluster.free_slots() == 4
        os.kill(cluster.task_managers[0].pid, signal.SIGKILL)
        wait_for_slots(cluster, 2)
        cluster.start_task_manager()
        wait_for_slots(cluster, 4)
        os.killpg(cluster.pool_process.pid, signal.SIGKILL)
        assert gone(pids[-1], within=60)
        cluster.start_pool()
        pids += [cluster.pool_process.pid, cluster.task_managers[-1].pid]
        assert all(alive(pid) for pid in pids[-2:])
    assert not any(alive(pid) for pid in pids)
    assert not folder.exists()


def wait_for_slots(cluster: flink_server.LocalCluster, slots: int) -> None:
    end = time.monotonic() + 120
    while cluster.free_slots() != slots:
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.flink
def test_the_command_keeps_a_cluster_up_until_ctrl_c() -> None:
    command = [sys.executable, "-m", "tests.servers.flink"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdout is not None
        assert "serves at http://127.0.0.1:" in child.stdout.readline()
        assert child.stdout.readline().startswith("  llmdo run … --runner flink --flink-master 127.0.0.1:")
        os.kill(child.pid, signal.SIGINT)
        assert child.wait(60) == 0
