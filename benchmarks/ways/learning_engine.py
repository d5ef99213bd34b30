"""The engine as ``--concurrency N`` sets it up, the default: it starts slowly, and learns what the service admits."""

from __future__ import annotations

from functools import partial

from benchmarks.ways.engine import call_all
from benchmarks.ways.measuring import run

if __name__ == "__main__":
    run(partial(call_all, fixed=False))
