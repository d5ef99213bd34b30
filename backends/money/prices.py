"""What calls cost at the providers' list prices.

Costs are in US dollars, without free allowances, discounts and taxes.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache

from llmdo.backends.listing import deprecation, list_models
from llmdo.backends.money.own_prices import OwnPrices, own_price
from llmdo.backends.money.published import published_price
from llmdo.backends.providers import connect, is_passed_on, prices_at
from llmdo.backends.responses import Models, Price, Response
from llmdo.backends.usage import Usage, added

NEURON_USD = 0.011 / 1000  # developers.cloudflare.com/workers-ai/platform/pricing
DECIMALS = 12  # of sums: a token of the cheapest model costs 10,000 of such units
_TOKENS = Price().unit
# The models that run in this process.
FREE = frozenset({"local"})
_NOTHING = Price(0.0, 0.0, 0.0)

_KEPT = 1024  # prices by model and lane
_LIST_S = 30.0  # timeout of a list: answers wait for their prices

_END_S = 2.0  # for how long the process's end waits for lists that are being read

_log = logging.getLogger(__name__)
# A thread that computes while the interpreter is taken down can take the process down with it.
_reading: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


@atexit.register
def _end_reading() -> None:
    until = time.monotonic() + _END_S
    for thread in list(_reading):
        thread.join(max(0.0, until - time.monotonic()))


def cost_usd(usage: Usage, price: Price | None) -> float | None:
    """What tokens cost, or neurons if the tokens' price is not known; None if neither is.

    Prices for other units than tokens are ignored, and so is the price of a model that costs something but reported no
    tokens. Cached, written and audio tokens are part of the input. If there are more of them than of the input, they
    were counted beside it, and all of the input is paid in full.
    """
    if price is not None and price.unit == _TOKENS:
        price = _tier(price, usage.input_tokens)
        kept_long = min(usage.cache_write_1h_tokens, usage.cache_write_tokens)
        inputs = (
            (usage.cached_tokens, price.cached_input),
            (usage.cache_write_tokens - kept_long, price.cache_write),
            (kept_long, price.cache_write if price.cache_write_1h is None else price.cache_write_1h),
            (usage.input_audio_tokens, price.input_audio),
        )
        outputs = ((usage.reasoning_tokens, price.reasoning), (usage.output_audio_tokens, price.output_audio))
        costs = (_cost(usage.input_tokens, price.input, inputs), _cost(usage.output_tokens, price.output, outputs))
        used = usage.input_tokens or usage.output_tokens or usage.cached_tokens
        if None not in costs and (used or price.input == 0 == (price.output or 0)):
            return round(sum(filter(None, costs)) / 1e6 + (price.request or 0.0), DECIMALS)
    return None if usage.neurons is None else round(usage.neurons * NEURON_USD, DECIMALS)


def _tier(price: Price, input_tokens: int) -> Price:
    for tokens, other in reversed(price.above):
        if input_tokens > tokens:
            return other
    return price


def _cost(tokens: int, rate: float | None, parts: Iterable[tuple[int, float | None]]) -> float | None:
    """Of tokens, parts of which have a rate of their own, in millionths of dollars; None for an unknown rate."""
    usd, plain = 0.0, tokens
    for count, own in parts:
        if not count:
            continue
        part_rate = rate if own is None else own
        if part_rate is None:
            return None
        usd += count * part_rate
        plain -= count
    if plain < 0:  # counted beside
        plain = tokens
    if plain and rate is None:
        return None
    return usd + plain * (rate or 0.0)


def counts_beside(usage: Usage) -> bool:
    """Whether the cached tokens cannot be a part of the input."""
    return usage.cached_tokens + usage.cache_write_tokens > usage.input_tokens


def is_cached(response: Response) -> bool:
    """Whether an AI Gateway answered from its cache, without calling a model (ai-gateway/features/caching)."""
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


def _published(provider: str, models: Sequence[str], lane: str = "") -> Price | None:
    where = prices_at(provider)
    if where is None:
        return None
    publisher, url = where
    return next((price for model in models if (price := published_price(publisher, model, url, lane=lane))), None)


def caching_pays(provider: str, model: str) -> bool:
    """Whether a model is published to cache, at a price that is lower over two calls: a write and a read."""
    price = _published(provider, (model,))
    if price is None or price.input is None or price.cached_input is None:
        return False
    written = price.input if price.cache_write is None else price.cache_write
    return written + price.cached_input < 2 * price.input


class Prices:
    """Prices by provider and model. Thread-safe.

    What the user says holds; else what the provider's list says, by ``list_of``, each of which is read once; else what
    is published elsewhere. A lane without a price of its own costs the list price.

    Warns once of a list that cannot be read and of a model without a known price, whose costs stay unknown, and of a
    model that is, or will be, switched off.
    """

    def __init__(self, list_of: Callable[[str], Models] = list_of, own: OwnPrices = ()) -> None:
        self._list_of = list_of
        self.own = own
        self._used: dict[str, Price] = {}
        self._found = lru_cache(_KEPT)(self._find)  # asked of every call, and each answer may name another model
        self._ending: dict[str, str] = {}  # by the models' full names; complete once the provider's list is read
        self._problems: dict[str, str] = {}
        self._lists: dict[str, Future[dict[str, Price | None]]] = {}
        self._lock = threading.Lock()
        self._warned: set[str] = set()

    def ask(self, provider: str) -> Future[dict[str, Price | None]]:
        """The prices of a provider's list by the models' full names, empty if it cannot be read. Starts to read it."""
        with self._lock:
            found = self._lists.get(provider)
            if found is not None:
                return found
            found = self._lists[provider] = Future()
            if provider in FREE:
                found.set_result({})
            else:
                thread = threading.Thread(target=self._read, args=(provider, found), name="llmdo-prices", daemon=True)
                _reading.add(thread)
                thread.start()
            return found

    def problem(self, provider: str) -> str:
        """Why a provider's list could not be read, or ""."""
        return self._problems.get(provider, "")

    def of(self, provider: str, *models: str, lane: str = "") -> Price | None:
        """The price in a lane of the first of these models that has one; waits for the list."""
        if provider in FREE:
            return _NOTHING
        return self._found(provider, models, lane)

    def _find(self, provider: str, models: tuple[str, ...], lane: str) -> Price | None:
        price = own_price(self.own, provider, models) if self.own else None
        if price is not None:
            return dict(price.lanes).get(lane, price)
        if lane and (price := _published(provider, models, lane)) is not None:
            return price
        prices = self.ask(provider).result()
        listed = next((price for model in models if (price := prices.get(f"{provider}/{model}")) is not None), None)
        if listed is not None and listed.unit == _TOKENS:
            return listed
        return _published(provider, models) or listed

    def lane_factor(self, provider: str, model: str, lane: str) -> float | None:
        """What a lane costs, as a part of list price; None where one of both is not known, or not read yet."""
        own = own_price(self.own, provider, (model,)) if self.own else None
        if own is None and not self.ask(provider).done():
            return None
        usual, less = self.of(provider, model), self.of(provider, model, lane=lane)
        if usual is None or less is None or not usual.input or less.input is None:
            return None
        return less.input / usual.input

    def used(self) -> dict[str, Price]:
        """The prices by which costs were counted, by the models' full names as asked, ``openai/gpt-5 (batch)``."""
        return dict(self._used)

    def lists(self, provider: str, model: str) -> bool:
        """Whether a provider has a model, or has no list of such models; waits for the list."""
        if is_passed_on(provider, model):
            return True
        models = self.ask(provider).result()
        return not models or f"{provider}/{model}" in models

    def cost(self, provider: str, asked: str, *parts: Response) -> float | None:
        """What the parts of an answer cost, at the price of the model that answered, or else of the one asked for.

        Waits for the list. None if the cost is not known. Answers from a gateway's cache cost nothing.
        """
        used: dict[tuple[str, str], Usage] = {}
        for part in parts:
            if not is_cached(part):
                how = part.model, part.lane
                used[how] = part.usage if how not in used else added(used[how], part.usage)
        costs = [self.cost_of(provider, asked, answered, usage, lane) for (answered, lane), usage in used.items()]
        known = [usd for usd in costs if usd is not None]
        return round(sum(known), DECIMALS) if len(known) == len(costs) else None

    def cost_of(self, provider: str, asked: str, answered: str, usage: Usage, lane: str = "") -> float | None:
        """The same for a usage, with or without an answer."""
        price = self.of(provider, answered, asked, lane=lane)
        if price is not None:
            self._used.setdefault(f"{provider}/{asked}{lane and f' ({lane})'}", price)
        cost = cost_usd(usage, price)
        if counts_beside(usage):
            cached = usage.cached_tokens + usage.cache_write_tokens
            self._warn_once(
                f"{provider}/{asked} cached",
                f"{provider}/{asked}: it reports more cached tokens ({cached:,}) than tokens of input "
                f"({usage.input_tokens:,}): its costs are counted as if they came on top",
            )
        if cost is None:
            self._warn(
                f"{provider}/{asked}",
                "nobody publishes its price, or the provider reports no tokens: its cost is not known (name it by "
                "--price-file, in Python by prices=)",
            )
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
            now = time.time()
            date = datetime.fromtimestamp(now - listed.age_s, UTC).date().isoformat()
            for info in listed.models:
                price = info.price
                prices[info.name] = price and replace(price, source=f"the list of {provider}", date=date)
            if not any(prices.values()):
                _published(provider, ("",))  # here its data may take a tenth of a second to load
            self._ending |= {info.name: said for info in listed.models if (said := deprecation(info, now))}
            if listed.problem:
                self._warn(provider, f"prices are {listed.age_s / 3600:.1f} hours old: {listed.problem}")
        except Exception as error:  # noqa: BLE001 - without prices the answers are as good
            self._problems[provider] = str(error)
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
