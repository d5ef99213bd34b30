from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from ipaddress import IPv4Address, IPv6Address

import pytest

from llmdo.runners.listening import Listener, _endpoint, can_look, listening, open_to_strangers, shown

pytestmark = pytest.mark.skipif(not can_look(), reason="this system has no /proc/net/tcp")

# Listens on the given address, prints the port, and waits; the middle process only starts it.
CHILD = """
import socket, sys, time
server = socket.create_server((sys.argv[1], 0))
print(server.getsockname()[1], flush=True)
time.sleep(60)
"""
GRANDCHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"


def start(*command: str) -> tuple[subprocess.Popen[str], int]:
    """A process in a session of its own, and the port that it says."""
    child = subprocess.Popen(
        [sys.executable, "-c", *command], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert child.stdout is not None
    return child, int(child.stdout.readline())


def end(child: subprocess.Popen[str]) -> None:
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()


def test_a_port_on_all_interfaces_is_open_to_strangers() -> None:
    child, port = start(CHILD, "0.0.0.0")
    try:
        assert listening(child.pid) == {(IPv4Address(0), port)}
        assert open_to_strangers(child.pid) == [f"0.0.0.0:{port}"]
    finally:
        end(child)


def test_a_port_on_loopback_is_not() -> None:
    child, port = start(CHILD, "127.0.0.1")
    try:
        assert listening(child.pid) == {(IPv4Address("127.0.0.1"), port)}
        assert open_to_strangers(child.pid) == []
    finally:
        end(child)


def test_descendants_count_and_other_processes_do_not() -> None:
    with socket.create_server(("0.0.0.0", 0)):
        child, port = start(GRANDCHILD, CHILD, "0.0.0.0")
        try:
            assert open_to_strangers(child.pid) == [f"0.0.0.0:{port}"]
        finally:
            end(child)


def test_a_connection_is_not_listened_on() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as connection,
    ):
        ports = {port for _, port in listening(os.getpid())}
        assert server.getsockname()[1] in ports
        assert connection.getsockname()[1] not in ports


def test_a_process_that_has_ended_is_an_error_and_never_closed() -> None:
    child, _ = start(CHILD, "127.0.0.1")
    end(child)
    with pytest.raises(OSError, match=str(child.pid)):
        open_to_strangers(child.pid)


@pytest.mark.skipif(sys.byteorder != "little", reason="the texts are those of a little-endian machine")
@pytest.mark.parametrize(
    ("text", "endpoint", "loopback"),
    [
        ("0100007F:1F89", (IPv4Address("127.0.0.1"), 8073), True),
        ("00000000:1F89", (IPv4Address("0.0.0.0"), 8073), False),
        ("020200C0:0050", (IPv4Address("192.0.2.2"), 80), False),
        ("00000000000000000000000001000000:1F89", (IPv6Address("::1"), 8073), True),
        ("00000000000000000000000000000000:1F89", (IPv6Address("::"), 8073), False),
        ("B80D0120000000000000000001000000:1F89", (IPv6Address("2001:db8::1"), 8073), False),
        ("0000000000000000FFFF00000100007F:1F89", (IPv4Address("127.0.0.1"), 8073), True),
        ("0000000000000000FFFF0000020200C0:1F89", (IPv4Address("192.0.2.2"), 8073), False),
    ],
)
def test_addresses_are_read_as_the_kernel_writes_them(text: str, endpoint: Listener, loopback: bool) -> None:
    found = _endpoint(text)
    assert found == endpoint
    assert found[0].is_loopback == loopback


def test_addresses_are_shown_as_one_connects_to_them() -> None:
    assert shown((IPv4Address("127.0.0.1"), 80)) == "127.0.0.1:80"
    assert shown((IPv6Address("::1"), 80)) == "[::1]:80"
