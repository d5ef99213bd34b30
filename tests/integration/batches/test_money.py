"""What batches cost, and what a budget and a sample make of it, against the local OpenAI."""

from __future__ import annotations

import io
import json
from contextlib import nullcontext

import pytest
from rich.console import Console

from llmdo.pipelines.options import check_options
from llmdo.runners.exit_codes import EXIT_ANSWERED, EXIT_HANDED_OVER
from llmdo.runners.sampling.sampling import answer_sample_of, draw_sample
from llmdo.runners.sampling.telling import sample_json, show_sample
from llmdo.runners.showing.budget import budget_now
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import locate_folder
from llmdo.storage.runs.budgets import BudgetBook
from tests.integration.batches.commands import wait_until
from tests.integration.batches.user import MODEL, prompts

# In dollars for a million tokens.
PRICES = {
    "openai/gpt-4o-mini": {"input": 1.0, "output": 10.0, "lanes": {"batch": {"input": 0.5, "output": 5.0}, "2h": 0.7}},
}


def budget_record(user):
    return BudgetBook(open_store(str(user.folder)), "out/").read()


def test_a_budget_has_room_again_for_what_a_batch_did_not_use_and_counts_its_price(user):
    asked = prompts(30)
    summary = user.run(asked, budget="1 USD/day", price_file=PRICES)
    assert summary.exit_code == EXIT_ANSWERED
    record = budget_record(user)
    assert not record.leases
    assert record.spent["day"].usd == pytest.approx(summary.spent.cost_usd)
    ways = summary.receipt.ways
    assert set(ways) == {"batch"}
    assert (ways["batch"].calls, ways["batch"].usd) == (30, pytest.approx(summary.spent.cost_usd))
    assert ways["batch"].usd == pytest.approx(ways["batch"].list_usd / 2)
    user.check(asked)


@pytest.mark.parametrize("how", [{"mode": "batch"}, {"mode": "sync", "lane": "2h"}])
def test_what_is_left_is_reserved_in_the_budget_until_a_later_run_knows_what_it_cost(user, how):
    user.server.fault("openai", batch="hold", state="in_progress", share=0.0)
    asked = prompts(30)
    left = user.run(asked, **how, budget="1 USD/day", price_file=PRICES, detach=True)
    assert left.exit_code == EXIT_HANDED_OVER
    assert left.spent.lost_calls == 30
    kept = budget_record(user)
    ((batch, reserved),) = kept.reserved.items()
    assert (reserved.lines, reserved.usd) == (30, pytest.approx(left.spent.lost_cost_usd))
    assert batch == how.get("lane", batch)
    assert (kept.leases, kept.spent["day"].usd) == ({}, 0.0)
    now = budget_now(locate_folder(str(user.folder / "out")))
    assert now.left == pytest.approx(1.0 - reserved.usd)
    assert f"${reserved.usd:.6g} reserved by batches, " in str(now)
    assert now.as_json()["reserved_usd"] == reserved.usd
    user.server.clear_faults()
    fetched = user.run(asked, budget="1 USD/day", price_file=PRICES, mode="sync")
    assert fetched.exit_code == EXIT_ANSWERED
    assert 0 < fetched.spent.cost_usd < left.spent.lost_cost_usd
    then = budget_record(user)
    assert (then.leases, then.reserved) == ({}, {})
    assert then.spent["day"].usd == pytest.approx(fetched.spent.cost_usd)
    user.check(asked)


def test_what_is_reserved_leaves_less_for_other_runs_and_is_named_when_that_is_too_little(user):
    user.server.fault("openai", batch="hold", state="in_progress", share=0.0)
    asked = prompts(30)
    user.run(asked, budget="0.62 USD/day", price_file=PRICES, detach=True)
    reserved = sum(one.usd for one in budget_record(user).reserved.values())
    more = [*asked, *(f"another {number}" for number in range(30))]
    refused = user.run(more, budget="0.62 USD/day", price_file=PRICES, mode="sync", detach=True)
    assert f"(${reserved:.6g} of it reserved by batches that are out)" in refused.problem
    record = budget_record(user)
    assert record.spent["day"].usd + sum(one.usd for one in record.reserved.values()) <= 0.62


def test_a_batch_that_no_file_waits_for_frees_what_was_reserved_for_it(user):
    user.server.fault("openai", batch="hold", state="in_progress", share=0.0)
    user.run(prompts(30), budget="1 USD/day", price_file=PRICES, detach=True)
    assert budget_record(user).reserved
    user.server.clear_faults()
    wait_until(lambda: user.server.stats()["paid"]["calls"] == 30)
    done = user.run(["other"], budget="1 USD/day", price_file=PRICES, mode="sync")
    then = budget_record(user)
    assert then.reserved == {}
    assert then.spent["day"].usd == pytest.approx(done.spent.cost_usd)
    assert done.receipt.ways["late"].calls == 30


@pytest.mark.parametrize(
    ("how", "factor", "lane"),
    [
        ({"mode": "batch"}, 0.5, "batch"),
        ({"ready_by": "8h"}, 0.5, "batch"),
        ({"lane": "2h"}, 0.7, "2h"),
        ({}, 1.0, None),
    ],
)
def test_a_sample_says_what_the_rest_costs_in_the_lane_that_it_will_be_answered_in(user, how, factor, lane):
    rows = [json.dumps({"id": number, "prompt": f"line {number:02}"}) for number in range(30)]
    (user.folder / "in.jsonl").write_text("".join(f"{row}\n" for row in rows))
    given = {"input": [str(user.folder / "in.jsonl")], "output": str(user.folder / "out"), "model": MODEL}
    options = check_options(**given, price_file=PRICES, runner="direct", **how)
    drawn = draw_sample(options, 10)
    sample = answer_sample_of(options, drawn, lambda state: nullcontext(), options.new_budget())
    assert sample.summary.receipt is None  # it was answered by calls
    each = sample.spent.cost_usd / 10
    assert each > 0
    assert sample.to_pay_usd.estimate == pytest.approx(20 * each * factor, rel=0.1)
    assert sample.cost_usd.estimate == pytest.approx(10 * each + 20 * each * factor, rel=0.1)
    told = sample_json(sample)
    assert (told["lane"], told["seconds"] is None) == (lane, bool(how))
    console = Console(file=io.StringIO(), width=200)
    console.print(show_sample(sample))
    text, left = console.file.getvalue(), {"batch": " by batches", "2h": " within 2h"}.get(lane)
    assert ("with the 20 lines" in text) == bool(left)
    assert f"with the 20 lines that are left{left or ''}" in text or not left
    assert (f"up to {lane} for the 20 lines" in text) == (lane == "2h")


@pytest.mark.slow
def test_lines_that_a_budget_has_no_room_for_beside_a_batch_are_called_once_it_is_back_and_it_is_never_passed(user):
    asked = prompts(30)
    summary = user.run(asked, budget="0.1 USD/day", price_file=PRICES)  # a batch may cost 0.02 a line
    assert summary.exit_code == EXIT_ANSWERED
    ways = summary.receipt.ways
    assert (set(ways), sum(way.calls for way in ways.values())) == ({"batch", "list"}, 30)
    assert 1 <= ways["batch"].calls <= 5
    assert budget_record(user).spent["day"].usd <= 0.1
    user.check(asked)
