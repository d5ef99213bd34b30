"""The benchmark runs, and what it prints can be read by a machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.reporting.printed import measured

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_a_small_run_prints_the_figures_of_both_sources() -> None:
    command = [sys.executable, "-m", "benchmarks.small_files", "--quick"]
    done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    found = measured(done.stdout)
    assert [(run["source"], run["files"]) for run in found] == [("queue", 20), ("listing", 20)]
    assert all(run["files_per_s"] > 0 and run["cpu_ms"] > 0 for run in found)
    assert all(run["operations"]["PutObject"] >= 3 for run in found)
