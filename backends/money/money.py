"""What a run has spent, and when it must stop."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass

from llmdo.backends.errors import BudgetSpent, ModelError, PriceUnknown
from llmdo.backends.money.billing import maybe_billed
from llmdo.backends.money.estimates import Estimates
from llmdo.backends.money.grants import Allowance, FromPurse, Grants
from llmdo.backends.money.prices import DECIMALS, Prices, cost_usd, is_cached
from llmdo.backends.requests import Request
from llmdo.backends.responses import Price, Response
from llmdo.backends.usage import Usage


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run may spend: US dollars, and input and output tokens together. None: no limit."""

    max_cost_usd: float | None = None
    max_tokens: int | None = None


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Spent:
    """What calls have used as reported by the providers, and what lost ones may have used besides.

    Attributes:
        calls: those with reported usage, answered or failed.
        neurons: the sum of those reported; None if none were.
        cost_usd: of the calls whose cost is known; None if there are calls but no known cost.
        unpriced: calls whose cost is not known: unless 0, the cost is a lower bound.
        lost_calls: calls that may be billed although no usage was reported: see ``maybe_billed``. The other ``lost``
            amounts are estimates of the most that these may have used; ``lost_cost_usd`` is None if a price is not
            known.
    """

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    neurons: float | None = None
    cost_usd: float | None = 0.0
    unpriced: int = 0
    lost_calls: int = 0
    lost_input_tokens: int = 0
    lost_output_tokens: int = 0
    lost_cost_usd: float | None = 0.0

    def __add__(self, other: Spent) -> Spent:
        calls, unpriced = self.calls + other.calls, self.unpriced + other.unpriced
        known = unpriced < calls or not calls
        neurons = [one.neurons for one in (self, other) if one.neurons is not None]
        lost = [one.lost_cost_usd for one in (self, other) if one.lost_cost_usd is not None]
        return Spent(
            calls=calls,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            neurons=sum(neurons) if neurons else None,
            cost_usd=round((self.cost_usd or 0.0) + (other.cost_usd or 0.0), DECIMALS) if known else None,
            unpriced=unpriced,
            lost_calls=self.lost_calls + other.lost_calls,
            lost_input_tokens=self.lost_input_tokens + other.lost_input_tokens,
            lost_output_tokens=self.lost_output_tokens + other.lost_output_tokens,
            lost_cost_usd=round(sum(lost), DECIMALS) if len(lost) == 2 else None,
        )


def lost_text(calls: int) -> str:
    """How many calls were lost, in words."""
    return "1 call whose reply was lost" if calls == 1 else f"{calls:,} calls whose replies were lost"


@dataclass(frozen=True, slots=True)
class _Amount:
    """What a call may use; ``usd`` is None if its price is not known."""

    usage: Usage
    usd: float | None

    @property
    def tokens(self) -> int:
        return self.usage.input_tokens + self.usage.output_tokens


@dataclass(frozen=True, slots=True)
class _Used:
    """What a call used, or may have used if it was lost, until its provider's prices are known."""

    provider: str
    asked: str
    answered: str
    usage: Usage
    lost: bool = False


