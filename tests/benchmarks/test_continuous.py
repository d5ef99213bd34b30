import asyncio
import os
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest

from benchmarks import continuous
from benchmarks.servers.fake_endpoint import fake_endpoint, latencies, seen, take_spans
from tests.benchmarks.reporting.printed import goals, measured

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]


def test_the_share_is_the_calls_time_over_the_windows() -> None:
    spans = [(10.0, 12.0), (10.0, 11.0), (11.0, 14.0)]
    assert continuous.share(spans, window=2, until=11.0) == 1.0
    assert continuous.share(spans, window=2, until=14.0) == 0.75
    assert continuous.window_used(spans, window=2) == {"calls": 3, "seconds": 4.0, "share": 1.0, "share_to_end": 0.75}


def test_the_ninth_decile_lies_between_the_median_and_the_maximum() -> None:
    assert continuous.seconds_of([5, 1, 2, 3, 4, 6, 7, 8, 9, 100, 10]) == {"p50_s": 6, "p90_s": 10, "max_s": 100}
    assert continuous.seconds_of([0.5]) == {"p50_s": 0.5, "p90_s": 0.5, "max_s": 0.5}


def test_the_endpoint_tells_once_how_long_each_call_took_and_draws_the_same_latencies_again() -> None:
    def late() -> float:
        """By how much all calls together took longer than was drawn."""
        with fake_endpoint(0.02, continuous.SIGMA) as url:
            began = time.monotonic()
            asyncio.run(continuous.bare_loop(url, 1, 20))
            spans = take_spans(url)
            assert take_spans(url) == []
            told = seen(url).late_s
        assert all(began < begin < end for begin, end in spans)
        taken = [end - begin for begin, end in sorted(spans)]
        assert all(took >= due - 0.001 for took, due in zip(taken, drawn, strict=True))
        # What the endpoint says of itself: a busy machine makes any call late.
        assert told == pytest.approx(sum(taken) - sum(drawn), abs=1e-6)
        return told

    drawn = list(islice(latencies(0.02, continuous.SIGMA), 20))
    assert max(drawn) > 2 * min(drawn)
    assert min(late(), late()) >= -0.02


@pytest.mark.prism
def test_the_command_prints_the_figures_of_every_part() -> None:
    binary = os.environ.get("LLMDO_PRISM") or str(ROOT / ".cache" / "prism" / "prism")
    command = [sys.executable, "-m", "benchmarks.continuous", "--quick"]
    env = {**os.environ, "LLMDO_PRISM": binary}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=560, check=True, env=env, cwd=ROOT)
    parts = {figures["part"]: figures for figures in measured(ended.stdout)}
    assert goals(ended.stdout).keys() == continuous.GOALS.keys()
    assert list(parts) == list(continuous.PARTS)
    quick = continuous.QUICK
    assert parts["limit"]["calls"] == quick.limit_calls
    assert parts["direct"]["calls"] == quick.lines
    one = parts["prism"]["one_line_files"]
    assert parts["prism"]["calls"] == quick.lines + one["files"]
    assert one["files"] >= 1
    assert parts["idle"]["files"] == quick.idle_files
    for figures in (one, parts["idle"]):
        assert 0 < figures["p50_s"] <= figures["p90_s"] <= figures["max_s"]
    for name in ("limit", "direct", "prism"):
        assert 0 < parts[name]["share"] <= 1.001
        assert 0 < parts[name]["share_to_end"] <= 1.001
    for name in ("direct", "prism"):
        assert 0 < parts[name]["in_flight"] <= 1
        assert parts[name]["of_limit"] > 0
        assert parts[name]["cpu_ms_per_call"] > 0
