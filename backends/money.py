"""What calls cost at the prices of the providers' own lists, what a run has spent, and where it must stop.

Costs are list prices in US dollars: free allowances, discounts and taxes are not in them.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from backends.errors import BudgetSpent, ModelError, StopRun
from backends.estimates import Estimates
from backends.ir import Models, Price, Request, Response, Usage, added
from backends.listing import deprecation, list_models
from backends.protocol import connect

NEURON_USD = 0.011 / 1000  # developers.cloudflare.com/workers-ai/platform/pricing
DECIMALS = (
    12  # sums are rounded to a millionth of a micro-dollar; one token of the cheapest model costs 10,000 of these
)
_TOKENS = Price().unit
# The models that run in this process.
FREE = frozenset({"local"})
_NOTHING = Price(0.0, 0.0, 0.0)

_LIST_S = 30.0  # after so long a list is given up: answers wait for their prices

_log = logging.getLogger(__name__)


def cost_usd(usage: Usage, price: Price | None) -> float | None:
    """What tokens cost, or where their price is unknown what the neurons do; None where nobody tells.

    A price for another unit than tokens says nothing here, nor does the price of a model that cost something and told
    no tokens.
    """
    if price is not None and price.unit == _TOKENS:
        cached, output = usage.cached_tokens, usage.output_tokens
        plain = usage.input_tokens - cached
        rate = price.input if price.cached_input is None else price.cached_input
        known = (
            (not plain or price.input is not None)
            and (not cached or rate is not None)
            and (not output or price.output is not None)
        )
        if known and (usage.input_tokens or output or price.input == 0 == (price.output or 0)):
            usd = plain * (price.input or 0.0) + cached * (rate or 0.0) + output * (price.output or 0.0)
            return round(usd / 1e6, DECIMALS)
    return None if usage.neurons is None else round(usage.neurons * NEURON_USD, DECIMALS)


def is_cached(response: Response) -> bool:
    """Whether an AI Gateway had the answer in its cache, so that no model was called (ai-gateway/features/caching)."""
    return response.details.get("cache_status") == "HIT"


def list_of(provider: str) -> Models:
    """A provider's list, which may be an hour old. Raises ModelError, MissingSettings."""

    async def read() -> Models:
        backend = connect(provider)
        try:
            async with asyncio.timeout(_LIST_S):
                return await list_models(backend)
        finally:
            await backend.aclose()

    return asyncio.run(read())


