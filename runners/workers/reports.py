"""Adds up what the workers of a run report."""

from __future__ import annotations

from collections import ChainMap, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from llmdo.backends.limits.rates import NO_RATES, Rates
from llmdo.backends.limits.throttle import CHANGES, ModelLimits
from llmdo.backends.money.spent import Spent
from llmdo.runners.workers.wire import WorkerReport
from llmdo.storage.runs.members import StopReason
from llmdo.transforms.members import error_of, spent_by
from llmdo.transforms.run_state import Elsewhere, RunAsleep


def sum_of_workers(living: Sequence[WorkerReport], past: Elsewhere) -> Elsewhere:
    """What all have done. Only the ``living`` have calls in flight, and what they spent is not in the run's budget."""
    return Elsewhere(
        calls=past.calls + sum(report.calls for report in living),
        in_flight=sum(report.member.in_flight for report in living),
        batched=sum(report.batched for report in living),
        limits=join_limits([*(limits for report in living for limits in report.limits), *past.limits]),
        spent=spent_by(report.member for report in living),
        prices=dict(ChainMap(*(dict(report.prices) for report in living), dict(past.prices))),
    )


def with_past(past: Elsewhere, report: WorkerReport, *, replaced: bool) -> Elsewhere:
    """The calls and limits of workers that are gone, with one more; a stream may have thousands of them.

    ``replaced``: another worker has its limits now.
    """
    limits = [_of_replaced(one) if replaced else one for one in report.limits]
    prices = {**past.prices, **report.prices}
    return Elsewhere(calls=past.calls + report.calls, limits=join_limits([*past.limits, *limits]), prices=prices)


def spent_by_worker(report: WorkerReport, *, died: bool) -> Spent:
    """What a worker has spent that is gone. If it died, its calls were lost, which may be billed."""
    spent, lost = spent_by([report.member]), report.member.in_flight
    return spent + Spent(lost_calls=lost, lost_cost_usd=None) if died and lost else spent


def error_of_worker(stopped: StopReason) -> Exception:
    """The error that stopped a worker."""
    return RunAsleep(stopped.message) if stopped.error == RunAsleep.__name__ else error_of(stopped)


def join_limits(limits: Iterable[ModelLimits]) -> tuple[ModelLimits, ...]:
    """Those of each model as one: each worker has a part of them."""
    by_model: defaultdict[tuple[str, str], list[ModelLimits]] = defaultdict(list)
    for one in limits:
        by_model[one.provider, one.model].append(one)
    return tuple(map(_joined, by_model.values()))


def _of_replaced(limits: ModelLimits) -> ModelLimits:
    """What another worker has now does not count twice."""
    return replace(limits, window=0, per_s=None, rates=NO_RATES, in_flight=0, away=None)


def _joined(parts: Sequence[ModelLimits]) -> ModelLimits:
    learned = [part.per_s for part in parts if part.per_s is not None]
    changes = sorted((change for part in parts for change in part.changes), key=lambda change: change.at)
    return replace(
        parts[0],
        window=sum(part.window for part in parts),
        per_s=sum(learned) if learned else None,
        rates=Rates(_sum(part.rates.rpm for part in parts), _sum(part.rates.tpm for part in parts)),
        in_flight=sum(part.in_flight for part in parts),
        calls=sum(part.calls for part in parts),
        refused=sum(part.refused for part in parts),
        throttled_s=max(part.throttled_s for part in parts),
        waited_s=sum(part.waited_s for part in parts),
        changes=tuple(changes[-CHANGES:]),
        away_s=max(part.away_s for part in parts),
        away=next((part.away for part in parts if part.away), None),
    )


def _sum(rates: Iterable[float | None]) -> float | None:
    known = [rate for rate in rates if rate is not None]
    return sum(known) if known else None
