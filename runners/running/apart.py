"""One run in a process of its own, so that what it leaks or breaks ends with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from llmdo.backends.errors import ModelError
from llmdo.pipelines.options import JsonlOptions
from llmdo.pipelines.usage import UsageError
from llmdo.runners.running.run import run
from llmdo.runners.running.stop import leave
from llmdo.runners.showing.logs import log_level, quieten
from llmdo.runners.showing.progress import Watch
from llmdo.runners.showing.summary import EXIT_FAILED, EXIT_USAGE
from llmdo.runners.showing.terminal import quiet, stderr
from llmdo.runners.tools import ToolError
from llmdo.settings.environment import MissingSettings
from llmdo.storage.errors import BucketNotFound, StorageError

_STOPPING = (signal.SIGINT, signal.SIGTERM)
_LAST_THREADS = 60.0  # seconds that the process may take to go when its work is done

_spawn = multiprocessing.get_context("spawn")  # a fork would share gRPC's threads and locks


@dataclass(frozen=True, slots=True)
class Ended:
    """How it ended; ``summary`` is Summary.as_json, or only the problem."""

    exit_code: int
    summary: dict[str, Any] = field(default_factory=dict)


class RunApart:
    """A run that goes on in another process: not hit by this one's Ctrl-C, and gone at once when this one dies.

    Nothing is lost then: whoever runs next goes on from the output.
    """

    def __init__(self, options: JsonlOptions, *, progress: bool) -> None:
        self._receiver, sender = _spawn.Pipe(duplex=False)
        self._process = _spawn.Process(target=_work, args=(options, progress, sender), name="llmdo-run")
        with _held_back():
            self._process.start()
        sender.close()
        self._told = False

    def stop(self) -> None:
        """Drains it, as SIGTERM does with any run."""
        self._told = True
        self._process.terminate()

    def result(self, seconds: float) -> Ended | None:
        """Waits so long for its end, or gives None."""
        if not self._receiver.poll(seconds):
            return None
        try:
            ended: Ended = self._receiver.recv()
        except EOFError:
            self._process.join()
            if self._told and self._process.exitcode == -signal.SIGTERM:
                return Ended(EXIT_FAILED, {"problem": "stopped by SIGTERM before it had begun"})
            return _without_summary(self._process.exitcode or EXIT_FAILED)
        self._process.join(_LAST_THREADS)
        if self._process.is_alive():
            self._process.kill()
        return ended


def _without_summary(exit_code: int) -> Ended:
    if exit_code < 0:
        how = f"was killed by {signal.Signals(-exit_code).name}"
        return Ended(128 - exit_code, {"problem": f"the run {how}; the next one goes on from there"})
    return Ended(
        exit_code, {"problem": f"the run ended with exit code {exit_code} and left no summary; its log says why"}
    )


@contextmanager
def _held_back() -> Iterator[None]:
    """What is started here gets no signal before it is ready to."""
    resource_tracker.ensure_running()  # begun by the first start, it would let signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(options: JsonlOptions, progress: bool, sender: Connection) -> None:
    """What the other process does."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C that came while it started is the other one's to handle
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
    threading.Thread(target=_leave_when_alone, name="llmdo-parent", daemon=True).start()
    quieten(log_level())
    ended = _run(options, progress)
    sender.send(ended)
    sender.close()
    sys.exit(ended.exit_code)


def _leave_when_alone() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        leave(EXIT_FAILED)


def _run(options: JsonlOptions, progress: bool) -> Ended:
    try:
        summary = run(options, Watch(stderr) if progress else quiet)
    except (UsageError, MissingSettings) as error:
        return Ended(EXIT_USAGE, {"problem": "; ".join(error.problems)})
    except BucketNotFound as error:
        return Ended(EXIT_USAGE, {"problem": str(error)})
    except (StorageError, ToolError, ModelError) as error:
        return Ended(EXIT_FAILED, {"problem": str(error)})
    return Ended(summary.exit_code, summary.as_json())
