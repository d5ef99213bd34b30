"""The providers' models as a table, or as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.table import Table
from rich.text import Text

from llmdo.backends.errors import ModelError
from llmdo.backends.providers import PROVIDERS
from llmdo.backends.responses import ModelInfo, Models, Price
from llmdo.backends.sync import connect
from llmdo.settings.environment import MissingSettings


@dataclass(frozen=True, slots=True)
class Listed:
    """A provider's list, or why there is none."""

    provider: str
    list: Models | None
    problem: str = ""


def read_lists(provider: str | None, task: str = "") -> list[Listed]:
    """The models of a provider, or of all providers: those whose task, or else whose name, contains ``task``.

    A provider that was not asked for by name, and cannot be asked, has a problem instead of a list. Raises ModelError
    and MissingSettings for the one that was.
    """
    if provider is not None:
        return [Listed(provider, _fitting(_read(provider), task))]
    lists = []
    for name in PROVIDERS:
        try:
            lists.append(Listed(name, _fitting(_read(name), task)))
        except (ModelError, MissingSettings) as error:
            lists.append(Listed(name, None, str(error)))
    return lists


def as_json(lists: Iterable[Listed]) -> list[dict[str, Any]]:
    """One object a provider: ``{"provider", "age_s", "problem", "models": [ModelInfo …]}``."""
    return [
        {
            "provider": listed.provider,
            "age_s": listed.list.age_s if listed.list else None,
            "problem": listed.problem or (listed.list.problem if listed.list else ""),
            "models": [asdict(model) | {"capabilities": sorted(model.capabilities)} for model in _models(listed)],
        }
        for listed in lists
    ]


def table(lists: Iterable[Listed]) -> Table:
    """A row for each model, by provider, task and name."""
    shown = Table("MODEL", "TASK", box=None, pad_edge=False)
    shown.columns[0].overflow = "fold"
    shown.add_column("CONTEXT, TOKENS", justify="right")
    shown.add_column("USD IN / OUT, PER M TOKENS", justify="right")
    shown.add_column("CAN")
    shown.add_column("SWITCHED OFF")
    for listed in lists:
        for model in _models(listed):
            context = f"{model.context_tokens:,}" if model.context_tokens else ""
            can = ", ".join(sorted(model.capabilities))
            cells = (model.name, model.task, context, price_text(model.price), can, model.deprecated)
            shown.add_row(*map(Text, cells))
    return shown


def problems(lists: Iterable[Listed]) -> list[str]:
    """Sentences on what is not as it should be: providers that have no list, and lists that are old."""
    found = []
    for listed in lists:
        if listed.list is None:
            found.append(f"{listed.provider} is not listed: {listed.problem}")
        elif listed.list.problem:
            minutes = listed.list.age_s / 60
            found.append(f"the list of {listed.provider} is {minutes:.0f} minutes old: {listed.list.problem}")
    return found


def price_text(price: Price | None) -> str:
    """Dollars in and out for a million tokens or another unit; "" if unknown."""
    if price is None:
        return ""
    told = [f"{dollars:g}" for dollars in (price.input, price.output) if dollars is not None]
    unit = "" if price.unit == Price().unit else f" {price.unit}"
    return " / ".join(told) + unit


def _read(provider: str) -> Models:
    with connect(provider) as model:
        return model.list_models()


def _fitting(models: Models, task: str) -> Models:
    wanted = task.casefold()
    kept = (model for model in models.models if wanted in (model.task or model.name).casefold())
    return replace(models, models=tuple(kept))


def _models(listed: Listed) -> list[ModelInfo]:
    return sorted(listed.list.models if listed.list else (), key=lambda model: (model.task, model.name))
