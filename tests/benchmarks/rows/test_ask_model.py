"""The benchmark runs, and what it prints can be read by a machine."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.rows.ask_model import FIXED, GOALS, RANDOM, gathered
from tests.benchmarks.reporting.printed import measured

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_the_engine_and_askmodel_are_measured_in_turns():
    command = [sys.executable, "-m", "benchmarks.rows.ask_model", "--quick"]
    done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=240)
    engine, step = measured(done.stdout)
    assert (engine["way"], step["way"]) == ("engine", "AskModel")
    assert engine["calls"] == step["calls"] == 80
    assert 0 < engine["share"] < 1 and 0 < step["share"] < 1


def test_rounds_are_compared_with_one_another_and_the_median_counts():
    shares = {"engine": (0.9, 0.6, 0.8), "AskModel": (0.9, 0.54, 0.72)}
    rows = [
        {"cell": cell.name, "way": way, "share": share, "cpu_ms_per_call": 1.0 + (way == "AskModel")}
        for cell in (FIXED, RANDOM)
        for way, of_rounds in shares.items()
        for share in of_rounds
    ]
    found = {figure.name: figure.value for figure in gathered(rows)}
    assert {name: found[name] for name in GOALS} == dict.fromkeys(GOALS, 0.9)
    assert found[f"{FIXED.name}: AskModel, CPU a call"] == 2.0
