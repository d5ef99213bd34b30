"""The benchmark runs, and what it prints can be read by a machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.reporting.printed import goals, measured

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_one_start_is_measured_up_to_its_first_call() -> None:
    command = [sys.executable, "-m", "benchmarks.start", "--quick"]
    done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=240)
    (result,) = measured(done.stdout)
    assert goals(done.stdout) == {"first call after": "≤ 1.5"}
    assert result["benchmark"] == "start"
    assert 0 < result["first_call_s"] < result["seconds"]
    assert result["all_first_calls_s"] == [result["first_call_s"]]
    assert result["cpu_s"] > result["python_s"] > 0
    assert result["beam_s"] > result["python_s"]
