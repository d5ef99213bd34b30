"""Nothing that llmdo starts on this machine can be reached from another one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmdo.runners.listening import can_look, listening, open_to_strangers
from llmdo.runners.prism.binary import PRISM_VARIABLE, find_prism
from tests.faults.test_kills import paid, wait_until
from tests.integration.cloud import MODEL, OUTPUT, prompts
from tests.integration.flink_world import fresh_cluster
from tests.integration.test_chat import OPTIONS, _Queues, example

__all__ = ["fresh_cluster"]  # a fixture

pytestmark = pytest.mark.skipif(not can_look(), reason="this system has no /proc/net/tcp")
prism = pytest.mark.prism

PLACES = ("--queue", "llmdo-input", "--output", OUTPUT)


@contextmanager
def answering(cloud, command, *arguments, seconds=120) -> Iterator[subprocess.Popen[bytes]]:
    """A process of llmdo that has made its first calls, and makes more; killed at the end."""
    if command == "chat":
        _Queues(cloud).input.push_many(example())
    else:
        cloud.upload("a.jsonl", prompts(200))
    cloud.fault(target="ai", probability=1.0, latency_s=0.5)
    process = cloud.command(command, *arguments, "--model", MODEL, "--concurrency", "4", "--json")
    try:
        wait_until(lambda: paid(cloud), seconds, process)
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.fast("stream", "run-processes")
@pytest.mark.parametrize(
    ("command", "arguments", "ports"),
    [
        pytest.param("run", (*PLACES, "--runner", "direct"), 0, id="run-direct"),
        pytest.param("run", (*PLACES, "--processes", "2"), 0, id="run-processes"),
        # Prism's, and that of the workers in the process.
        pytest.param("run", (*PLACES, "--runner", "prism"), 2, id="run-prism", marks=prism),
        pytest.param("stream", PLACES, 2, id="stream", marks=prism),
        pytest.param("stream", (*PLACES, "--processes", "2"), 2, id="stream-processes", marks=prism),
        pytest.param("chat", OPTIONS[:6], 2, id="chat", marks=prism),
    ],
)
def test_a_run_listens_on_loopback_only(cloud, command, arguments, ports):
    with answering(cloud, command, *arguments) as process:
        assert open_to_strangers(process.pid) == []
        assert len(listening(process.pid)) == ports


WORKER = json.dumps({"command": str(Path(sys.executable).with_name("llmdo-worker"))})


@pytest.mark.slow
@pytest.mark.flink
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "where",
    [("LOOPBACK",), ("PROCESS", "--environment-config", WORKER)],
    ids=["workers-in-the-process", "workers-of-their-own"],
)
def test_flink_in_the_job_server_listens_on_loopback_only_while_it_works(cloud, where):
    options = (*PLACES, "--runner", "flink", "--environment-type", *where)
    with answering(cloud, "run", *options, seconds=240) as process:
        assert open_to_strangers(process.pid) == []
        # The job server's two, and what workers connect to: control, data, logging, state and more of the job.
        assert len(listening(process.pid)) >= 8


@pytest.mark.slow
@pytest.mark.flink
@pytest.mark.timeout(600)
def test_a_flink_cluster_for_development_listens_on_loopback_only_while_it_works(cloud, fresh_cluster):
    places = ("--flink-master", fresh_cluster.master, "--environment-config", fresh_cluster.pool)
    options = (*PLACES, "--runner", "flink", "--parallelism", "2", *places)
    with answering(cloud, "run", *options, seconds=240):
        # The cluster's processes are children of this one, as the run is.
        assert open_to_strangers(os.getpid()) == []
        assert len(listening(os.getpid())) >= 15


def test_llmdo_local_listens_on_loopback_only(cloud, tmp_path):
    process = cloud.command("local", "--data", str(tmp_path / "data"), "--port", "0", "--model", "echo")
    try:
        wait_until((tmp_path / "data" / "env").exists, 120, process)
        assert open_to_strangers(process.pid) == []
        assert len(listening(process.pid)) == 1
    finally:
        process.kill()
        process.communicate()


def own_address() -> str | None:
    """This machine's address on a network, if it has one. Nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))
        except OSError:
            return None
        address = str(probe.getsockname()[0])
    return None if address.startswith("127.") else address


@prism
def test_a_connection_to_another_address_of_the_machine_is_refused(cloud):
    address = own_address()
    if address is None:
        pytest.skip("this machine has no address but loopback")
    with answering(cloud, "stream", *PLACES) as process:
        for _, port in listening(process.pid):
            socket.create_connection(("127.0.0.1", port), timeout=60).close()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((address, port), timeout=5)


# Becomes Prism, with a port on all interfaces, where nothing is served.
OPEN_PRISM = """#!{python}
import os, socket, sys
if "--help" not in sys.argv:
    door = socket.create_server(("0.0.0.0", 0))
    os.set_inheritable(door.fileno(), True)
os.execv({prism!r}, [{prism!r}, *sys.argv[1:]])
"""


@pytest.fixture
def open_prism(tmp_path):
    path = tmp_path / "open-prism"
    path.write_text(OPEN_PRISM.format(python=sys.executable, prism=str(find_prism(None))))
    path.chmod(0o755)
    return str(path)


REFUSED = (
    "listens on 0.0.0.0:{port}: whoever reaches that over the network can run any program as this user, without a "
    "password; omit --prism-location and LLMDO_PRISM, so that llmdo builds a Prism that listens on 127.0.0.1 only "
    "(with Go 1.26 or newer, or one from PyPI), or accept that with --allow-open-ports\n"
)


@pytest.mark.fast("run-*")
@prism
@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("run", (*PLACES, "--runner", "prism")),
        ("stream", PLACES),
        ("schedule", (*PLACES, "--runner", "prism", "--cron", "* * * * *")),
        ("chat", OPTIONS[:6]),
    ],
)
def test_a_prism_that_others_may_reach_is_refused_in_one_sentence_before_any_call(
    cloud, open_prism, command, arguments
):
    if command == "chat":
        _Queues(cloud).input.push_many(example())
    else:
        cloud.upload("a.jsonl", prompts(3))
    given = ("--prism-location", open_prism) if command != "stream" else ()
    process = cloud.command(command, *arguments, "--model", MODEL, *given, **{PRISM_VARIABLE: open_prism})
    out, err = process.communicate(timeout=240)
    assert (process.returncode, out) == (2, b"")
    (said,) = [line for line in err.decode().splitlines(keepends=True) if "listens on" in line]
    port = said.partition("0.0.0.0:")[2].partition(":")[0]
    assert port.isdigit()
    assert said == f"llmdo: Prism ({open_prism}) " + REFUSED.format(port=port)
    assert b"Traceback" not in err
    assert paid(cloud) == 0
    with pytest.raises(ConnectionRefusedError):  # it was stopped
        socket.create_connection(("127.0.0.1", int(port)), timeout=60)


@prism
def test_a_prism_that_others_may_reach_runs_with_a_warning_if_that_is_allowed(cloud, open_prism):
    cloud.upload("a.jsonl", prompts(3))
    process = cloud.command(
        *("run", *PLACES, "--model", MODEL, "--runner", "prism"),
        *("--prism-location", open_prism, "--allow-open-ports", "--json"),
    )
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    (said,) = [line for line in err.decode().splitlines() if "listens on 0.0.0.0:" in line]
    assert "whoever reaches that over the network can run any program as this user" in said
    cloud.check()
    fingerprint = cloud.store.read("output/_configuration.json")[0]
    assert b"open" not in fingerprint
