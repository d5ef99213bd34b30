"""Limits of what a run may spend, against the local Cloudflare, whose models cost what the real ones do."""

import json

import pytest

from llmdo.runners.inspecting.verify import verify
from llmdo.storage.output.manifests import MANIFEST_NAME, read_manifest

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
    assert "could be exceeded by the next call: raise it" in summary.problem
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


def test_replies_that_are_lost_on_their_way_are_counted_between_what_is_sure_and_what_is_possible(cloud):
    cloud.upload("a.jsonl", lines(20))
    cloud.fault(target="ai", drop=True, after=True, count=7)
    summary = cloud.run(max_cost=5.0)
    spent = summary.spent
    assert (summary.exit_code, spent.calls, spent.lost_calls) == (0, 20, 7)
    assert cloud.stats()["paid"]["calls"] == spent.calls + spent.lost_calls
    # Equal prompts: each lost call was billed like each of the others.
    billed = spent.cost_usd * 27 / 20
    assert spent.cost_usd < billed <= spent.cost_usd + spent.lost_cost_usd
    assert spent.lost_output_tokens == 7 * MAX_TOKENS
    assert summary.settled[0].cost.usd == pytest.approx(spent.cost_usd)  # of the answers that are there


def test_a_limit_holds_also_for_replies_that_are_lost(cloud):
    cloud.upload("a.jsonl", lines())
    cloud.fault(target="ai", drop=True, after=True, probability=0.3, seed=1)
    summary = cloud.run(max_tokens_total=6000)
    spent = summary.spent
    assert "whose replies were lost, and --max-tokens-total 6000" in summary.problem
    told, lost = spent.input_tokens + spent.output_tokens, spent.lost_input_tokens + spent.lost_output_tokens
    assert lost > 0 and told + lost <= 6000
    paid = cloud.stats()["paid"]["calls"]
    assert paid == spent.calls + spent.lost_calls
    assert told / spent.calls * paid <= 6000


def test_refusals_cost_nothing_and_count_for_nothing(cloud):
    cloud.upload("a.jsonl", lines(20))
    cloud.fault(target="ai", status=429, code=3040, count=9)
    spent = cloud.run(max_cost=5.0).spent
    assert (spent.calls, spent.lost_calls, spent.lost_cost_usd) == (20, 0, 0.0)


EQUAL = b"".join(json.dumps({"id": i, "prompt": "the same for all"}).encode() + b"\n" for i in range(30))


def totals(cloud):
    (folder,) = [key.removesuffix(MANIFEST_NAME) for key in cloud.keys("output/") if key.endswith(MANIFEST_NAME)]
    manifest = read_manifest(cloud.store, folder)
    return folder, (manifest.input_tokens, manifest.output_tokens, manifest.cost_usd, manifest.unpriced)


def test_equal_lines_that_share_a_call_count_it_once_also_when_the_run_begins_again(cloud, tmp_path):
    """As after a kill before any shard was written, and after one in the middle: the ledger knows who paid."""
    cloud.upload("a.jsonl", EQUAL)
    options = {"reuse": "same-request", "ledger": f"sqlite:///{tmp_path}/ledger.sqlite", "batch_size": 10}
    summary = cloud.run(**options)
    spent = summary.spent
    assert cloud.stats()["paid"]["calls"] == spent.calls == 1
    folder, counted = totals(cloud)
    assert counted == (spent.input_tokens, spent.output_tokens, pytest.approx(spent.cost_usd), 0)
    assert (summary.counts.input_tokens, summary.counts.answered) == (spent.input_tokens, 30)
    rows = cloud.rows("a.jsonl")
    assert [row.get("shared", False) for row in rows].count(False) == 1
    shards = [key for key in cloud.keys(folder) if not key.endswith(MANIFEST_NAME)]
    assert len(shards) == 3
    for gone in (shards, shards[1:], shards[:1]):
        for key in (*gone, folder + MANIFEST_NAME):
            cloud.store.delete(key)
        again = cloud.run(input="r2://llmdo/input/", **options)
        assert (again.exit_code, again.spent.calls) == (0, 0)
        assert totals(cloud) == (folder, counted)
        shards = [key for key in cloud.keys(folder) if not key.endswith(MANIFEST_NAME)]
    cloud.check()
    assert verify("r2://llmdo/output/").input_tokens == spent.input_tokens


def test_equal_lines_count_once_in_a_local_output_whose_shards_have_no_metadata(cloud, tmp_path):
    source, output = tmp_path / "in" / "a.jsonl", tmp_path / "out"
    source.parent.mkdir()
    source.write_bytes(EQUAL)
    options = {"files": (str(source),), "queue": None, "output": str(output), "reuse": "same-request", "batch_size": 10}
    first = cloud.run(**options)
    (manifest,) = output.rglob(MANIFEST_NAME)
    before = json.loads(manifest.read_bytes())
    assert before["input_tokens"] == first.spent.input_tokens
    manifest.unlink()  # a later run reads the shards' rows
    cloud.run(**options)
    after = json.loads(manifest.read_bytes())
    assert {name: after[name] for name in ("input_tokens", "output_tokens", "cost_usd", "unpriced")} == {
        name: before[name] for name in ("input_tokens", "output_tokens", "cost_usd", "unpriced")
    }
    checked = verify(str(output), [str(source)])
    assert (checked.ok, checked.input_tokens) == (True, first.spent.input_tokens)
