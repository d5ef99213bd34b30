"""Files answered by the local Anthropic with `llmdo run`, call by call and as batches: each line is paid for once."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest

from llmdo.pipelines.options import check_options
from llmdo.runners.running.run import run
from tests.local.anthropic.batching import client_of

MODEL = "anthropic/claude-haiku-4-5"
OWN = {
    "custom_id": "own",
    "params": {
        "max_tokens": 9,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "messages": [{"role": "user", "content": [{"type": "text", "text": "x y"}]}],
    },
}


@pytest.fixture
def anthropic_run(cloudflare, tmp_path, monkeypatch, quick):
    """Runs prompts over one output, on the direct runner; returns the summary and the texts of the answers by id."""
    monkeypatch.setenv("ANTHROPIC_BASE_URL", cloudflare.env["LOCAL_ANTHROPIC_BASE_URL"])
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-any")

    def start(lines, **options):
        source, output = tmp_path / "in.jsonl", tmp_path / "out"
        source.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        given = {"input": [str(source)], "output": str(output), "model": MODEL, "runner": "direct"} | options
        summary = run(check_options(**given), lambda state: nullcontext())
        shards = [*output.rglob("shard-*.jsonl")]
        rows = [json.loads(line) for shard in shards for line in shard.read_text().splitlines()]
        assert len({row["id"] for row in rows}) == len(rows)
        return summary, {row["id"]: row["response"]["body"]["choices"][0]["message"]["content"] for row in rows}, rows

    return start


def prompts(count):
    return [{"id": number, "prompt": f"line {number} ✓"} for number in range(count)]


def echoes(count):
    return {number: f"echo: line {number} ✓" for number in range(count)}


def paid_once(server, count):
    paid = server.stats()["paid"]["by_prompt"]
    assert (len(paid), set(paid.values()) - {1}) == (count, set())


@pytest.mark.parametrize("mode", ["sync", "batch"])
@pytest.mark.parametrize("count", [0, 1, 60])
def test_chats_and_lines_of_anthropics_own_are_answered_once(cloudflare, anthropic_run, mode, count):
    lines = [*prompts(count), *([OWN] if count else [])]
    summary, texts, rows = anthropic_run(lines, mode=mode)
    assert (summary.counts.answered, summary.counts.failed) == (len(lines), 0), summary
    assert texts == {**echoes(count), **({"own": "echo: x y"} if count else {})}
    paid_once(cloudflare, len(lines))
    assert all(row["usage"]["cost_usd"] for row in rows)
    assert cloudflare.stats()["batches"]["submitted"] == (2 if mode == "batch" and count else 0)


def test_overloads_are_waited_for(cloudflare, anthropic_run):
    cloudflare.fault("anthropic", match="#messages.create", status=529, count=3, retry_after=0)
    cloudflare.fault("anthropic", match="#messages.create", status=429, count=3, retry_after=0)
    summary, texts, _ = anthropic_run(prompts(20))
    assert texts == echoes(20), summary
    paid_once(cloudflare, 20)


def test_a_credit_that_is_used_up_stops_the_run_and_the_next_one_goes_on(cloudflare, anthropic_run):
    cloudflare.fault("anthropic", match="line 7 ✓", status=400, code="credit_balance")
    summary, _, _ = anthropic_run(prompts(20), concurrency=1)
    assert "credit" in summary.problem
    cloudflare.clear_faults()
    assert anthropic_run(prompts(20))[1] == echoes(20)
    paid_once(cloudflare, 20)


def test_whatever_becomes_of_a_batch_each_line_is_answered_and_paid_once(cloudflare, anthropic_run):
    cloudflare.fault("anthropic", batch="hold", polls=2, share=0)
    cloudflare.fault("anthropic", batch="expire", share=0.5)
    for kind in ("shuffle", "repeat", "foreign"):
        cloudflare.fault("anthropic", batch=kind)
    cloudflare.fault("anthropic", batch="row", status=529, match="line 3 ✓")
    summary, texts, _ = anthropic_run(prompts(200), mode="batch")
    assert texts == echoes(200), summary
    paid_once(cloudflare, 200)
    assert cloudflare.stats()["anthropic"]["by_status"]["200"] >= 100  # what had expired was called


def test_a_batch_whose_reply_was_lost_is_found_and_not_handed_over_again(cloudflare, anthropic_run):
    cloudflare.fault("anthropic", match="#batches.create", drop=True, after=True, count=1)
    _, texts, _ = anthropic_run(prompts(30), mode="batch")
    if not texts:  # it was still in progress when it was looked for
        texts = anthropic_run(prompts(30), mode="batch")[1]
    assert texts == echoes(30)
    paid_once(cloudflare, 30)
    assert len(client_of(cloudflare, "sk-ant-any").messages.batches.list().data) == 1
