"""Batches that a provider has no room for: handed over again a few times, then called one by one; on a fake clock."""

import pytest

from llmdo.backends.errors import RateLimited
from llmdo.backends.limits.retry import THREE_TRIES
from tests.backends.engine.test_batches import Service, all_of, budget_of, chats
from tests.fakes.ledger import MemoryLedger

LINES = 5


def no_room(times):
    """Refuses all items of this many batches."""
    left = [times * LINES]

    def item(_):
        left[0] -= 1
        return RateLimited("too many tokens wait", lost=False) if left[0] >= 0 else None

    return item


@pytest.mark.parametrize("times", [0, 1, 2])
def test_a_batch_whose_items_are_all_refused_is_handed_over_again_and_costs_nothing_until_it_is_answered(times):
    service, budget = Service(item=no_room(times)), budget_of(max_tokens=100_000)
    process = all_of(service, chats(LINES), ledger=MemoryLedger(), budget=budget)
    assert process.errors == []
    assert service.sizes == [LINES] * (times + 1)
    assert service.called == []
    assert (budget.spent().calls, budget.spent().lost_calls) == (LINES, 0)
    assert not budget.can_wait()  # nothing is reserved any more


def test_after_three_generations_each_request_is_called_once():
    service, budget = Service(item=no_room(1000)), budget_of(max_tokens=100_000)
    process = all_of(service, chats(LINES), ledger=MemoryLedger(), budget=budget)
    assert process.errors == []
    assert service.sizes == [LINES] * THREE_TRIES.attempts == [LINES] * 3
    assert sorted(service.called) == [f"id-{number}" for number in range(LINES)]
    assert (budget.spent().calls, budget.spent().lost_calls) == (LINES, 0)
    assert not budget.can_wait()


def test_a_later_run_goes_on_with_the_generation_that_the_ledger_knows():
    ledger, service = MemoryLedger(), Service(item=no_room(1000))
    all_of(service, chats(LINES), ledger=ledger)
    again = all_of(service, chats(LINES), ledger=ledger)
    assert again.errors == []
    assert (len(service.sizes), len(service.called)) == (3, LINES)  # their answers are in the ledger
