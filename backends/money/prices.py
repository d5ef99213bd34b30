"""What calls cost at the providers' list prices.

Costs are in US dollars, without free allowances, discounts and taxes.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from llmdo.backends.listing import deprecation, list_models
from llmdo.backends.providers import connect
from llmdo.backends.responses import Models, Price, Response
from llmdo.backends.usage import Usage, added

NEURON_USD = 0.011 / 1000  # developers.cloudflare.com/workers-ai/platform/pricing
DECIMALS = 12  # of sums: a token of the cheapest model costs 10,000 of such units
_TOKENS = Price().unit
# The models that run in this process.
FREE = frozenset({"local"})
_NOTHING = Price(0.0, 0.0, 0.0)

_LIST_S = 30.0  # timeout of a list: answers wait for their prices

_log = logging.getLogger(__name__)


def cost_usd(usage: Usage, price: Price | None) -> float | None:
    """What tokens cost, or neurons if the tokens' price is not known; None if neither is.

    Prices for other units than tokens are ignored, and so is the price of a model that costs something but reported no
    tokens. Cached tokens are part of the input. If there are more of them than of the input, they were counted beside
    it, and all of the input is paid in full.
    """
    if price is not None and price.unit == _TOKENS:
        cached, output = usage.cached_tokens, usage.output_tokens
        plain = usage.input_tokens - (0 if counts_beside(usage) else cached)
        rate = price.input if price.cached_input is None else price.cached_input
        known = (
            (not plain or price.input is not None)
            and (not cached or rate is not None)
            and (not output or price.output is not None)
        )
        if known and (usage.input_tokens or cached or output or price.input == 0 == (price.output or 0)):
            usd = plain * (price.input or 0.0) + cached * (rate or 0.0) + output * (price.output or 0.0)
            return round(usd / 1e6, DECIMALS)
    return None if usage.neurons is None else round(usage.neurons * NEURON_USD, DECIMALS)


def counts_beside(usage: Usage) -> bool:
    """Whether the cached tokens cannot be a part of the input."""
    return usage.cached_tokens > usage.input_tokens


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


class Prices:
    """Prices by provider and model, from the lists of ``list_of``, each of which is read once. Thread-safe.

    Warns once of a list that cannot be read and of a model without a known price, whose costs stay unknown, and of a
    model that is, or will be, switched off.
    """

    def __init__(self, list_of: Callable[[str], Models] = list_of) -> None:
        self._list_of = list_of
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
                threading.Thread(target=self._read, args=(provider, found), name="llmdo-prices", daemon=True).start()
            return found

    def problem(self, provider: str) -> str:
        """Why a provider's list could not be read, or ""."""
        return self._problems.get(provider, "")

    def of(self, provider: str, *models: str) -> Price | None:
        """The price of the first of these models that has one; waits for the list."""
        if provider in FREE:
            return _NOTHING
        prices = self.ask(provider).result()
        for model in models:
            price = prices.get(f"{provider}/{model}")
            if price is not None:
                return price
        return None

    def lists(self, provider: str, model: str) -> bool:
        """Whether a provider has a model, or has no list; waits for the list."""
        models = self.ask(provider).result()
        return not models or f"{provider}/{model}" in models

    def cost(self, provider: str, asked: str, *parts: Response) -> float | None:
        """What the parts of an answer cost, at the price of the model that answered, or else of the one asked for.

        Waits for the list. None if the cost is not known. Answers from a gateway's cache cost nothing.
        """
        used: dict[str, Usage] = {}
        for part in parts:
            if not is_cached(part):
                before = used.get(part.model)
                used[part.model] = part.usage if before is None else added(before, part.usage)
        costs = [self.cost_of(provider, asked, answered, usage) for answered, usage in used.items()]
        known = [usd for usd in costs if usd is not None]
        return round(sum(known), DECIMALS) if len(known) == len(costs) else None

    def cost_of(self, provider: str, asked: str, answered: str, usage: Usage) -> float | None:
        """The same for a usage, with or without an answer."""
        cost = cost_usd(usage, self.of(provider, answered, asked))
        if counts_beside(usage):
            self._warn_once(
                f"{provider}/{asked} cached",
                f"{provider}/{asked}: it reports more cached tokens ({usage.cached_tokens:,}) than tokens of input "
                f"({usage.input_tokens:,}): its costs are counted as if they came on top",
            )
        if cost is None:
            self._warn(f"{provider}/{asked}", "the provider reports no price, or no tokens: its cost is not known")
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
