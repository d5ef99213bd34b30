"""How a run ended, for people, for machines, and as an exit code."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from llmdo.backends.limits.throttle import ModelLimits
from llmdo.backends.money.money import Spent
from llmdo.runners.showing.limits import iso_time, limits_json
from llmdo.storage.output.costs import Cost
from llmdo.transforms.elements import FileVersion, Settled
from llmdo.transforms.run_state import Counts

NOTHING_SPENT = Spent()
EXIT_ANSWERED, EXIT_FAILED, EXIT_USAGE, EXIT_SOME_ERRORS = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended.

    Attributes:
        settled: files that are done or stale, also those that were done before; the newest 10,000, ``counts`` has all.
        in_work: files that this run opened and did not finish; the next run resumes them.
        left: what was not opened, and why.
        problem: why the run stopped early, or None.
        asleep: it was frozen or cut off for too long.
        final: it would stop again for the same reason.
        others: files that other runs work on, with the run's id.
        restarts: how often the pipeline of a continuous run was restarted.
        spent: what this command's calls have used, failed tries included as far as the providers report them, but not
            answers from the ledger.
        until: Unix time in seconds before which the next run would stop for the same reason, where that is known.
        limits: what held the calls of each model back, of the last pipeline; empty where other processes called.
        backlog: about how many messages the queue still holds although a pull returned none; None: not asked.
        passing: it failed because a service did not answer, which may be over soon.
    """

    run_id: str
    counts: Counts
    settled: tuple[Settled, ...]
    in_work: tuple[FileVersion, ...]
    left: dict[str, str]
    problem: str | None = None
    asleep: bool = False
    final: bool = False
    others: dict[str, str] = field(default_factory=dict)
    restarts: int = 0
    continuous: bool = False
    spent: Spent = NOTHING_SPENT
    until: float | None = None
    limits: tuple[ModelLimits, ...] = ()
    backlog: int | None = None
    passing: bool = False

    @property
    def exit_code(self) -> int:
        """0 all answered, or drained on request; 3 finished, but some lines ended as errors or a file as stale; 1
        failed or stopped.
        """
        if self.continuous:
            return EXIT_FAILED if self.problem else EXIT_ANSWERED
        if self.problem or self.in_work or self.left:
            return EXIT_FAILED
        incomplete = self.counts.files_with_errors or self.counts.files_stale
        return EXIT_SOME_ERRORS if incomplete else EXIT_ANSWERED

    def as_json(self) -> dict[str, Any]:
        """For ``--json``; times in ISO 8601, sizes in bytes."""
        counts = self.counts
        return {
            **self.calls_json(),
            "restarts": self.restarts,
            "answered": counts.answered + counts.answered_before,
            "failed": counts.failed + counts.failed_before,
            "messages": {
                "passed_over": counts.messages_passed_over,
                "undecodable": counts.messages_undecodable,
                "backlog": self.backlog,
            },
            "files_done": counts.files_done,
            "files_stale": counts.files_stale,
            **self.files_json(),
        }

    def calls_json(self) -> dict[str, Any]:
        """The part of it about the calls and how they ended."""
        return {
            "run_id": self.run_id,
            "exit_code": self.exit_code,
            "problem": self.problem,
            "until": None if self.until is None else iso_time(self.until),
            "input_tokens": self.counts.input_tokens,
            "output_tokens": self.counts.output_tokens,
            "spent": spent_json(self.spent),
            "limits": [limits_json(model) for model in self.limits],
        }

    def files_json(self) -> dict[str, Any]:
        """The part of it about the files."""
        return {
            "files": [
                {"file": f"{s.file.store_url}/{s.file.key}", "etag": s.file.etag, "status": s.status}
                | ({"answered": s.answered, "failed": s.failed, **cost_json(s.cost)} if s.status == "done" else {})
                | ({"reason": s.reason} if s.reason else {})
                for s in self.settled
            ],
            "in_work": [f"{file.store_url}/{file.key}" for file in self.in_work],
            "left": self.left,
            "in_work_by_others": self.others,
        }


def spent_json(spent: Spent) -> dict[str, Any]:
    """What calls have used; ``cost_is_lower_bound``: the cost of some of them is unknown.

    ``possibly``: at most what calls whose replies were lost may have used in addition.
    """
    return {
        "calls": spent.calls,
        "input_tokens": spent.input_tokens,
        "output_tokens": spent.output_tokens,
        "neurons": spent.neurons,
        "cost_usd": spent.cost_usd,
        "cost_is_lower_bound": spent.unpriced > 0,
        "possibly": {
            "calls": spent.lost_calls,
            "input_tokens": spent.lost_input_tokens,
            "output_tokens": spent.lost_output_tokens,
            "cost_usd": spent.lost_cost_usd,
        },
    }


def cost_json(cost: Cost) -> dict[str, Any]:
    """What the answers of a file cost, whoever paid for them and when."""
    return {"neurons": cost.neurons, "cost_usd": cost.usd, "cost_is_lower_bound": cost.unpriced > 0}


def dollars(usd: float | None, *, lower_bound: bool) -> str:
    """For people.

    >>> dollars(0.0012345, lower_bound=True), dollars(12.3456, lower_bound=False), dollars(None, lower_bound=True)
    ('≥ $0.0012', '$12.35', '$?')
    """
    if usd is None:
        return "$?"
    digits = 2 if usd >= 1 or not usd else 1 - math.floor(math.log10(usd))
    return f"{'≥ ' if lower_bound else ''}${usd:,.{digits}f}"
