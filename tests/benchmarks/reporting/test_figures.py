"""Every figure is printed with its goal."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks import __main__ as bench
from benchmarks import chat, continuous, flink, goodput, infer, limits, shared_limit, vectors
from benchmarks.reporting.figures import Figure, Goal, at_most, report
from benchmarks.ways.contestants import LLMDO_RUN, YARDSTICK
from tests.benchmarks.reporting.printed import goals

ROOT = Path(__file__).parents[3]


def test_a_figure_has_its_goal_and_whether_it_is_met_for_machines_and_for_people(capsys):
    figures = [
        Figure("calls", 0.96, ""),
        Figure("time", 1.5, "s"),
        Figure("refused", 0.031),
        Figure("memory", 152, "MB"),
    ]
    report("these", figures, {"calls": Goal(0.97), "time": at_most(1.5), "refused": at_most(0.03), "more": Goal(4000)})
    printed = capsys.readouterr()
    rows = list(map(json.loads, printed.out.splitlines()))
    assert rows == [
        {"benchmark": "these", "figure": "calls", "value": 0.96, "unit": "", "goal": "≥ 0.97", "met": False},
        {"benchmark": "these", "figure": "time", "value": 1.5, "unit": "s", "goal": "≤ 1.5", "met": True},
        {"benchmark": "these", "figure": "refused", "value": 0.031, "unit": "", "goal": "≤ 0.03", "met": False},
        {"benchmark": "these", "figure": "memory", "value": 152, "unit": "MB", "goal": None, "met": None},
        {"benchmark": "these", "figure": "more", "value": None, "unit": "", "goal": "≥ 4,000", "met": None},
    ]
    words = [line.replace("│", " ").split() for line in printed.err.splitlines()]
    assert ["calls", "0.96", "≥", "0.97", "no"] in words
    assert ["time", "1.5", "s", "≤", "1.5", "yes"] in words
    assert ["more", "not", "measured", "≥", "4,000"] in words


def test_a_quick_run_shows_goals_but_is_not_judged(capsys):
    report("these", [Figure("time", 9.0, "s")], {"time": at_most(1.5), "more": Goal(1)}, quick=True)
    printed = capsys.readouterr()
    (row,) = map(json.loads, printed.out.splitlines())
    assert (row["goal"], row["met"]) == ("≤ 1.5", None)
    assert "too short to be judged" in printed.err


@pytest.mark.parametrize("name", bench.BENCHMARKS)
def test_each_benchmark_declares_goals_and_its_help_has_an_example(name, monkeypatch, capsys):
    module = import_module(f"benchmarks.{name.partition(' ')[0]}")
    assert module.GOALS
    assert all(isinstance(goal, Goal) for goal in module.GOALS.values())
    monkeypatch.setattr(sys, "argv", ["", "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        module.main()
    shown = capsys.readouterr().out
    assert f"    python -m benchmarks.{name} [--quick]" in shown
    assert "--quick " in shown


def test_every_benchmark_is_run_by_make_bench():
    modules = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    for folder in ("outputs", "rows"):
        modules |= {f"{folder}.{path.stem}" for path in (ROOT / "benchmarks" / folder).glob("*.py")}
    assert modules - {"__main__", "figures"} == {name.partition(" ")[0] for name in bench.BENCHMARKS}


def test_the_cheapest_benchmark_prints_its_goal():
    command = [sys.executable, "-m", "benchmarks.read_lines", "--quick"]
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert goals(done.stdout) == {"time of ReadLines, by that of ReadAllFromText": "≤ 1"}
    assert "≤ 1" in done.stderr


def test_every_goal_of_the_others_has_a_figure_of_its_name():
    waits = {"p50_s": 1.0, "p90_s": 1.0, "p99_s": 1.0, "max_s": 1.0}
    share = {"share": 0.9, "in_flight": 0.9, "of_limit": 0.9, "cpu_ms_per_call": 1.0}
    found = {
        chat: chat.figures([{"part": "delay", **waits}, {"part": "full", **share}]),
        continuous: continuous.figures(
            [
                {"part": "limit", "share": 0.9},
                {"part": "direct", **share},
                {"part": "prism", **share, "one_line_files": waits},
                {"part": "idle", **waits},
            ]
        ),
        flink: flink.figures(
            [
                {"part": "limit", "share": 0.9},
                {"part": "window", **share, "first_call_s": 9.0},
                *(
                    {"part": "scale", "slots": slots, "per_s": 1.0, "ratio": 1.0, "first_call_s": 9.0}
                    for slots in flink.Scale().slots
                ),
            ]
        ),
        limits: limits.figures(
            [
                {"name": "engine", "admitted_per_s": float(rate), "warm": 1.0, "found": 1.0, "refused": 0.0}
                for rate in limits.RATES
            ],
            [{"name": chance.name, "warm": 1.0, "refused": 0.05} for chance in limits.CHANCES],
        ),
        shared_limit: shared_limit.figures(
            [{"name": shared_limit.LEARNING, "answered": 1.0, "refused": 0.0, "shares": [0.9, 1.1]}]
        ),
        infer: infer.ratios(
            [
                {
                    "way": way.name,
                    "latency": cell.latency,
                    "mean_s": cell.mean_s,
                    "concurrency": cell.concurrency,
                    "ratio": 1.0,
                    "cpu_ms_per_call": 0.5,
                }
                for cell in infer.CELLS
                for way in (YARDSTICK, LLMDO_RUN)
            ]
        ),
        vectors: vectors.figures(
            [
                {
                    "dimensions": 1024,
                    "sends": sends,
                    "options": options,
                    "lines_per_s": 1,
                    "cpu_ms_per_line": 0.1,
                    "row_bytes": 9,
                }
                for sends in ("base64", "numbers")
                for options in vectors.ROWS
            ]
        ),
    }
    assert {
        module.__name__: module.GOALS.keys() - {figure.name for figure in figures} for module, figures in found.items()
    } == {module.__name__: set() for module in found}


def test_goodput_has_a_goal_for_each_case():
    assert goodput.GOALS.keys() >= {case.name for case in goodput.cases()}


def test_figures_of_several_rounds_are_medians():
    row = {"way": "llmdo run", "latency": "fixed", "mean_s": 0.2, "concurrency": 64}
    rounds = [row | {"ratio": ratio, "cpu_ms_per_call": cpu} for ratio, cpu in ((0.9, 0.7), (0.98, 0.5), (0.97, 0.6))]
    ratio, cpu = infer.ratios([*rounds, {"way": "rival", "not_measured": "gone"}])
    assert ratio == Figure("llmdo run, fixed 0.2 s, 64 in flight: ratio", 0.97)
    assert cpu == Figure("llmdo run, fixed 0.2 s, 64 in flight: CPU a call", 0.6, "ms")
    assert infer.GOALS[ratio.name] == Goal(0.97)
    assert infer.GOALS[cpu.name] == at_most(0.6)
    assert infer.GOALS["llmdo run, fixed 1 s, 1,000 in flight: ratio"] == Goal(0.95)


def test_all_benchmarks_are_run_whatever_one_does_and_their_lines_are_gathered(monkeypatch, tmp_path, capsys):
    (tmp_path / "benchmarks").mkdir()
    printing = tmp_path / "benchmarks" / "printing.py"
    printing.write_text(
        """import json, sys
row = {"benchmark": "printing", "figure": "time", "unit": "s", "goal": "≤ 1.5"}
print(json.dumps({"benchmark": "printing", "arguments": sys.argv[1:]}))
for value in (1.4, 1.6):
    print(json.dumps(row | {"value": value, "met": value <= 1.5}, ensure_ascii=False))
"""
    )
    (tmp_path / "benchmarks" / "broken.py").write_text("raise SystemExit('no such thing')")
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(bench, "BENCHMARKS", {"broken": (), "printing": ("--rounds", "5")})
    results = tmp_path / "results" / "today.jsonl"
    assert bench.run(["broken", "printing"], results, quick=False) == 1
    printed = capsys.readouterr()
    assert results.read_text() == printed.out
    run, row, *_ = map(json.loads, printed.out.splitlines())
    assert run["cores"] >= 1
    assert row["arguments"] == ["--rounds", "5"]
    # Of what was measured twice, the last counts.
    assert "0 of 1 goals are met" in printed.err
    assert "not met: printing: time" in printed.err
    assert "broken broke" in printed.err
    assert list(bench.markdown(bench.figures_in(results)))[-1] == "| time | 1.6 s | ≤ 1.5 | no |"
    assert bench.run(["printing"], results, quick=True) == 0
