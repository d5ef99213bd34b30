"""The engine as ``--concurrency N`` sets it up, by default: it begins slowly, and learns what the service takes."""

from __future__ import annotations

from functools import partial

from benchmarks.measuring import run
from benchmarks.ways.engine import call_all

if __name__ == "__main__":
    run(partial(call_all, fixed=False))
