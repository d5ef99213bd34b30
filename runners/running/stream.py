"""``llmdo stream``: runs until it is stopped; a pipeline that fails is restarted and resumes from the output."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import fields, replace

from llmdo.pipelines import jsonl
from llmdo.pipelines.options import JsonlOptions
from llmdo.runners.prism.binary import find_prism
from llmdo.runners.running.attempt import Build, Watch, attempt
from llmdo.runners.running.checks import check_prices, prepare
from llmdo.runners.running.steering import Steering
from llmdo.runners.running.stop import Stop
from llmdo.runners.showing.summary import Summary
from llmdo.transforms.run_state import Counts

_log = logging.getLogger(__name__)

# Between a failure and the next try, doubling with each failure without progress. Seconds.
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0


def stream(options: JsonlOptions, watch: Watch, build: Build[JsonlOptions] = jsonl.build) -> Summary:
    """Answers what a queue announces until SIGTERM or Ctrl-C. The summary is the last pipeline's, with all counts.

    Gives up after ``max_restarts`` failures in a row without progress, not counting those of a service that does not
    answer for a time, and at once for an error that would recur (a wrong token, the day's allowance). Raises what
    ``prepare`` raises, and PrismError where there is no Prism.
    """
    if options.runner == "prism":
        find_prism(options.prism_location, allow_open=options.allow_open_ports)
    stop, budget = Stop(options.drain_seconds), options.new_budget()
    options = prepare(options)
    check_prices(options, budget.prices)
    steering = Steering(options, stop)
    with stop.on_signals():
        return again_and_again(
            lambda: attempt(options, watch, stop, build, budget=budget, steering=steering),
            stop,
            options.max_restarts,
            lambda counts: counts.shards > 0 or counts.files_done > 0,
        )


def again_and_again(
    once: Callable[[], Summary], stop: Stop, max_restarts: int, progress: Callable[[Counts], bool]
) -> Summary:
    """Runs pipelines one after the other until one ends by itself or ``stream``'s rules end them."""
    counts, restarts, in_vain, failures = Counts(), 0, 0, 0
    while True:
        summary = once()
        counts = sum_of_counts(counts, summary.counts)
        if progress(summary.counts):
            in_vain = failures = 0
        else:
            in_vain, failures = in_vain + (not summary.passing), failures + 1
        over = stop.asked or summary.final or summary.problem is None
        if over or in_vain > max_restarts:
            return replace(summary, counts=counts, restarts=restarts)
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(10, max(0, failures - 1)))
        _log.warning("%s; restarts in %g s", summary.problem, wait)
        if stop.wait(wait):
            return replace(summary, counts=counts, restarts=restarts, problem=None)
        restarts += 1


def sum_of_counts(one: Counts, other: Counts) -> Counts:
    """The sums of all counts."""
    return Counts(**{field.name: getattr(one, field.name) + getattr(other, field.name) for field in fields(Counts)})