class Prices:
    """Prices by provider and model, from the lists that ``list_of`` gives; each is read once. Thread-safe.

    A list that cannot be read, and a model whose cost nobody tells, is warned of once; their costs stay unknown. So is
    a model that is, or will be, switched off.
    """

    def __init__(self, list_of: Callable[[str], Models] = list_of) -> None:
        self._list_of = list_of
        self._ending: dict[str, str] = {}  # by the models' full names; complete when the provider's list is there
        self._lists: dict[str, Future[dict[str, Price | None]]] = {}
        self._lock = threading.Lock()
        self._warned: set[str] = set()

    def ask(self, provider: str) -> Future[dict[str, Price | None]]:
        """Begins to read a provider's list; does not wait for it. By the models' full names; empty if it failed."""
        with self._lock:
            found = self._lists.get(provider)
            if found is not None:
                return found
            found = self._lists[provider] = Future()
            if provider in FREE:
                found.set_result({})
            else:
                threading.Thread(target=self._read, args=(provider, found), name="llmdo-prices", daemon=True).start()
            return found

    def of(self, provider: str, *models: str) -> Price | None:
        """The price of the first of some models that has one; waits for the list."""
        if provider in FREE:
            return _NOTHING
        prices = self.ask(provider).result()
        for model in models:
            price = prices.get(f"{provider}/{model}")
            if price is not None:
                return price
        return None

    def lists(self, provider: str, model: str) -> bool:
        """Whether a provider has a model, or does not tell; waits for the list."""
        models = self.ask(provider).result()
        return not models or f"{provider}/{model}" in models

    def cost(self, provider: str, asked: str, *parts: Response) -> float | None:
        """What the parts of an answer cost, by the model that answered or else the one asked for; waits for the list.

        None where nobody tells. What a gateway had in its cache cost nothing.
        """
        used: dict[str, Usage] = {}
        for part in parts:
            if not is_cached(part):
                used[part.model] = added(used.get(part.model, Usage()), part.usage)
        costs = [self.cost_of(provider, asked, answered, usage) for answered, usage in used.items()]
        known = [usd for usd in costs if usd is not None]
        return round(sum(known), DECIMALS) if len(known) == len(costs) else None

    def cost_of(self, provider: str, asked: str, answered: str, usage: Usage) -> float | None:
        """The same of what was used, also where nothing came of it."""
        cost = cost_usd(usage, self.of(provider, answered, asked))
        if cost is None:
            self._warn(f"{provider}/{asked}", "the provider tells no price, or no tokens: its cost is not known")
        return cost

    def ending(self, provider: str, model: str) -> str | None:
        """The warning that a model is, or will be, switched off, or None; waits for the list."""
        self.ask(provider).result()
        warning = self._ending.get(f"{provider}/{model}")
        if warning:
            self._warn_once(f"{provider}/{model} ends", warning)
        return warning

    def _read(self, provider: str, found: Future[dict[str, Price | None]]) -> None:
        prices: dict[str, Price | None] = {}
        try:
            listed = self._list_of(provider)
            prices = {info.name: info.price for info in listed.models}
            now = time.time()
            self._ending |= {info.name: said for info in listed.models if (said := deprecation(info, now))}
            if listed.problem:
                self._warn(provider, f"prices are {listed.age_s / 3600:.1f} hours old: {listed.problem}")
        except Exception as error:  # noqa: BLE001 - without prices the answers are as good
            self._warn(provider, f"prices cannot be read, and costs may stay unknown: {error}")
        finally:
            found.set_result(prices)

    def _warn(self, about: str, sentence: str) -> None:
        self._warn_once(about, f"{about}: {sentence}")

    def _warn_once(self, about: str, sentence: str) -> None:
        if about in self._warned:
            return
        with self._lock:
            new = about not in self._warned
            self._warned.add(about)
        if new:
            _log.warning("%s", sentence)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run may spend: US dollars, and input and output tokens together. None: as much as it takes."""

    max_cost_usd: float | None = None
    max_tokens: int | None = None


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Spent:
    """What calls have used, as far as the providers told.

    Attributes:
        calls: those that were answered, or told what they used although they failed.
        neurons: the sum of those told; None where none were.
        cost_usd: of the calls whose cost is known; None where there were calls and of none it is.
        unpriced: calls whose cost is not known: unless 0, the cost is a lower bound.
    """

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    neurons: float | None = None
    cost_usd: float | None = 0.0
    unpriced: int = 0


@dataclass(frozen=True, slots=True)
class _Amount:
    """What a call may use; ``usd`` is None where nobody tells its price."""

    tokens: int = 0
    usd: float | None = 0.0

    def plus(self, other: _Amount) -> _Amount:
        return _Amount(self.tokens + other.tokens, (self.usd or 0.0) + (other.usd or 0.0))

    def minus(self, other: _Amount) -> _Amount:
        return _Amount(self.tokens - other.tokens, max(0.0, (self.usd or 0.0) - (other.usd or 0.0)))


class Budget:
    """Counts what is spent, and says before each call whether it still fits; the engine's hook. Thread-safe.

    A call reserves the most that it may use, by estimate, and gives back what it did not. So the limits are not passed,
    however many calls are in flight, as long as the estimates hold; they are raised by what comes (see Estimates).
    """

    def __init__(self, limits: Limits = NO_LIMITS, prices: Prices | None = None) -> None:
        self.limits = limits
        self.prices = prices or Prices()
        self._estimates = Estimates()
        self._lock = threading.Lock()
        self._reserved: dict[int, list[_Amount]] = {}  # by the request's id(): it lives as long as its call
        self._held = _Amount()
        self._calls = self._input = self._output = self._unpriced = 0
        self._neurons: float | None = None
        self._usd = 0.0
        # Provider, model asked for, model that answered, what it used; till their provider's prices are there.
        self._unsettled: list[tuple[str, str, str, Usage]] = []

    def before(self, provider: str, request: Request) -> StopRun | None:
        """Reserves what a call may use; an error where that could pass a limit. With --max-cost it waits for prices."""
        self.prices.ask(provider)
        if self.limits == NO_LIMITS:
            return None
        price = self.prices.of(provider, request.model) if self.limits.max_cost_usd is not None else None
        with self._lock:
            self._settle()
            amount = self._most(request, price)
            error = self._why_not(provider, request, amount)
            if error is None:
                self._reserved.setdefault(id(request), []).append(amount)
                self._held = self._held.plus(amount)
            return error

    def after(self, provider: str, request: Request, ended: Response | ModelError | None) -> None:
        """Gives back what a call reserved, and counts what it used, which an error may tell too."""
        with self._lock:
            waiting = self._reserved.get(id(request))
            if waiting:
                self._held = self._held.minus(waiting.pop())
                if not waiting:
                    del self._reserved[id(request)]
                if not self._reserved:
                    self._held = _Amount()  # what is left of sums and differences of fractions
            usage = ended.usage if ended else None
            if ended is None or usage is None:
                return
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
            self._unsettled.append((provider, request.model, answered, usage))
            self._settle()

    def can_wait(self) -> bool:
        """Whether calls in flight may yet give back what they reserved."""
        return bool(self._reserved)

    def spent(self) -> Spent:
        """What was spent so far; does not wait for prices."""
        with self._lock:
            self._settle()
            unpriced = self._unpriced + len(self._unsettled)
            known = unpriced < self._calls or not self._calls
            return Spent(
                calls=self._calls,
                input_tokens=self._input,
                output_tokens=self._output,
                neurons=self._neurons,
                cost_usd=round(self._usd, DECIMALS) if known else None,
                unpriced=unpriced,
            )

    def _settle(self) -> None:
        """Adds the costs of the answers whose prices are there by now."""
        waiting, self._unsettled = self._unsettled, []
        for call in waiting:
            provider, asked, answered, usage = call
            if not self.prices.ask(provider).done():
                self._unsettled.append(call)
                continue
            cost = self.prices.cost_of(provider, asked, answered, usage)
            self._usd += cost or 0.0
            self._unpriced += cost is None

    def _most(self, request: Request, price: Price | None) -> _Amount:
        most = self._estimates.most(request)
        return _Amount(most.input_tokens + most.output_tokens, cost_usd(most, price))

    def _why_not(self, provider: str, request: Request, amount: _Amount) -> StopRun | None:
        limits, tokens = self.limits, self._input + self._output
        spent = f"${self._usd:.6g} and {tokens:,} tokens are spent"
        again = "could be passed by the next call: raise it and run the same command again to go on"
        if limits.max_cost_usd is not None:
            if amount.usd is None:
                return BudgetSpent(
                    f"{provider}/{request.model}: nobody tells its price, so --max-cost cannot be kept: use "
                    "--max-tokens-total instead, or name another model"
                )
            if self._usd + (self._held.usd or 0.0) + amount.usd > limits.max_cost_usd:
                return BudgetSpent(f"{spent}, and --max-cost {limits.max_cost_usd:g} {again}")
        if limits.max_tokens is not None and tokens + self._held.tokens + amount.tokens > limits.max_tokens:
            return BudgetSpent(f"{spent}, and --max-tokens-total {limits.max_tokens} {again}")
        return None
