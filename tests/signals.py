"""Signals to processes that a test has started: on a busy machine they come neither too early nor two as one."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

_BEGINS_S = 120.0
_LEAVES_S = 120.0


def wait_until_it_listens(process: subprocess.Popen[bytes]) -> None:
    """Returns when a process has set its handler of SIGTERM, as llmdo does once it has imported what it needs.

    Before that the signal would kill it. Raises AssertionError if it ends, or does not come to that.
    """
    end = time.monotonic() + _BEGINS_S
    while not _catches(process.pid, signal.SIGTERM):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "it does not listen for SIGTERM"
        time.sleep(0.02)


def drain(*processes: subprocess.Popen[bytes]) -> None:
    """Sends SIGTERM to each as soon as it listens for it."""
    for process in processes:
        if process.poll() is None:
            wait_until_it_listens(process)
        process.terminate()


def insist(
    process: subprocess.Popen[bytes], number: signal.Signals, send: Callable[[int, int], None] = os.kill
) -> tuple[bytes, bytes]:
    """A second signal to a process that has got a first one; gives what it wrote.

    It is sent each second until the process has ended: two that come before either was handled are one.
    """
    end = time.monotonic() + _LEAVES_S
    while True:
        if process.poll() is None:
            send(process.pid, number)
        try:
            return process.communicate(timeout=1.0)
        except subprocess.TimeoutExpired:
            assert time.monotonic() < end, f"it does not leave at {number.name}"


def _catches(pid: int, number: signal.Signals) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
    (mask,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(mask, 16) >> (number - 1) & 1)
