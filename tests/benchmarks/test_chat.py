import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import chat
from benchmarks.chats.times import percentiles
from tests.benchmarks.reporting.printed import goals, measured

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]


def test_the_middle_is_the_calls_time_in_the_second_and_third_quarter() -> None:
    scale = chat.Scale(latency_s=2.0, conversations=4)
    spans = [(0.0, 2.0), (2.0, 4.0), (3.0, 5.0), (6.0, 8.0)]  # from 2 to 6 there is 2 + 2 of 16 seconds
    assert chat.in_the_middle(spans, scale) == {"seconds": 8.0, "calls_per_s": 0.5, "of_limit": 0.25}


def test_one_in_a_hundred_is_beyond_the_99th_percentile() -> None:
    seconds = [n / 100 for n in range(200, 0, -1)]
    assert percentiles(seconds) == {"p50_s": 1.005, "p99_s": 1.98, "max_s": 2.0}
    assert percentiles([0.5]) == {"p50_s": 0.5, "p99_s": 0.5, "max_s": 0.5}


@pytest.mark.prism
def test_the_command_prints_the_figures_of_both_parts() -> None:
    binary = os.environ.get("LLMDO_PRISM") or str(ROOT / ".cache" / "prism" / "prism")
    command = [sys.executable, "-m", "benchmarks.chat", "--quick"]
    env = {**os.environ, "LLMDO_PRISM": binary}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=560, check=True, env=env, cwd=ROOT)
    delay, full = measured(ended.stdout)
    assert goals(ended.stdout).keys() == chat.GOALS.keys()
    quick = chat.QUICK
    assert (delay["part"], full["part"]) == ("delay", "full")
    assert 0.3 < delay["messages"] / (quick.per_s * quick.seconds) < 3.0
    assert 0 < delay["p50_s"] <= delay["p99_s"] <= delay["max_s"]
    assert delay["stages"].keys() == {"logged", "called", "call", "pushed"}
    assert all(seconds > 0 for seconds in delay["stages"].values())
    # The medians of parts do not add up to the whole's median, but nearly.
    assert sum(delay["stages"].values()) == pytest.approx(delay["p50_s"], rel=0.6)
    assert full["calls"] == quick.conversations * quick.each
    assert 0 < full["of_limit"] <= 1.001
    assert 0 < full["from_the_start"] <= 1.001
    assert full["calls_per_s"] == pytest.approx(full["of_limit"] * quick.conversations / quick.latency_s, rel=0.05)
    assert full["cpu_ms_per_call"] > 0
