"""``llmdo run``: checks what can be checked before the first call, runs the graph, and says how it ended."""

from __future__ import annotations

import logging
from dataclasses import replace

from backends.money import Budget
from pipelines import jsonl
from pipelines.options import JsonlOptions
from runners.attempt import Build, Watch, attempt
from runners.checks import check_prices, prepare
from runners.stop import Stop
from runners.summary import Summary
from storage.environment import cloudflare_account
from storage.errors import QueueError
from storage.queues import QueueClient

_log = logging.getLogger(__name__)


def run(options: JsonlOptions, watch: Watch, build: Build[JsonlOptions] = jsonl.build) -> Summary:
    """Runs a graph until nothing is left; ``watch`` shows the state meanwhile. Raises what ``prepare`` raises."""
    stop, budget = Stop(options.drain_seconds), Budget(options.limits)
    options = prepare(options)
    check_prices(options, budget.prices)
    with stop.on_signals():
        while True:
            summary = attempt(options, watch, stop, build, budget)
            # Again and again without progress would help nobody.
            if not summary.asleep or not summary.counts.shards or stop.asked:
                break
            _log.warning("%s; going on", summary.problem)
    if options.queue is not None and summary.problem is None:
        return replace(summary, backlog=_backlog(options.queue))
    return summary


def _backlog(queue_id: str) -> int | None:
    """About how many messages a queue still holds, leased ones included; None where it does not tell."""
    try:
        with QueueClient(cloudflare_account(), queue_id) as client:
            return client.metrics().backlog_count
    except QueueError as error:  # all that was pulled is done, whatever the queue holds
        _log.debug("%s", error)
        return None
