"""What was paid by lane, beside what list price would have been."""

from __future__ import annotations

import pytest

from llmdo.backends.money.money import Budget
from llmdo.backends.money.own_prices import own_prices
from llmdo.backends.money.prices import Prices
from llmdo.backends.money.receipt import LaneTally
from llmdo.backends.money.spent import Spent
from llmdo.backends.requests import ChatRequest, Message
from llmdo.backends.responses import ChatResponse
from llmdo.backends.usage import Usage
from llmdo.runners.showing.report import show_spent
from llmdo.runners.showing.summary import Summary, receipt_json
from llmdo.storage.output.costs import UNPAID, Cost, LaneCost, total
from llmdo.storage.output.receipts import receipt_of
from llmdo.transforms.answers.paid_lanes import paid_by_lane
from llmdo.transforms.prompts.parse import Prompt
from llmdo.transforms.run_state import Counts, HandedOver

PRICES = own_prices({"p/m": {"input": 1e6, "output": 0, "lanes": {"flex": {"input": 5e5, "output": 0}}}})


def asked() -> Prompt:
    return Prompt("p", ChatRequest("m", (Message("user", "x"),)), None, None, {}, own_model=False)


def budget_after(*lanes: str) -> Budget:
    budget = Budget(prices=Prices(own=PRICES))
    budget.prices.ask("p").result()
    for lane in lanes:
        request = ChatRequest("m", (Message("user", "x"),))
        budget.before("p", request)
        budget.after("p", request, ChatResponse("y", "stop", Usage(2), "m", lane=lane))
    return budget


def test_there_is_none_where_all_was_paid_at_list_price_from_the_start() -> None:
    assert budget_after().receipt() is None
    assert budget_after("", "").receipt() is None


def test_lanes_stand_beside_list_price() -> None:
    receipt = budget_after("", "flex", "flex").receipt()
    assert receipt is not None
    assert receipt.ways == {"flex": LaneTally(2, 2.0, 4.0), "list": LaneTally(1, 2.0, 2.0)}
    assert (receipt.usd, receipt.list_usd, receipt.saved_usd, receipt.rescue_usd) == (4.0, 6.0, 2.0, 0.0)


def test_a_rescued_request_counts_so_until_it_is_answered_once() -> None:
    budget = budget_after()
    request = ChatRequest("m", (Message("user", "x"),))
    budget.rescue(request)
    for _ in range(2):
        budget.after("p", request, ChatResponse("y", "stop", Usage(2), "m"))
    receipt = budget.receipt()
    assert receipt is not None
    assert {way: one.calls for way, one in receipt.ways.items()} == {"rescued": 1, "list": 1}


def test_what_other_processes_have_called_has_no_receipt() -> None:
    budget = budget_after("flex")
    budget.add(Spent(calls=1))
    assert budget.receipt() is None


def test_people_and_machines_are_told_what_was_saved(capsys) -> None:
    from rich.console import Console

    budget = budget_after("", "flex", "flex")
    summary = Summary("r", Counts(), (), (), {}, spent=budget.spent(), receipt=budget.receipt())
    assert summary.as_json()["receipt"] == receipt_json(budget.receipt())
    assert summary.as_json()["receipt"]["saved_usd"] == 2.0
    show_spent(summary, Console(width=200))
    said = capsys.readouterr().out
    assert "By lane: 2 by flex $2.00, 1 by calls $2.00; at list price $6.00, saved $2.00 (33%)." in said
    assert "at list prices" not in said


def test_a_rescued_answer_says_so_and_is_in_its_files_receipt_as_in_the_runs() -> None:
    prices = own_prices({"p/m": {"input": 1e6, "output": 0, "lanes": {"batch": {"input": 5e5, "output": 0}}}})
    budget = Budget(prices=Prices(own=prices))
    budget.prices.ask("p").result()
    prompts = [asked() for _ in range(3)]
    answers = [ChatResponse("y", "stop", Usage(2), "m", lane=lane) for lane in ("", "batch", "")]
    budget.rescue(prompts[0].request)
    for prompt, answer in zip(prompts, answers, strict=True):
        budget.after("p", prompt.request, answer)
    assert [answer.rescued for answer in answers] == [True, False, False]
    costs = [
        Cost(usd, lanes=paid_by_lane(budget.prices, prompt, [answer], usd))
        for prompt, answer in zip(prompts, answers, strict=True)
        if (usd := budget.prices.cost("p", "m", answer)) is not None
    ]
    of_file, of_run = receipt_of(total(costs), 3), receipt_json(budget.receipt())
    assert of_file is not None
    assert of_run is not None
    lanes = {lane: one.model_dump() for lane, one in of_file.lanes.items()}
    assert {lane: {**one, "calls": one["lines"]} for lane, one in lanes.items()} == {
        lane: {**one, "lines": one["calls"]} for lane, one in of_run["lanes"].items()
    }
    assert of_file.model_dump(exclude={"lanes"}) == {name: usd for name, usd in of_run.items() if name != "lanes"}
    assert (of_file.rescue_usd, of_file.saved_usd) == (1.0, 1.0)


def test_what_no_call_was_made_for_is_free_and_an_unknown_cost_in_no_lane() -> None:
    prompt = asked()
    cached = ChatResponse("y", "stop", Usage(2), "m", lane="batch", details={"cache_status": "HIT"})
    flex = ChatResponse("y", "stop", Usage(2), "m", lane="flex")
    prices = Prices(own=PRICES)
    assert (
        paid_by_lane(prices, prompt, [], 0.0) == paid_by_lane(prices, prompt, [cached], 0.0) == (LaneCost(UNPAID, 1),)
    )
    assert paid_by_lane(prices, prompt, [flex], None) == ()
    assert paid_by_lane(prices, prompt, [flex], 2.0 - 1.0) == (LaneCost("flex", 1, 1.0, 2.0),)


@pytest.mark.parametrize(
    ("lines", "why"), [(3, "for 2 lines left in batches."), (0, "for 2 calls whose replies were lost.")]
)
def test_lines_that_are_left_in_batches_are_not_called_lost(capsys, lines, why) -> None:
    from rich.console import Console

    summary = Summary("r", Counts(), (), (), {}, spent=Spent(lost_calls=2), handed_over=HandedOver(lines, 0.0, 0))
    show_spent(summary, Console(width=200))
    assert why in capsys.readouterr().out


def test_a_late_answer_of_a_lane_is_paid_and_would_not_be_at_list_price() -> None:
    budget = budget_after("")
    request = ChatRequest("m", (Message("user", "x"),))
    budget.after("p", request, ChatResponse("y", "stop", Usage(2), "m", lane="flex"), late=True)
    receipt = budget.receipt()
    assert receipt is not None
    assert receipt.ways == {"late": LaneTally(1, 1.0, 2.0), "list": LaneTally(1, 2.0, 2.0)}
    assert (receipt.usd, receipt.list_usd, receipt.saved_usd, receipt.rescue_usd) == (3.0, 2.0, -1.0, 1.0)
