"""Parameters that more than one provider reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backends.errors import InvalidRequest


def token_limit(parameters: Mapping[str, Any], provider: str) -> int | None:
    """The limit of tokens that a request sets for its answer, by its old name or its new one; None without one.

    Raises InvalidRequest where it is no whole number of at least 1.
    """
    limits = (parameters.get(name) for name in ("max_tokens", "max_completion_tokens"))
    limit = next((limit for limit in limits if limit is not None), None)
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise InvalidRequest(f"max_tokens is {limit!r}: write a whole number of at least 1", provider=provider)
    return limit
