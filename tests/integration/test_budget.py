"""Limits of what a run may spend, against the local Cloudflare, whose models cost what the real ones do."""

import json

import pytest

from storage.manifests import MANIFEST_NAME, read_manifest

LINES = 300
MAX_TOKENS = 100


def lines(count=LINES):
    return b"".join(
        json.dumps({"id": i, "prompt": "word " * 40, "max_tokens": MAX_TOKENS}).encode() + b"\n" for i in range(count)
    )


@pytest.mark.parametrize("limit", [{"max_tokens_total": 6000}, {"max_cost": 0.02}])
def test_a_run_stops_before_its_limit_is_passed_and_the_next_one_goes_on(cloud, limit):
    cloud.upload("a.jsonl", lines())
    summary = cloud.run(**limit, concurrency=64)
    assert summary.exit_code == 1
    assert "could be passed by the next call: raise it" in summary.problem
    spent = summary.spent
    assert 0 < spent.calls < LINES
    assert spent.calls == summary.counts.answered  # nothing that was paid for is lost
    if "max_cost" in limit:
        # What is left is not enough for one more call at its longest.
        assert 0.02 - (150 * 0.29 + MAX_TOKENS * 2.25) / 1e6 < spent.cost_usd <= 0.02
    else:
        assert 6000 - 150 - MAX_TOKENS < spent.input_tokens + spent.output_tokens <= 6000
    again = cloud.run()
    assert (again.exit_code, again.counts.answered) == (0, LINES - spent.calls)
    assert cloud.stats()["paid"]["calls"] == LINES


def test_a_limit_that_is_enough_changes_nothing(cloud):
    cloud.upload("a.jsonl", lines(50))
    summary = cloud.run(max_tokens_total=1_000_000, max_cost=5.0)
    assert (summary.exit_code, summary.spent.calls, summary.spent.unpriced) == (0, 50, 0)
    (settled,) = summary.settled
    assert settled.cost.usd == pytest.approx(summary.spent.cost_usd)
    keys = cloud.keys()
    (folder,) = [key.removesuffix(MANIFEST_NAME) for key in keys if key.endswith(MANIFEST_NAME)]
    manifest = read_manifest(cloud.store, folder)
    assert (manifest.cost_usd, manifest.unpriced) == (settled.cost.usd, 0)


def test_answers_from_the_ledger_are_not_spent_again(cloud, tmp_path):
    cloud.upload("a.jsonl", lines(20))
    ledger = f"sqlite:///{tmp_path}/ledger.sqlite"
    first = cloud.run(input="r2://llmdo/input/", output="r2://llmdo/one/", ledger=ledger)
    second = cloud.run(input="r2://llmdo/input/", output="r2://llmdo/two/", ledger=ledger, max_tokens_total=1)
    assert (first.spent.calls, second.spent.calls, second.exit_code) == (20, 0, 0)
    assert first.settled[0].cost == second.settled[0].cost
