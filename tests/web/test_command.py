"""`make chat-page`, as a program: what it starts and ends, and what it says when it cannot start."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from llmdo.runners.listening import can_look, listening, open_to_strangers
from tests.web.world import ROOT, build, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
# Whoever runs the tests in the background has Ctrl-C ignored, and so has what they start.
AS_IN_A_TERMINAL = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
)
COMMAND = [sys.executable, str(ROOT / "examples/chat_page.py")]


@contextmanager
def running(data: Path):
    """The program, as a terminal starts it, and the address that it shows."""
    build()
    words = ["--port", "0", "--sync-port", "0", "--data", str(data)]
    process = subprocess.Popen(
        [sys.executable, "-c", AS_IN_A_TERMINAL, *COMMAND, *words],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        shown = []
        for line in process.stdout:
            shown.append(line)
            if found := re.search(r"http://localhost:\d+/", line):
                break
        assert shown and found, shown
        yield process, found[0]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def left(data: Path) -> list[str]:
    """The command lines of the processes that were started for this folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = place.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if any(str(data) in word for word in words):
            found.append(" ".join(words))
    return found


def refused(*words: str, **env: str) -> str:
    """What it says as it ends with exit code 1."""
    done = subprocess.run(
        [*COMMAND, *words], check=False, capture_output=True, text=True, env=os.environ | env, timeout=110
    )
    assert (done.returncode, done.stdout) == (1, ""), done
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.prism
def test_ctrl_c_ends_everything_that_it_started(tmp_path):
    with running(tmp_path) as (process, _):
        until((tmp_path / "log/demo/_cursor.json").exists)  # llmdo is at work
        assert len(left(tmp_path)) >= 3  # itself, workerd, llmdo
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(110) == 0
        until(lambda: not left(tmp_path))


@pytest.mark.prism
def test_nothing_is_left_when_it_is_killed(tmp_path):
    with running(tmp_path) as (process, _):
        process.kill()
        process.wait()
        until(lambda: not left(tmp_path))


@pytest.mark.prism
def test_the_page_is_served_to_this_machine_and_its_backends_token_to_no_other_site(tmp_path):
    with running(tmp_path) as (process, address):
        page = httpx.get(address, timeout=60)
        assert "llmdo chat" in page.text and page.headers["Cache-Control"] == "no-cache"
        config = httpx.get(f"{address}config.json", timeout=60).json()
        assert config["syncUrl"].startswith("ws://localhost:")
        assert httpx.get(f"{address}config.json", headers={"Host": "attacker.example"}, timeout=60).status_code == 403
        token = config["payload"]["authToken"]
        assert not [line for line in left(tmp_path) if token in line]
        if can_look():
            assert open_to_strangers(process.pid) == []
            assert len(listening(process.pid)) >= 2  # the page, and workerd
        assert "another chat page uses" in refused("--data", str(tmp_path))
    assert (tmp_path / "token").stat().st_mode & 0o077 == 0
    until(lambda: not left(tmp_path))  # it was killed; what it had started notices that
    with running(tmp_path) as (_, address):
        assert httpx.get(f"{address}config.json", timeout=60).json()["payload"] == {"authToken": token}


@pytest.mark.parametrize("option", ["--port", "--sync-port"])
def test_a_port_that_is_taken_is_told_with_a_remedy(tmp_path, option):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        other = {"--port": "--sync-port", "--sync-port": "--port"}[option]
        told = refused("--data", str(tmp_path), option, str(port), other, "0")
    assert told.startswith(f"error: port {port} cannot be used (Address already in use)")
    assert f"make chat-page ARGS='{option} " in told


@pytest.mark.parametrize(
    ("version", "told"),
    [
        (None, "error: the page is built with npm, which is not here: install Node.js 20.19 or later"),
        ("v20.9.0", "error: the page needs Node.js 20.19 or later, and {node} is v20.9.0"),
    ],
    ids=["no node", "an old node"],
)
def test_a_node_that_is_missing_or_old_is_told_with_a_remedy(tmp_path, version, told):
    folder = tmp_path / "bin"
    folder.mkdir()
    if version:
        for name in ("node", "npm"):
            (folder / name).write_text(f"#!/bin/sh\necho {version}\n")
            (folder / name).chmod(0o755)
    words = ("--data", str(tmp_path / "data"), "--port", "0", "--sync-port", "0")
    assert refused(*words, PATH=str(folder)) == told.format(node=folder / "node")
