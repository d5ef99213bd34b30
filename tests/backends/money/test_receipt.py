"""What was paid by lane, beside what list price would have been."""

from __future__ import annotations

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
from llmdo.transforms.run_state import Counts

PRICES = own_prices({"p/m": {"input": 1e6, "output": 0, "lanes": {"flex": {"input": 5e5, "output": 0}}}})


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