class Budget:
    """Counts what is spent, and decides before each call whether it still fits. Used by the engine. Thread-safe.

    A call reserves the most that it may use, by estimate, and releases what it did not use; a lost call, which may be
    billed, releases nothing. So the limits hold, however many calls are in flight, as long as the estimates do; these
    are raised by actual usage (see Estimates).

    Args:
        limits: those of the run.
        prices: where they are known already.
        grants: what this process may spend of ``limits``, which other processes share; None: all of it.
    """

    def __init__(self, limits: Limits = NO_LIMITS, prices: Prices | None = None, grants: Grants | None = None) -> None:
        self.limits = limits
        self._grants = grants
        self.prices = prices or Prices()
        self._estimates = Estimates()
        self._lock = threading.Lock()
        self._reserved: dict[int, list[_Amount]] = {}  # by the request's id(): it lives as long as its call
        self._held_tokens, self._held_usd = 0, 0.0
        self._calls = self._input = self._output = self._unpriced = 0
        self._lost = self._lost_input = self._lost_output = self._lost_unpriced = 0
        self._neurons: float | None = None
        self._usd = self._lost_usd = 0.0
        self._unsettled: list[_Used] = []
        self._elsewhere = Spent()

    def pending(self, provider: str) -> Future[dict[str, Price | None]] | None:
        """The provider's price list while ``before`` would wait for it, or None. Begins to read it."""
        listed = self.prices.ask(provider)
        return None if self.limits.max_cost_usd is None or listed.done() else listed

    def before(self, provider: str, request: Request) -> ModelError | None:
        """Reserves what a call may use.

        Returns BudgetSpent if that could exceed a limit, and PriceUnknown for a model whose cost cannot be limited.
        Waits while the provider's list is ``pending``.
        """
        self.prices.ask(provider)
        if self.limits == NO_LIMITS:
            return None
        price = None if self.limits.max_cost_usd is None else self.prices.of(provider, request.model)
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
                    self._grants.use(self._limited(amount), self._free())
            return error

    def after(self, provider: str, request: Request, ended: Response | ModelError | None) -> None:
        """Releases what a call reserved, and counts what it used, which an error may report too.

        ``None``: it was cancelled, or its reply is no longer awaited. What a lost call reserved is counted as used.
        """
        with self._lock:
            amount = self._give_back(request)
            if ended is None or (isinstance(ended, ModelError) and maybe_billed(ended)):
                self._lose(provider, request, amount)
            if ended is not None and ended.usage is not None:
                self._count(provider, request, ended, ended.usage)
            self._release()

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
        return self._grants.awaited if self._grants else None

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
            )

    def _count(self, provider: str, request: Request, ended: Response | ModelError, usage: Usage) -> None:
        self._calls += 1
        self._input += usage.input_tokens
        self._output += usage.output_tokens
        answered = request.model
        if not isinstance(ended, ModelError):
            answered = ended.model
            if self.limits != NO_LIMITS:
                self._estimates.learn(request, ended)
            if is_cached(ended):
                return
        if usage.neurons is not None:
            self._neurons = (self._neurons or 0.0) + usage.neurons
        self._unsettled.append(_Used(provider, request.model, answered, usage))
        self._settle()

    def _release(self) -> None:
        if self._grants:
            self._grants.release(self._free(), bool(self._reserved))

    def _limited(self, amount: _Amount) -> Allowance:
        """What of an amount has a limit."""
        usd = 0.0 if self.limits.max_cost_usd is None else amount.usd or 0.0
        return Allowance(usd, 0 if self.limits.max_tokens is None else amount.tokens)

    def _free(self) -> Allowance:
        """What is neither spent nor reserved of the grants."""
        assert self._grants is not None  # noqa: S101  asked only then
        used = _Amount(
            Usage(self._input + self._lost_input, self._output + self._lost_output), self._usd + self._lost_usd
        )
        held = _Amount(Usage(self._held_tokens), self._held_usd)
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

    def _lose(self, provider: str, request: Request, amount: _Amount | None) -> None:
        most = amount.usage if amount else self._estimates.most(request)
        self._lost += 1
        self._lost_input += most.input_tokens
        self._lost_output += most.output_tokens
        self._unsettled.append(_Used(provider, request.model, request.model, most, lost=True))
        self._settle()

    def _settle(self) -> None:
        """Adds the costs of the calls whose prices are known by now."""
        waiting, self._unsettled = self._unsettled, []
        for used in waiting:
            if not self.prices.ask(used.provider).done():
                self._unsettled.append(used)
            elif used.lost:
                cost = cost_usd(used.usage, self.prices.of(used.provider, used.asked))
                self._lost_usd += cost or 0.0
                self._lost_unpriced += cost is None
            else:
                cost = self.prices.cost_of(used.provider, used.asked, used.answered, used.usage)
                self._usd += cost or 0.0
                self._unpriced += cost is None

    def _why_not(self, provider: str, request: Request, amount: _Amount) -> ModelError | None:
        limits = self.limits
        if limits.max_cost_usd is not None and amount.usd is None:
            why = self.prices.problem(provider)
            return PriceUnknown(
                f"{provider}/{request.model}: its price is not known{f' ({why})' if why else ''}, so --max-cost "
                "cannot be guaranteed: use --max-tokens-total instead, or name another model",
                provider=provider,
            )
        if self._grants:
            free = self._free()
            if free.covers(self._limited(amount)):
                return None
            return BudgetSpent(self._grants.lack(self._limited(amount), free) or "more is asked for")
        tokens, lost = self._input + self._output, self._lost_input + self._lost_output
        spent = f"${self._usd:.6g} and {tokens:,} tokens are spent"
        if self._lost:
            spent += f", perhaps ${self._lost_usd:.6g} and {lost:,} more by {lost_text(self._lost)}"
        again = "could be exceeded by the next call: raise it and run the same command again to resume"
        usd = self._usd + self._lost_usd + self._held_usd + (amount.usd or 0.0)
        if limits.max_cost_usd is not None and usd > limits.max_cost_usd:
            return BudgetSpent(f"{spent}, and --max-cost {limits.max_cost_usd:g} {again}")
        if limits.max_tokens is not None and tokens + lost + self._held_tokens + amount.tokens > limits.max_tokens:
            return BudgetSpent(f"{spent}, and --max-tokens-total {limits.max_tokens} {again}")
        return None
