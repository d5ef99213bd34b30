"""A run in a process of its own, so that what it leaks or breaks ends with it: this program's own command line.

All that it reports is its exit code and one JSON object on stdout.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from tempfile import TemporaryFile
from typing import Any

from llmdo.runners.exit_codes import EXIT_FAILED
from llmdo.runners.servers import has_ended, own_modules, start_tied, stop_tied

_LAST_THREADS = 60.0  # seconds that the process may take to exit after its summary


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How a run ended; ``summary`` is Summary.as_json, or only the problem."""

    exit_code: int
    summary: dict[str, Any] = field(default_factory=dict)


class RunProcess:
    """A run that Ctrl-C in this terminal does not reach, and that dies with this process, however this one ends.

    Nothing is lost then: the next run continues from the output.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        """Starts it. Raises OSError.

        Args:
            arguments: of the command line: ``run … --json``.
        """
        self._out = TemporaryFile()  # noqa: SIM115  read when the process has ended
        self._process = start_tied([sys.executable, "-P", "-m", "llmdo", *arguments], self._out, None, own_modules())
        self._stopped = False
        self._summary_at: float | None = None

    def stop(self) -> None:
        """Drains it, as SIGTERM does with any run."""
        self._stopped = True
        self._process.terminate()

    def result(self, seconds: float) -> RunEnd | None:
        """How it ended; None if it has not within ``seconds``."""
        if not has_ended(self._process, seconds):
            self._kill_what_hangs()
            return None
        stop_tied(self._process)
        self._out.seek(0)
        with self._out:
            return _end(self._process.returncode, self._out.read(), self._stopped)

    def _kill_what_hangs(self) -> None:
        if self._summary_at is None and os.fstat(self._out.fileno()).st_size:
            self._summary_at = time.monotonic()
        if self._summary_at is not None and time.monotonic() > self._summary_at + _LAST_THREADS:
            self._process.kill()


def _end(code: int, out: bytes, stopped: bool) -> RunEnd:
    try:
        summary = json.loads(out)
        return RunEnd(summary["exit_code"], summary)
    except (ValueError, TypeError, KeyError):  # it was killed, or crashed
        pass
    if stopped and code == -signal.SIGTERM:
        return RunEnd(EXIT_FAILED, {"problem": "stopped by SIGTERM before it started"})
    if code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
        return RunEnd(128 - code, {"problem": f"the run {how}; the next one resumes from there"})
    problem = f"the run ended with exit code {code} and left no summary; its log says why"
    return RunEnd(code or EXIT_FAILED, {"problem": problem})
