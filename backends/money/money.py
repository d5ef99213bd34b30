"""What a run has spent, and when it must stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace

from llmdo.backends.errors import BudgetSpent, ModelError, PriceUnknown
from llmdo.backends.money.billing import maybe_billed
from llmdo.backends.money.estimates import Estimates
from llmdo.backends.money.grants import Allowance, FromPurse, Grants
from llmdo.backends.money.lanes import dearest_lane
from llmdo.backends.money.lease import ALL_LINES, Lease, Reserve
from llmdo.backends.money.limits import NO_LIMITS, Limits
from llmdo.backends.money.prices import DECIMALS, Prices, cost_usd, is_cached
from llmdo.backends.money.receipt import LATE, RESCUED, CallUsed, Receipt, Tallies
from llmdo.backends.money.spent import Spent, lost_text
from llmdo.backends.requests import Request
from llmdo.backends.responses import Price, Response
from llmdo.backends.usage import Usage
from llmdo.settings.clock import elapsed


@dataclass(frozen=True, slots=True)
class _Amount:
    """What a call may use; ``usd`` is None if its price is not known."""

    usage: Usage
    usd: float | None

    @property
    def tokens(self) -> int:
        return self.usage.input_tokens + self.usage.output_tokens

    @property
    def most(self) -> Allowance:
        return Allowance(self.usd or 0.0, self.tokens)


class Budget:
    """Counts what is spent, and decides before each call whether it still fits. Used by the engine. Thread-safe.

    A call reserves the most that it may use, by estimate, and releases what it did not use; a lost call, which may be
    billed, releases nothing. So the limits hold, however many calls are in flight, as long as the estimates do; these
    are raised by actual usage (see Estimates).

    Args:
        limits: those of the run.
        prices: where they are known already.
        grants: what this process may spend of ``limits``, which other processes share; None: all of it.
        clock: seconds, monotonic; that of the lease.

    Attributes:
        lease: what it may spend of ``limits.output``, if that is set. Whoever makes calls has somebody keep it.
    """

    def __init__(
        self,
        limits: Limits = NO_LIMITS,
        prices: Prices | None = None,
        grants: Grants | None = None,
        clock: Callable[[], float] = elapsed,
    ) -> None:
        self.limits = self._now = limits
        self._grants = grants
        self.prices = prices or Prices()
        self._estimates = Estimates()
        self._lock = threading.Lock()
        self._reserved: dict[int, list[_Amount]] = {}  # by the request's id(): it lives as long as its call
        self._held_tokens, self._held_usd = 0, 0.0
        self._calls = self._input = self._output = self._unpriced = self._cached = self._written = 0
        self._lost = self._lost_input = self._lost_output = self._lost_unpriced = 0
        self._neurons: float | None = None
        self._usd = self._lost_usd = 0.0
        self._unsettled: list[CallUsed] = []
        self._tallies = Tallies(self.prices)
        self._rescued: dict[int, Request] = {}  # as _reserved
        self._elsewhere = Spent()
        self._awaited: Future[None] | None = None
        self.lease = None if limits.output is None else Lease(limits.output, self._lock, self._position, clock)

    @property
    def max_cost_usd(self) -> float | None:
        """What may be spent as it holds now, in US dollars."""
        return self._now.max_cost_usd

    def limit_cost(self, usd: float) -> None:
        """Another limit from now on, of what was spent before, too. Not for a budget that is shared by processes."""
        with self._lock:
            self._now = replace(self._now, max_cost_usd=usd)

    def pending(self, provider: str) -> Future[dict[str, Price | None]] | None:
        """The provider's price list while ``before`` would wait for it, or None. Begins to read it."""
        listed = self.prices.ask(provider)
        return listed if self._now.in_dollars and not listed.done() else None

    def before(self, provider: str, request: Request) -> ModelError | None:
        """Reserves what a call may use.

        Returns BudgetSpent if that could exceed a limit, and PriceUnknown for a model whose cost cannot be limited.
        Waits while the provider's list is ``pending``.
        """
        self.prices.ask(provider)
        if self._now == NO_LIMITS:
            return None
        lane = dearest_lane(request)
        price = self.prices.of(provider, request.model, lane=lane) if self._now.in_dollars else None
        with self._lock:
            self._settle()
            most = self._estimates.most(request)
            amount = _Amount(most, cost_usd(most, price))
            error = self._why_not(provider, request, amount)
            if error is None:
                self._reserved.setdefault(id(request), []).append(amount)
                self._held_tokens += amount.tokens
                self._held_usd += amount.usd or 0.0
                if self._grants:
                    self._grants.use(self._limited(amount.most), self._free())
            return error

    def after(
        self, provider: str, request: Request, ended: Response | ModelError | None, *, late: bool = False
    ) -> None:
        """Releases what a call reserved, and counts what it used, which an error may report too.

        ``None``: it was cancelled, or its reply is no longer awaited. What a lost call reserved is counted as used.
        ``late``: a second answer, of a batch to a request that was called meanwhile.
        """
        with self._lock:
            amount = self._give_back(request)
            if ended is None or (isinstance(ended, ModelError) and maybe_billed(ended)):
                self._lose(provider, request, amount)
            rescued = not late and id(request) in self._rescued
            if ended is not None and ended.usage is not None:
                self._count(provider, request, ended, ended.usage, LATE if late else RESCUED if rescued else "")
            if rescued and not isinstance(ended, ModelError):
                del self._rescued[id(request)]
                if ended is not None:
                    ended.rescued = True  # its row says so, too
            self._release()

    def rescue(self, request: Request) -> None:
        """A request is called since its batch would come too late."""
        with self._lock:
            self._rescued[id(request)] = request

    def receipt(self) -> Receipt | None:
        """What was paid by lane, where not all was at list price; None also where other processes have called."""
        with self._lock:
            self._settle()
            return None if self._elsewhere.calls else self._tallies.receipt()

    def leave(self, provider: str, request: Request, batch: str) -> None:
        """Leaves a request in a batch for a later run: it counts as lost, and in the output's budget as reserved."""
        with self._lock:
            most = self._lose(provider, request, self._give_back(request))
            if self.lease:
                self.lease.reserve(batch, Reserve(1, self._most_of(provider, request, most)))
            self._release()

    def fetched(self, provider: str, request: Request, batch: str) -> None:
        """A request that an earlier run has left in a batch has its result, or has none there: nothing is reserved."""
        with self._lock:
            if self.lease:
                most = self._most_of(provider, request, self._estimates.most(request))
                self.lease.reserve(batch, -Reserve(1, most))

    def closed(self, batch: str) -> None:
        """A batch that earlier runs have left has ended, and nobody waits for what is left of it."""
        with self._lock:
            if self.lease:
                self.lease.reserve(batch, -Reserve(ALL_LINES))

    def give_back(self, request: Request) -> None:
        """Releases what was reserved for a call that was not made."""
        with self._lock:
            self._give_back(request)
            self._release()

    def lose(self, provider: str, request: Request) -> None:
        """Counts a lost call that may be billed and is made again; its reservation stays for the next attempt."""
        with self._lock:
            self._lose(provider, request, None)

    def can_wait(self) -> bool:
        """Whether calls in flight may still release what they reserved, or more may be granted."""
        return bool(self._reserved) or self.awaited() is not None

    def awaited(self) -> Future[None] | None:
        """What ends when a call that ``before`` refused may try again, besides when others end; None: it may not."""
        return self._awaited

    def receive(self, message: FromPurse) -> None:
        """Takes a message of the purse that this budget's grants come from."""
        assert self._grants is not None  # noqa: S101  only such budgets get messages
        with self._lock:
            answered = self._grants.receive(message, self._free(), bool(self._reserved))
        answered.set_result(None)

    def add(self, spent: Spent) -> None:
        """Counts what another process has spent, which is not counted against this budget's limits."""
        with self._lock:
            self._elsewhere += spent

    def spent(self) -> Spent:
        """What was spent so far; does not wait for prices."""
        with self._lock:
            self._settle()
            unpriced = self._unpriced + sum(not used.lost for used in self._unsettled)
            lost_unpriced = self._lost_unpriced + sum(used.lost for used in self._unsettled)
            known = unpriced < self._calls or not self._calls
            return self._elsewhere + Spent(
                calls=self._calls,
                input_tokens=self._input,
                output_tokens=self._output,
                neurons=self._neurons,
                cost_usd=round(self._usd, DECIMALS) if known else None,
                unpriced=unpriced,
                lost_calls=self._lost,
                lost_input_tokens=self._lost_input,
                lost_output_tokens=self._lost_output,
                lost_cost_usd=None if lost_unpriced else round(self._lost_usd, DECIMALS),
                cached_tokens=self._cached,
                cache_write_tokens=self._written,
            )

    def _count(self, provider: str, request: Request, ended: Response | ModelError, usage: Usage, way: str) -> None:
        self._calls += 1
        self._input += usage.input_tokens
        self._output += usage.output_tokens
        self._cached += usage.cached_tokens
        self._written += usage.cache_write_tokens
        answered = request.model
        if not isinstance(ended, ModelError):
            answered = ended.model
            if self._now != NO_LIMITS and way != LATE:  # the request of a late answer is not always known
                self._estimates.learn(request, ended)
            if is_cached(ended):
                return
        if usage.neurons is not None:
            self._neurons = (self._neurons or 0.0) + usage.neurons
        self._unsettled.append(CallUsed(provider, request.model, answered, usage, lane=ended.lane, way=way))
        self._settle()

    def _release(self) -> None:
        if self._grants:
            self._grants.release(self._free(), bool(self._reserved))
        if self.lease:
            self.lease.ended()

    def _position(self) -> tuple[Allowance, Allowance]:
        """What calls have used, or may have used, and what those in flight reserve."""
        self._settle()
        tokens = self._input + self._lost_input + self._output + self._lost_output
        return Allowance(self._usd + self._lost_usd, tokens), Allowance(self._held_usd, self._held_tokens)

    def _limited(self, amount: Allowance) -> Allowance:
        """What of an amount has a limit."""
        usd = 0.0 if self._now.max_cost_usd is None else amount.usd
        return Allowance(usd, 0 if self._now.max_tokens is None else amount.tokens)

    def _free(self) -> Allowance:
        """What is neither spent nor reserved of the grants."""
        assert self._grants is not None  # noqa: S101  asked only then
        used, held = self._position()
        return self._grants.granted - self._limited(used) - self._limited(held)

    def _give_back(self, request: Request) -> _Amount | None:
        waiting = self._reserved.get(id(request))
        if not waiting:
            return None
        amount = waiting.pop()
        self._held_tokens -= amount.tokens
        self._held_usd = max(0.0, self._held_usd - (amount.usd or 0.0))
        if not waiting:
            del self._reserved[id(request)]
        if not self._reserved:
            self._held_tokens, self._held_usd = 0, 0.0  # without the rounding errors
        return amount

    def _most_of(self, provider: str, request: Request, most: Usage) -> Allowance:
        usd = cost_usd(most, self.prices.of(provider, request.model, lane=dearest_lane(request)))
        return _Amount(most, usd).most

    def _lose(self, provider: str, request: Request, amount: _Amount | None) -> Usage:
        most = amount.usage if amount else self._estimates.most(request)
        self._lost += 1
        self._lost_input += most.input_tokens
        self._lost_output += most.output_tokens
        lane = dearest_lane(request)
        self._unsettled.append(CallUsed(provider, request.model, request.model, most, lost=True, lane=lane))
        self._settle()
        return most

    def _settle(self) -> None:
        """Adds the costs of the calls whose prices are known by now."""
        waiting, self._unsettled = self._unsettled, []
        for used in waiting:
            if not self.prices.ask(used.provider).done():
                self._unsettled.append(used)
            elif used.lost:
                cost = cost_usd(used.usage, self.prices.of(used.provider, used.asked, lane=used.lane))
                self._lost_usd += cost or 0.0
                self._lost_unpriced += cost is None
            else:
                cost = self.prices.cost_of(used.provider, used.asked, used.answered, used.usage, used.lane)
                self._usd += cost or 0.0
                self._unpriced += cost is None
                if cost is not None:
                    self._tallies.count(used, cost)

    def _why_not(self, provider: str, request: Request, amount: _Amount) -> ModelError | None:
        limits, self._awaited = self._now, None
        if limits.in_dollars and amount.usd is None:
            why = self.prices.problem(provider)
            naming = limits.naming
            instead = naming.of("max_tokens_total") if limits.max_cost_usd is not None else "a --budget of tokens"
            return PriceUnknown(
                f"{provider}/{request.model}: its price is not known{f' ({why})' if why else ''}, so "
                f"{limits.in_dollars} cannot be guaranteed: name it in {naming.of('prices')}, use {instead}, or name "
                "another model",
                provider=provider,
            )
        if self._grants:
            free = self._free()
            if not free.covers(self._limited(amount.most)):
                denied = self._grants.lack(self._limited(amount.most), free)
                self._awaited = self._grants.awaited
                return BudgetSpent(denied or "more is asked for")
            return self._why_not_leased(amount)
        tokens, lost = self._input + self._output, self._lost_input + self._lost_output
        spent = f"${self._usd:.6g} and {tokens:,} tokens are spent"
        if self._lost:
            spent += f", perhaps ${self._lost_usd:.6g} and {lost:,} more by {lost_text(self._lost)}"
        again = f"could be exceeded by the next call: raise it and {limits.naming.again} to resume"
        usd = self._usd + self._lost_usd + self._held_usd + (amount.usd or 0.0)
        if limits.max_cost_usd is not None and usd > limits.max_cost_usd:
            return BudgetSpent(f"{spent}, and {limits.max_cost} {again}")
        if limits.max_tokens is not None and tokens + lost + self._held_tokens + amount.tokens > limits.max_tokens:
            return BudgetSpent(f"{spent}, and {limits.max_tokens_total} {again}")
        return self._why_not_leased(amount)

    def _why_not_leased(self, amount: _Amount) -> BudgetSpent | None:
        if self.lease is None or (error := self.lease.why_not(amount.most)) is None:
            return None
        self._awaited = self.lease.awaited
        return error
