"""The benchmark of chats in LiveStore's event logs, against a real sync backend."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import chat
from benchmarks.chats import livestore
from tests.benchmarks.reporting.printed import goals, measured
from tests.web.world import build

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "benchmarks.chat", "--livestore", *arguments]
    binary = os.environ.get("LLMDO_PRISM") or str(ROOT / ".cache" / "prism" / "prism")
    env = {**os.environ, "LLMDO_PRISM": binary, **environment}
    return subprocess.run(words, capture_output=True, text=True, timeout=240, check=False, env=env, cwd=ROOT)


def test_the_middle_half_of_answers_is_what_a_rate_is_made_of() -> None:
    slow, fast = [0.0, 10.0], [20.0 + n / 100 for n in range(100)]
    assert livestore.middle_rate([*slow, *fast]) == pytest.approx(100)


def test_each_part_has_a_goal_and_the_command_names_all_parts() -> None:
    assert {name.partition(":")[0] for name in livestore.GOALS} == set(livestore.PARTS)
    refused = command("--only", "full")
    assert refused.returncode == 2
    assert f"choose from {', '.join(livestore.PARTS)}" in refused.stderr
    assert "full" in chat.PARTS


def test_where_there_is_no_node_the_command_says_so_and_ends(tmp_path: Path) -> None:
    ended = command("--quick", "--only", "resume", PATH=str(tmp_path))
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "install Node.js" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.prism
def test_the_command_prints_the_figures_of_all_parts() -> None:
    build()
    ended = command("--quick")
    assert ended.returncode == 0, ended.stderr[-3000:]
    rows = {row["part"]: row for row in measured(ended.stdout)}
    assert list(rows) == list(livestore.PARTS)
    assert goals(ended.stdout).keys() == livestore.GOALS.keys()
    quick = livestore.QUICK
    delay, rate, resume, memory = rows.values()
    assert 0.3 < delay["messages"] / (quick.per_s * quick.seconds) < 3.0
    assert 0 < delay["p50_s"] <= delay["p99_s"] <= delay["max_s"]
    assert delay["stages"].keys() == {"logged", "called", "call", "pushed"}
    assert all(seconds > 0 for seconds in delay["stages"].values())
    assert rate["messages"] == quick.conversations * quick.each
    assert rate["per_s"] == pytest.approx(rate["messages"] / rate["seconds"], rel=0.1)
    assert rate["in_the_middle"] > 0
    assert rate["cpu_ms_per_answer"] > 0
    assert resume["events"] == quick.events
    assert 0 < resume["p50_s"] <= resume["max_s"]
    assert resume["first_s"] > 0
    assert memory["stores"] == quick.stores
    assert 0 < memory["before_mb"] <= memory["mb"] < memory["chat_one_store_mb"]
    assert 0 < memory["chat_one_store_threads"] <= memory["chat_threads"] < 200
