"""A pool of Python workers on loopback, for Flink on this machine or in the same pod: ``EXTERNAL`` environments.

``python -m llmdo.runners.workers.pool --service_port=50000`` does what Beam's ``worker_pool_main`` does, but that one
listens on all interfaces, and whoever reaches it can start workers that run any program. Its workers are started by
``llmdo-worker``, so that a job that fails does not cancel their calls in flight: they have 10 s to end.
"""

from __future__ import annotations

import argparse
import signal
import sys
from contextlib import suppress
from pathlib import Path

from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer, kill_process_gracefully

from llmdo.runners.portable import serve_pool


def main(argv: list[str] | None = None) -> int:
    """Serves until SIGTERM or Ctrl-C; the workers end with it. Returns 1, with the reason on stderr, if it cannot."""
    parser = argparse.ArgumentParser(
        prog="python -m llmdo.runners.workers.pool", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--service_port", type=int, required=True, help="where it listens, on 127.0.0.1")
    given = parser.parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    worker = Path(sys.executable).with_name("llmdo-worker")
    if not worker.exists():
        print(f"there is no {worker}: install llmdo into this Python", file=sys.stderr)  # noqa: T201  complaint
        return 1
    pool = BeamFnExternalWorkerPoolServicer(use_process=True, container_executable=str(worker))
    try:
        address, server = serve_pool(pool, given.service_port)
    except RuntimeError:
        print(f"port {given.service_port} is taken: give another --service_port", file=sys.stderr)  # noqa: T201  complaint
        return 1
    print(f"workers are started by {address}", flush=True)  # noqa: T201  the command's output
    with suppress(KeyboardInterrupt):
        while True:
            signal.pause()
    server.stop(0)
    for process in list(pool._worker_processes.values()):
        kill_process_gracefully(process)
    return 0


if __name__ == "__main__":
    sys.exit(main())
