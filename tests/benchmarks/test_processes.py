"""The benchmark runs, counts each process by itself, and what it prints can be read by a machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.processes import Process, Ran, watch
from tests.benchmarks.reporting.printed import measured

ROOT = Path(__file__).parents[2]
# Uses CPU time, and starts another one that uses more.
FAMILY = """
import subprocess, sys, time
end = time.process_time() + float(sys.argv[1])
if sys.argv[2:]:
    subprocess.run(["/bin/sh", "-c", f"{sys.executable} -c '{sys.argv[3]}' {sys.argv[2]}"])
while time.process_time() < end:
    pass
"""


def test_each_process_of_a_family_is_counted_by_itself() -> None:
    child = "import sys, time\nwhile time.process_time() < float(sys.argv[1]): pass"
    with subprocess.Popen([sys.executable, "-c", FAMILY, "0.3", "0.6", child]) as started:
        used = watch(started)
    assert started.returncode == 0
    parent = used.pop(started.pid)
    worker = max(used.values(), key=lambda one: one.cpu_s)
    assert 0.2 <= parent.cpu_s <= 0.5
    assert 0.5 <= worker.cpu_s <= 0.8
    assert Ran(parent, tuple(used.values()), 0.0, 1.0).busiest is worker
    assert parent.memory > 1_000_000


def test_a_run_without_workers_is_bounded_by_its_own_process() -> None:
    parent = Process(2.0, 100)
    assert Ran(parent, (), 0.0, 1.0).busiest is parent


@pytest.mark.slow
def test_a_small_run_prints_what_each_process_needs() -> None:
    command = [sys.executable, "-m", "benchmarks.processes", "--quick"]
    done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    run, ledger = measured(done.stdout)
    assert (run["processes"], run["workers"], run["lines"]) == (2, 2, 2_000)
    assert run["one_us"] > 50 and run["worker_us"] > 20 and 0.5 < run["times_one"] < 4
    assert ledger["ledger_per_s"]["1"] > 100
