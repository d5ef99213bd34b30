"""How a run ended, for people, for machines, and as an exit code."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from llmdo.backends.limits.throttle import ModelLimits
from llmdo.backends.money.receipt import LATE, LIST, RESCUED, Receipt
from llmdo.backends.money.spent import Spent
from llmdo.backends.responses import Price
from llmdo.runners.exit_codes import EXIT_ANSWERED, EXIT_FAILED, EXIT_HANDED_OVER, EXIT_SOME_ERRORS
from llmdo.runners.showing.budget import BudgetNow
from llmdo.runners.showing.limits import iso_time, limits_json
from llmdo.storage.output.costs import UNPAID, Cost
from llmdo.storage.output.receipts import FileReceipt
from llmdo.transforms.elements import FileVersion, Settled
from llmdo.transforms.files.settled_messages import settled_json
from llmdo.transforms.run_state import NOTHING_HANDED_OVER, Counts, HandedOver

NOTHING_SPENT = Spent()


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended.

    Attributes:
        run_id: names it in the output and in logs.
        counts: of files and lines, by how they ended.
        continuous: it was to go on until it is stopped.
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
        prices: by which costs were counted, by the models' full names.
        limits: what held the calls of each model back, of the last pipeline; empty where other processes called.
        backlog: about how many messages the queue still holds although a pull returned none; None: not asked.
        passing: it failed because a service did not answer, which may be over soon.
        budget: how the output's budget stands now; None without ``--budget``.
        handed_over: lines that wait in batches, or may do so.
        receipt: what was paid by lane, where not all was at list price.
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
    prices: Mapping[str, Price] = field(default_factory=dict)
    limits: tuple[ModelLimits, ...] = ()
    backlog: int | None = None
    passing: bool = False
    budget: BudgetNow | None = None
    handed_over: HandedOver = NOTHING_HANDED_OVER
    receipt: Receipt | None = None

    @property
    def exit_code(self) -> int:
        """0 all answered, or drained on request; 3 finished, but some lines ended as errors or a file as stale; 4 what
        is left waits in batches; 1 failed or stopped.
        """
        if self.continuous:
            return EXIT_FAILED if self.problem else EXIT_ANSWERED
        if self.handed_over.lines and not self.problem and not self.left:
            return EXIT_HANDED_OVER
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
            "handed_over": handed_over_json(self.handed_over),
            "until": None if self.until is None else iso_time(self.until),
            "input_tokens": self.counts.input_tokens,
            "output_tokens": self.counts.output_tokens,
            "spent": spent_json(self.spent),
            "receipt": receipt_json(self.receipt),
            "budget": None if self.budget is None else self.budget.as_json(),
            "prices": {name: price_json(price) for name, price in self.prices.items()},
            "limits": [limits_json(model) for model in self.limits],
        }

    def files_json(self) -> dict[str, Any]:
        """The part of it about the files."""
        return {
            "files": list(map(settled_json, self.settled)),
            "in_work": [f"{file.store_url}/{file.key}" for file in self.in_work],
            "left": self.left,
            "in_work_by_others": self.others,
        }


def handed_over_text(handed: HandedOver) -> str:
    """A sentence for people; "" if no line waits in a batch."""
    if not handed.lines:
        return ""
    when = f", expected by {iso_time(handed.expected_by)}" if handed.expected_by else ""
    return f"handed over, {handed.lines:,} lines{when}: run the same command again then, to fetch the answers"


def handed_over_json(handed: HandedOver) -> dict[str, Any]:
    """For ``--json``."""
    return {
        "lines": handed.lines,
        "expected_by": iso_time(handed.expected_by) if handed.expected_by else None,
        "unclear": handed.unclear,
        "said": handed_over_text(handed),
    }


def receipt_json(receipt: Receipt | None) -> dict[str, Any] | None:
    """The summary's ``receipt``; in US dollars."""
    if receipt is None:
        return None
    return {
        "lanes": {
            way: {"calls": one.calls, "cost_usd": one.usd, "list_usd": one.list_usd}
            for way, one in receipt.ways.items()
        },
        "cost_usd": receipt.usd,
        "list_usd": receipt.list_usd,
        "saved_usd": receipt.saved_usd,
        "rescue_usd": receipt.rescue_usd,
    }


# Of receipts, in words.
_WAYS = {
    "batch": "batches",
    LIST: "calls",
    RESCUED: "calls instead of batches",
    LATE: "batches that came too late",
    UNPAID: "answers that were there",
}


def lane_text(lane: str) -> str:
    """What a lane of a receipt is, for people."""
    return _WAYS.get(lane, lane)


def receipt_text(ways: Mapping[str, tuple[int, float]], list_usd: float, saved_usd: float, rescue_usd: float) -> str:
    """A sentence; ``ways``: how many by each lane, and what they cost."""

    def usd(amount: float) -> str:
        return dollars(amount, lower_bound=False)

    by_lane = ", ".join(f"{count:,} by {lane_text(way)} {usd(paid)}" for way, (count, paid) in ways.items())
    share = f" ({saved_usd / list_usd:.0%})" if saved_usd > 0 and list_usd else ""
    what = f"saved {usd(saved_usd)}{share}" if saved_usd >= 0 else f"lost {usd(-saved_usd)}"
    rescue = f"; the rescue cost {usd(rescue_usd)}" if rescue_usd else ""
    return f"By lane: {by_lane}; at list price {usd(list_usd)}, {what}{rescue}"


def file_receipt_text(receipt: FileReceipt) -> str:
    """That of files."""
    ways = {lane: (one.lines, one.cost_usd) for lane, one in receipt.lanes.items()}
    return receipt_text(ways, receipt.list_usd, receipt.saved_usd, receipt.rescue_usd)


def spent_json(spent: Spent) -> dict[str, Any]:
    """What calls have used; ``cost_is_lower_bound``: the cost of some of them is unknown.

    ``possibly``: at most what calls whose replies were lost may have used in addition.
    """
    return {
        "calls": spent.calls,
        "input_tokens": spent.input_tokens,
        "output_tokens": spent.output_tokens,
        "cached_tokens": spent.cached_tokens,
        "cache_write_tokens": spent.cache_write_tokens,
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


def price_json(price: Price) -> dict[str, Any]:
    """A price in US dollars for a million tokens, and who says so when; rates that are not its own are left out."""
    said = {name: value for name, value in asdict(price).items() if value is not None and value != ()}
    return said | ({"above": [[tokens, price_json(one)] for tokens, one in price.above]} if price.above else {})


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
