"""A budget that several processes share: the process that started them grants them parts of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from llmdo.backends.money.grants import Allowance, Ask, Denial, FromPurse, Grant, Reclaim, Return, ToPurse
from llmdo.backends.money.limits import Limits
from llmdo.backends.money.spent import Spent

_NO_LIMIT = float("inf")


@dataclass(slots=True)
class _Member:
    """A process, and what it was granted and has neither returned nor reported as left over.

    ``empty``: it has returned all that it had not spent, and has no call in flight; so it makes none without a Grant.
    """

    held: Allowance = field(default_factory=Allowance)
    grants: int = 0
    empty: bool = True
    reclaimed: bool = False


class Purse:
    """Grants parts of ``limits``, never more than these in all. It does no I/O: methods return the messages to send.

    A grant is at most half of an equal part of the rest, so that the rest is shared until little is left. When a call
    waits for more than there is, all processes return what they do not use; only when that is not enough, and no call
    is in flight anywhere, the ask is denied. Not thread-safe.

    Attributes:
        lost: what was granted to processes that died, and that they had not reported as spent.
    """

    def __init__(self, limits: Limits) -> None:
        self.lost = Allowance()
        self._limits = limits
        self._rest = Allowance(
            _NO_LIMIT if limits.max_cost_usd is None else limits.max_cost_usd,
            _NO_LIMIT if limits.max_tokens is None else limits.max_tokens,
        )
        self._members: dict[int, _Member] = {}
        self._asks: dict[int, Ask] = {}  # without an answer, the oldest first

    @property
    def rest(self) -> Allowance:
        """What is granted to nobody; without end where there is no limit."""
        return self._rest

    def join(self, number: int) -> None:
        """A process begins, by a number that no other one has or had."""
        self._members[number] = _Member()

    def leave(self, number: int, spent: Spent, *, died: bool) -> list[tuple[int, FromPurse]]:
        """A process has ended. If it died, what it did not report as spent counts as lost; else it was not used."""
        member = self._members.pop(number)
        self._asks.pop(number, None)
        left = member.held - used_of(spent, self._limits)
        if died:
            self.lost += left.at_least(Allowance())
            left = left.at_most(Allowance())
        self._rest += left
        return list(self._answers())

    def receive(self, number: int, message: ToPurse) -> list[tuple[int, FromPurse]]:
        """Takes a message of a process; returns messages, each with the number of the process that it is for."""
        member = self._members[number]
        match message:
            case Ask():
                self._asks[number] = message
            case Return(amount, grants, in_flight):
                self._rest += amount
                member.held -= amount
                member.empty = not in_flight and grants == member.grants
        return list(self._answers())

    def _answers(self) -> Iterator[tuple[int, FromPurse]]:
        asks = self._asks
        yield from self._grants([number for number, ask in asks.items() if ask.waiting])
        waiting = {number: ask for number, ask in asks.items() if ask.waiting}
        if not waiting:
            yield from self._grants(list(asks))
            return
        for number, member in self._members.items():
            if not member.empty and not member.reclaimed:
                member.reclaimed = True
                yield number, Reclaim()
        if all(member.empty for member in self._members.values()):
            for number, ask in waiting.items():
                del asks[number]
                yield number, Denial(ask.least, self._reason(ask))

    def _grants(self, numbers: list[int]) -> Iterator[tuple[int, FromPurse]]:
        """Grants for those of some asks that the rest covers."""
        for number in numbers:
            ask, member = self._asks[number], self._members[number]
            if self._rest.covers(ask.least):
                part = self._rest.times(0.5 / len(self._members))
                amount = ask.wanted.at_most(part).at_least(ask.least)
                self._rest -= amount
                member.held += amount
                member.grants += 1
                member.empty, member.reclaimed = False, False
                del self._asks[number]
                yield number, Grant(amount)

    def _reason(self, ask: Ask) -> str:
        """Why an ask is denied, where all processes have returned what they did not spend."""
        limits = self._limits
        if limits.max_cost_usd is not None and ask.least.usd > self._rest.usd:
            spent = f"${limits.max_cost_usd - self._rest.usd:.6g} are spent"
            limit = limits.max_cost
        else:
            spent = f"{(limits.max_tokens or 0) - self._rest.tokens:,} tokens are spent"
            limit = limits.max_tokens_total
        if self.lost != Allowance():
            spent += ", perhaps less, since a process was lost with what it had reserved"
        return f"{spent}, and {limit} could be exceeded by the next call: raise it and {limits.naming.again} to resume"


def used_of(spent: Spent, limits: Limits) -> Allowance:
    """What was spent or lost, of what has a limit."""
    tokens = spent.input_tokens + spent.output_tokens + spent.lost_input_tokens + spent.lost_output_tokens
    usd = (spent.cost_usd or 0.0) + (spent.lost_cost_usd or 0.0)
    return Allowance(0.0 if limits.max_cost_usd is None else usd, 0 if limits.max_tokens is None else tokens)
