"""What workers report adds up to one run's figures."""

from __future__ import annotations

from dataclasses import asdict

from llmdo.backends.limits.rates import Rates
from llmdo.backends.limits.throttle import CHANGES, Change, ModelLimits
from llmdo.backends.money.money import Budget
from llmdo.backends.money.spent import Spent
from llmdo.runners.workers.reports import spent_by_worker, sum_of_workers, with_past
from llmdo.runners.workers.wire import WorkerReport
from llmdo.storage.runs.members import MemberReport
from llmdo.transforms.run_state import NOTHING_ELSEWHERE


def report(calls, in_flight=0, model="m", *, spent=None, changes=(), per_s=None):
    limits = ModelLimits(
        *("openai", model, 8, per_s, Rates(60.0, None), in_flight, calls, 1, 2.0, 3.0, tuple(changes)), away_s=1.0
    )
    return WorkerReport(
        MemberReport(counts={}, spent=asdict(spent or Spent()), in_flight=in_flight), calls, 5, (limits,)
    )


def change(at):
    return Change(at, 8, None, 0.0, f"at {at}")


def test_the_limits_of_a_model_are_those_of_all_workers_together():
    living = [report(10, 3, changes=[change(1), change(4)], per_s=2.0), report(20, 4, changes=[change(2)])]
    past = with_past(NOTHING_ELSEWHERE, report(5, model="other"), replaced=False)
    past = with_past(with_past(past, report(4, 6), replaced=True), report(3, 6), replaced=True)
    assert (past.calls, past.in_flight, past.spent, len(past.limits)) == (12, 0, Spent(), 2)
    found = sum_of_workers(living, past)
    assert (found.calls, found.in_flight, found.batched) == (42, 7, 10)
    one, other = found.limits
    assert (one.model, one.window, one.per_s, one.rates) == ("m", 16, 2.0, Rates(120.0, None))
    assert (one.calls, one.refused, one.in_flight, one.throttled_s, one.waited_s) == (37, 4, 7, 2.0, 12.0)
    assert [one.at for one in one.changes] == [1, 2, 4]
    assert (other.model, other.window, other.calls) == ("other", 8, 5)


def test_only_the_last_changes_are_kept():
    living = [report(1, changes=map(change, range(CHANGES))), report(1, changes=[change(CHANGES)])]
    found = sum_of_workers(living, NOTHING_ELSEWHERE)
    assert [one.at for one in found.limits[0].changes] == list(range(1, CHANGES + 1))


def test_the_calls_of_a_dead_worker_may_be_billed_and_what_it_spent_is_the_runs():
    spent = Spent(calls=3, input_tokens=10, output_tokens=5, cost_usd=0.5, neurons=2.0)
    assert spent_by_worker(report(9, 2, spent=spent), died=False) == spent
    lost = spent_by_worker(report(9, 2, spent=spent), died=True)
    assert (lost.calls, lost.cost_usd, lost.lost_calls, lost.lost_cost_usd) == (3, 0.5, 2, None)
    assert spent_by_worker(report(9, 0, spent=spent), died=True) == spent
    budget = Budget()
    budget.add(spent)
    budget.add(Spent(calls=1, cost_usd=None, unpriced=1))
    budget.add(lost)
    assert budget.spent() == Spent(7, 20, 10, 4.0, 1.0, 1, 2, 0, 0, None)


def test_a_cost_is_unknown_only_where_none_is_known():
    unknown = Spent(calls=2, cost_usd=None, unpriced=2)
    assert (Spent() + unknown).cost_usd is None
    assert (Spent(calls=1, cost_usd=0.25) + unknown).cost_usd == 0.25
    assert Spent() + Spent() == Spent()
