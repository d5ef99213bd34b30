"""The benchmark runs, and what it prints can be read by a machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.reporting.printed import measured

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_a_small_run_prints_both_readers_and_their_ratio() -> None:
    command = [sys.executable, "-m", "benchmarks.read_lines", "--lines", "2000", "--runs", "1"]
    done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    *runs, summary = measured(done.stdout)
    assert [(run["reader"], run["lines"]) for run in runs] == [("ReadLines", 2000), ("ReadAllFromText", 2000)]
    assert all(run["peak_rss_mb"] > 20 and run["seconds"] > 0 for run in runs)
    ours, theirs = runs
    assert summary["ratio"] == round(ours["seconds"] / theirs["seconds"], 3)
    assert summary["bytes"] > 2000 * 100
