"""A run leaves how it went in its output, and a report tells it, from any machine."""

from __future__ import annotations

import json

from llmdo.storage.runs.histories import histories
from tests.integration.cloud import MODEL, OUTPUT, prompts

WHERE = ["--input", "r2://llmdo/input/", "--output", OUTPUT, "--model", MODEL]


def ended(process, code=0):
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, err.decode()
    return out


def test_a_run_with_refusals_is_told_with_its_figures_and_reasons(cloud, tmp_path):
    cloud.upload("a.jsonl", prompts(300) + b"{broken\n")
    cloud.upload("b.jsonl", prompts(50, "other"))
    # Then slow enough to be seen more than once while it runs.
    cloud.fault(target="ai", status=429, code=3021, retry_after=1, count=20)
    cloud.fault(target="ai", latency_s=0.15)
    summary = json.loads(ended(cloud.command("run", *WHERE, "--concurrency", "16", "--json"), 3))
    (found,) = histories(cloud.store, "output/", 10)
    assert (found.run_id, found.command, found.models) == (summary["run_id"], "run", [f"workers-ai/{MODEL}"])
    assert (found.answered, found.failed, found.problem) == (350, 1, None)
    assert found.spent == summary["spent"] and found.spent["calls"] == 350
    (limits,) = found.limits
    assert limits.calls == summary["limits"][0]["calls"] == 370
    assert [one.reason for one in limits.changes] == [one["reason"] for one in summary["limits"][0]["changes"]]
    moments = found.moments
    assert len(moments.at) >= 3 and moments.lines[-1] == 351 and moments.calls[-1] == limits.calls
    assert max(moments.in_flight) > 0 and max(moments.window) >= max(moments.in_flight)
    cloud.no_faults()
    assert cloud.run(input="r2://llmdo/input/").exit_code == 3  # nothing is left to do
    assert len(histories(cloud.store, "output/", 10)) == 1
    assert cloud.alive() == []

    page = tmp_path / "report.html"
    made = json.loads(ended(cloud.command("report", OUTPUT, "-o", str(page), "--json")))
    assert (made["files"], made["lines"], made["lines_read"]) == (2, 351, 351)
    text = page.read_text(encoding="utf-8")
    slowed = next(one.reason for one in limits.changes if one.pause_s > 0)
    for told in ("r2://llmdo/input/a.jsonl", MODEL, slowed, "BadLine", "prompt 7", "Figures over time"):
        assert told in text, told
    assert cloud.env["CLOUDFLARE_API_TOKEN"] not in text


def test_a_run_that_is_stopped_says_why(cloud):
    cloud.upload("a.jsonl", prompts(30))
    assert ended(cloud.command("run", *WHERE, "--max-tokens-total", "300", "--concurrency", "1", "--json"), 1)
    (found,) = histories(cloud.store, "output/", 10)
    assert "--max-tokens-total 300" in found.problem
