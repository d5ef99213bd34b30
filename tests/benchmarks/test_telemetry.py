"""The benchmark runs, and what it prints can be read by a machine."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.reporting.printed import goals, measured

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_runs_without_and_with_telemetry_are_measured_and_what_a_call_costs():
    command = [sys.executable, "-m", "benchmarks.telemetry", "--quick"]
    done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=240)
    off, on = measured(done.stdout)
    assert (off["telemetry"], on["telemetry"]) == ("off", "on")
    assert off["exported_bytes"] == 0 < on["exported_bytes"]
    assert goals(done.stdout) == {
        "off: part of a call": "≤ 0.01",
        "on: part of a call": "≤ 0.05",
        "on: CPU of a run, against off": "≤ 1.05",
    }
