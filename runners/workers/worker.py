"""The Python worker that ``llmdo-worker`` becomes: Beam's own, whose calls in flight end before it exits.

A runner that gives up or restarts a job hangs up on its workers or sends them SIGTERM, and SIGKILL some time
later: a pool after 10 s.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from types import FrameType

from apache_beam.runners.worker import sdk_worker_main

from llmdo.backends.engine.registry import LAST_CALLS_S, close_engines, drain_engines
from llmdo.backends.telemetry.switch import flush_telemetry
from llmdo.transforms.answers.leases import return_leases

_log = logging.getLogger(__name__)


def main() -> None:
    """Works until the runner hangs up, or by SIGTERM; a second one ends it at once."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        sdk_worker_main.main(sys.argv)
    finally:
        _end_calls()  # not at exit, when a ledger's threads can no longer be used
        close_engines()
        return_leases()
        flush_telemetry()


def _terminated(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    # A thread of its own: this one may hold any lock at this moment.
    threading.Thread(target=_leave, args=(128 + number,), name="llmdo-leave", daemon=True).start()


def _leave(code: int) -> None:
    """Whoever waits for a call keeps waiting: a bundle must not succeed without its lines."""
    _end_calls()
    return_leases()
    flush_telemetry()
    os._exit(code)


def _end_calls() -> None:
    drain_engines(
        LAST_CALLS_S, lambda calls: _log.warning("waiting for %d calls in flight, to keep their answers", calls)
    )


if __name__ == "__main__":
    main()
