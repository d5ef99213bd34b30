from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import flink
from tests.benchmarks.reporting.printed import goals, measured

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_the_rate_is_that_of_the_middle_of_the_calls() -> None:
    slow_start = [(0.0, 1.0), *((100.0 + i / 10, 101.0 + i / 10) for i in range(98)), (500.0, 501.0)]
    assert flink.rate(slow_start) == pytest.approx(10.0)


@pytest.mark.flink
@pytest.mark.timeout(900)
def test_the_command_prints_the_figures_of_every_part() -> None:
    command = [sys.executable, "-m", "benchmarks.flink", "--quick"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=800, check=True, cwd=ROOT)
    limit, window, two = measured(ended.stdout)
    assert goals(ended.stdout).keys() == {"window: window in use, in the engine"}
    quick = flink.QUICK
    assert (limit["part"], limit["calls"]) == ("limit", quick.window.limit_calls)
    assert (window["part"], window["calls"]) == ("window", quick.window.lines)
    assert 0 < window["share"] <= 1.001
    assert 0 < window["in_flight"] <= 1
    assert (two["slots"], two["calls"]) == (2, 2 * quick.lines)
    assert window["first_call_s"] > 0 < two["first_call_s"]
    assert two["ratio"] == 1.0  # of the first that was measured
