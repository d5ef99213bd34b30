"""Keeps how a run's figures change while it runs, and leaves that in the output when it ends."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from llmdo.backends.money.prices import DECIMALS
from llmdo.backends.money.spent import Spent
from llmdo.pipelines.run_options import RunOptions
from llmdo.runners.showing.limits import limits_json
from llmdo.runners.showing.progress import Figures, Meters
from llmdo.runners.showing.summary import NOTHING_SPENT, Summary, spent_json
from llmdo.settings.secrets import without_secrets
from llmdo.storage.errors import StorageError
from llmdo.storage.objects.opening import open_store
from llmdo.storage.runs.histories import (
    MOST_CHANGES,
    MOST_POINTS,
    LimitsThen,
    Moments,
    RunHistory,
    leave_history,
)
from llmdo.transforms.run_state import RunState

_log = logging.getLogger(__name__)

# At first; twice as long whenever there are MOST_POINTS, of which every other one is dropped then. Seconds.
_EVERY_S = 1.0
_MODELS = 20  # with most calls, whose limits are kept


@dataclass(slots=True)
class Recorded:
    """What was seen of one run so far; ``before``: what its command had spent before, for a sample or earlier tries."""

    before: Spent = NOTHING_SPENT
    started: float = field(default_factory=time.time)
    every_s: float = _EVERY_S
    seen: list[tuple[float, Figures]] = field(default_factory=list)

    def beside(
        self, watch: Callable[[RunState], AbstractContextManager[None]]
    ) -> Callable[[RunState], AbstractContextManager[None]]:
        """What both watches a run and looks at it."""

        @contextmanager
        def both(state: RunState) -> Iterator[None]:
            with watch(state), self.of(state):
                yield

        return both

    @contextmanager
    def of(self, state: RunState) -> Iterator[None]:
        """Looks at a run now, at its end, and repeatedly between."""
        over, meters, begun = threading.Event(), Meters(), time.monotonic()

        def look_on() -> None:
            while True:
                self.take(time.monotonic() - begun, meters.look(state))
                if over.wait(self.every_s):
                    self.take(time.monotonic() - begun, meters.look(state))
                    return

        thread = threading.Thread(target=look_on, name="llmdo-history", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def take(self, at: float, figures: Figures) -> None:
        """Takes note of a run's figures at a moment, in seconds since its begin."""
        if len(self.seen) >= MOST_POINTS:
            del self.seen[1::2]
            self.every_s *= 2
        self.seen.append((at, figures))

    def moments(self) -> Moments:
        """All of it."""
        figures, before = [one for _, one in self.seen], self.before.cost_usd or 0.0
        return Moments(
            at=[round(at, 2) for at, _ in self.seen],
            lines=[one.lines for one in figures],
            calls=[one.calls for one in figures],
            tokens=[one.tokens for one in figures],
            cost_usd=[None if one.cost_usd is None else round(one.cost_usd - before, DECIMALS) for one in figures],
            throttled_s=[round(one.throttled_s, 2) for one in figures],
            in_flight=[one.in_flight for one in figures],
            window=[one.window for one in figures],
            batched=[one.batched for one in figures],
        )


def keep_history(options: RunOptions, recorded: Recorded, summary: Summary) -> None:
    """Writes how a run went into its output. A run that did nothing leaves nothing; a failure is only logged."""
    counts, spent = summary.counts, summary.spent.since(recorded.before)
    if not (counts.answered or counts.failed or spent.calls or summary.problem):
        return
    if summary.passing:  # nor will this be
        return
    history = RunHistory(
        run_id=summary.run_id,
        command=options.command,
        models=list(dict.fromkeys(options.models))[:_MODELS],
        started=datetime.fromtimestamp(recorded.started, UTC),
        ended=datetime.now(UTC),
        answered=counts.answered,
        failed=counts.failed,
        files_done=counts.files_done,
        files_stale=counts.files_stale,
        problem=None if summary.problem is None else without_secrets(summary.problem),
        spent=spent_json(spent),
        limits=_limits(summary),
        moments=recorded.moments(),
    )
    where = options.output_location
    try:
        leave_history(open_store(where.store_url), where.key, history)
    except StorageError as error:
        _log.info("how this run went is not kept: %s", error)


def _limits(summary: Summary) -> list[LimitsThen]:
    """Of the models with most calls, with the newest changes."""
    most = sorted(map(limits_json, summary.limits), key=lambda one: -one["calls"])[:_MODELS]
    each = MOST_CHANGES // max(1, len(most))
    return [LimitsThen.model_validate({**_known(one), "changes": one["changes"][-each:]}) for one in most]


def _known(limits: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in limits.items() if name in LimitsThen.model_fields and value is not None}
