"""``llmdo run``: checks what can be checked before the first call, runs the graph, and reports how it ended."""

from __future__ import annotations

import logging
from dataclasses import replace

from llmdo.backends.money.money import Budget
from llmdo.pipelines import jsonl
from llmdo.pipelines.options import JsonlOptions
from llmdo.runners.running.attempt import Build, Watch, attempt
from llmdo.runners.running.checks import check_prices, prepare
from llmdo.runners.running.steering import Steering
from llmdo.runners.running.stop import Stop
from llmdo.runners.showing.summary import Summary
from llmdo.settings.environment import cloudflare_account
from llmdo.storage.errors import QueueError
from llmdo.storage.queues.client import QueueClient

_log = logging.getLogger(__name__)


def run(
    options: JsonlOptions, watch: Watch, build: Build[JsonlOptions] = jsonl.build, budget: Budget | None = None
) -> Summary:
    """Runs a graph until nothing is left; ``watch`` shows the state meanwhile. Raises what ``prepare`` raises.

    ``budget``: what the command has spent before, and may spend all together.
    """
    stop, budget = Stop(options.drain_seconds), budget or options.new_budget()
    options = prepare(options)
    steering = Steering(options, stop)
    check_prices(options, budget.prices)
    with stop.on_signals():
        while True:
            summary = attempt(options, watch, stop, build, budget, steering=steering)
            # Without progress it would sleep again and again.
            if not summary.asleep or not summary.counts.shards or stop.asked:
                break
            _log.warning("%s; resuming", summary.problem)
    if options.queue is not None and summary.problem is None:
        return replace(summary, backlog=_backlog(options.queue))
    return summary


def _backlog(queue_id: str) -> int | None:
    """About how many messages a queue still holds, leased ones included; None if it does not report that."""
    try:
        with QueueClient(cloudflare_account(), queue_id) as client:
            return client.backlog()
    except QueueError as error:  # all pulled messages are done, whatever the queue holds
        _log.debug("%s", error)
        return None
