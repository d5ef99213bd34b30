"""Which models a line may name; otherwise anybody who can write to the input could spend on all accounts."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import lru_cache

from llmdo.backends.errors import LineError
from llmdo.backends.providers import lacks_model, split_model

SAME_PROVIDER, ANY, NONE = "same-provider", "any", "none"
# Lines may name what they like: the run's own model is asked.
IGNORE = "ignore"


class ModelNotAllowed(LineError):
    """The line names a model that this run does not allow lines to choose; a retry that allows it answers the line."""


@lru_cache
def rules_of(text: str) -> tuple[str, ...]:
    """The rules in ``text``: same-provider and globs, separated by commas; ``any`` is ``*``, ``none`` is empty, and so
    is ``ignore``.

    A glob matches PROVIDER/MODEL, and ``*`` also matches ``/``; ``@cf/…`` means ``workers-ai/@cf/…``.

    Raises ValueError for anything else.
    """
    if text == ANY:
        return ("*",)
    if text in (NONE, IGNORE):
        return ()
    rules = [rule.strip() for rule in text.split(",")]
    for rule in rules:
        if rule != SAME_PROVIDER and not {"*", "/"} & set(rule):
            raise ValueError(
                f"{rule!r} matches no PROVIDER/MODEL: write {SAME_PROVIDER}, {ANY}, {NONE}, {IGNORE}, or globs such "
                f"as '{SAME_PROVIDER},openai/*'"
            )
    return tuple("/".join(split_model(rule)) if rule.startswith("@") else rule for rule in rules)


def check_line_model(allowed: str, provider: str, model: str, default: str) -> None:
    """Raises ModelNotAllowed unless a line's model is ``allowed``, or the ``default`` that it would get anyway."""
    name, rules = f"{provider}/{model}", rules_of(allowed)
    if name == default or _matches(rules, provider, name, default.partition("/")[0]):
        if name != default and lacks_model(provider, model):
            raise ModelNotAllowed(
                f"the line names {model}, which is not a model of {provider}: --line-models {IGNORE} (in Python "
                "line_models) asks the run's own model, also for this line with llmdo retry OUTPUT --line-models "
                f"{IGNORE}",
                provider=provider,
            )
        return
    # The line's text must not be in the remedy, which somebody may paste into a shell.
    more = ",".join((*rules, f"{provider}/*"))
    raise ModelNotAllowed(
        f"the line names {name}, and --line-models {allowed} does not allow that: allow it with --line-models "
        f"'{more}' (in Python line_models), also for this line with llmdo retry OUTPUT --line-models '{more}'",
        provider=provider,
    )


def _matches(rules: Sequence[str], provider: str, name: str, default_provider: str) -> bool:
    return any(provider == default_provider if rule == SAME_PROVIDER else fnmatchcase(name, rule) for rule in rules)
