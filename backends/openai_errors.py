"""Refusals of OpenAI's API, and of the servers that speak it: which error each code, text and status means.

Codes: platform.openai.com/docs/guides/error-codes. Besides: llama.cpp's ``type``, vLLM's and Ollama's texts, Azure's
``innererror``, and Cloudflare's envelope, in which its OpenAI route refuses. Bodies: ``{"error": {"message", "type",
"code"}}``, ``{"error": "…"}``, ``{"object": "error", …}``, ``{"detail": …}``, ``{"errors": [{"code", "message"}]}``,
text, HTML.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from backends.errors import (
    AccountBlocked,
    BadReply,
    CallTimeout,
    ContentFiltered,
    ContextOverflow,
    InvalidRequest,
    ModelError,
    ModelNotFound,
    ModelRetired,
    Overloaded,
    QuotaExhausted,
    RateLimited,
    Unauthorized,
)
from backends.http import retry_after_s
from backends.openai_shapes import mapping
from backends.refusals import Meaning, one_line, page_text, sentence

_KEY = Meaning(Unauthorized, "the key is not valid here", "check the key in {key} and the base URL")
_CREDIT = Meaning(QuotaExhausted, "the account's credit is used", "add credit, or raise its limit, then run it again")
_DAY = Meaning(QuotaExhausted, "the day's allowance is used", "go on when it comes back, or raise the account's tier")
_RATE = Meaning(RateLimited, "too many requests or tokens this minute", "lower --concurrency")
_BUSY = Meaning(Overloaded, "the service is overloaded", "lower --concurrency, or try later")
_FAILED = Meaning(Overloaded, "the service failed", "try later")
_SLOW = Meaning(CallTimeout, "the service took too long", "ask for fewer tokens, or send a shorter prompt")
_CONTEXT = Meaning(
    ContextOverflow, "input and max_tokens do not fit the context window", "shorten the prompt, or lower max_tokens"
)
_TOO_LARGE = Meaning(
    ContextOverflow,
    "the request alone is above the account's tokens a minute",
    "shorten the prompt, or lower max_tokens",
)
_FILTER = Meaning(ContentFiltered, "the filter refused the prompt or the answer", "change the prompt")
_NO_MODEL = Meaning(ModelNotFound, "there is no such model here", "list them with `llmdo models {provider}`")
_RETIRED = Meaning(ModelRetired, "the model was switched off", "name another from `llmdo models {provider}`")
_INVALID = Meaning(InvalidRequest, "the request does not fit the model", "correct or leave out what it names")
_BLOCKED = Meaning(AccountBlocked, "the account or this place may not call the service", "ask the provider's support")

CODES: Mapping[str, Meaning] = {
    "account_deactivated": _BLOCKED,
    "authentication_error": _KEY,
    "billing_hard_limit_reached": _CREDIT,
    "billing_not_active": _CREDIT,
    "content_filter": _FILTER,
    "content_policy_violation": _FILTER,
    "context_length_exceeded": _CONTEXT,
    "deploymentnotfound": _NO_MODEL,
    "engine_overloaded": _BUSY,
    "exceed_context_size_error": _CONTEXT,
    "incorrect_api_key": _KEY,
    "insufficient_quota": _CREDIT,
    "invalid_api_key": _KEY,
    "invalid_organization": _KEY,
    "mismatched_organization": _KEY,
    "model_deprecated": _RETIRED,
    "model_not_found": _NO_MODEL,
    "not_found_error": _NO_MODEL,
    "notfounderror": _NO_MODEL,
    "not_supported_error": Meaning(InvalidRequest, "the server cannot do this", "start it with what it names"),
    "organization_restricted": _BLOCKED,
    "overloaded_error": _BUSY,
    "rate_limit_exceeded": _RATE,
    "responsibleaipolicyviolation": _FILTER,
    "server_error": _FAILED,
    "slow_down": _RATE,
    "string_above_max_length": _CONTEXT,
    "unavailable_error": Meaning(Overloaded, "the server is still loading its model", "wait until it is loaded"),
    "unsupported_country_region_territory": _BLOCKED,
}

# Known by their text, under the statuses where it is not a prompt that the service repeats; looked at before the codes.
TEXTS: tuple[tuple[re.Pattern[str], frozenset[int], Meaning], ...] = (
    (re.compile(r"request too large", re.IGNORECASE), frozenset({429}), _TOO_LARGE),
    (re.compile(r"\bper day\b|\((?:RPD|TPD)\)|daily free allocation"), frozenset({429}), _DAY),
    (re.compile(r"exceeded your current quota", re.IGNORECASE), frozenset({429}), _CREDIT),
    (re.compile(r"has been (?:deprecated|retired|shut down)", re.IGNORECASE), frozenset({400, 404, 410}), _RETIRED),
    (
        re.compile(r"maximum context length|exceeds the available context size|context window", re.IGNORECASE),
        frozenset({200, 400, 413, 422, 500}),
        _CONTEXT,
    ),
    (re.compile(r"does not exist|not found, try pulling", re.IGNORECASE), frozenset({404}), _NO_MODEL),
    (re.compile(r"no such model", re.IGNORECASE), frozenset({400, 404}), _NO_MODEL),
)

STATUSES: Mapping[int, Meaning] = {
    401: replace(_KEY, about="unclear"),
    402: replace(_CREDIT, about="unclear"),
    403: Meaning(
        Unauthorized,
        "the service refuses this request, or the key",
        "check what the key in {key} is allowed, and the base URL",
        "unclear",
    ),
    404: Meaning(
        ModelNotFound, "there is no such model or route", "check the model's name and the base URL", "unclear"
    ),
    408: _SLOW,
    409: Meaning(Overloaded, "another call is in the way", "try later"),
    410: _RETIRED,
    451: Meaning(
        AccountBlocked,
        "the service may not answer this, or not here, for legal reasons",
        "change the prompt, or ask the provider's support",
        "unclear",
    ),
    413: Meaning(ContextOverflow, "the request is too large", "shorten or split the input"),
    429: _RATE,
    501: Meaning(InvalidRequest, "the server cannot do this", "start it with what it names"),
    504: _SLOW,
    522: _SLOW,
    524: _SLOW,
}
HUNDREDS: Mapping[int, Meaning] = {
    2: Meaning(BadReply, "the service reports an error that is not documented", "read what it said"),
    3: Meaning(BadReply, "the service redirects elsewhere", "correct the base URL"),
    4: _INVALID,
    5: _FAILED,
}

# "6m0s", "1.5s", "120ms": how OpenAI writes durations, in x-ratelimit-reset-* and in its sentences.
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_SECONDS = (86_400.0, 3_600.0, 60.0, 1.0, 0.001)
_TRY_AGAIN = re.compile(r"try again in ([\d.dhms]*[dhms])")


def refusal(
    status: int, headers: Mapping[str, str], body: object, model: str, provider: str, key: str, now: float
) -> ModelError:
    """The error that a reply means. ``body`` is parsed JSON, or the text of a body that is no JSON (an HTML page).

    ``key``: the variable that holds the key. ``now``: Unix time in seconds.
    """
    said, codes = _text(body), list(_codes(body))
    if status < 300:  # an error inside a success, or in a stream: some servers put the status beside it
        status = next(
            (int(code) for code in codes if len(code) == 3 and code.isdecimal() and 400 <= int(code) < 600), status
        )
    meaning = _meaning(status, codes, said)
    words = next((code for code in codes if not code.isdecimal()), None)
    numbers = f"{words}, HTTP {status}" if words else f"HTTP {status}"
    wait = wait_s(headers, said, now)
    remedy = meaning.remedy.replace("{key}", key).replace("{provider}", provider)
    return meaning.error(
        sentence(model, replace(meaning, remedy=remedy), numbers, said),
        status=status,
        code=words,
        retry_after=wait,
        request_id=headers.get("x-request-id"),
        provider=provider,
        until=None if wait is None else now + wait,
        about=meaning.about,
    )


def is_refusal(body: object) -> bool:
    """Whether a JSON body, or a stream's event, is an error whatever its HTTP status."""
    if not isinstance(body, dict):
        return False
    if body.get("error") or body.get("object") == "error" or body.get("success") is False:
        return True
    return "detail" in body and "choices" not in body


def wait_s(headers: Mapping[str, str], said: str, now: float) -> float | None:
    """Seconds that a refusal asks to wait: ``retry-after-ms``, ``Retry-After``, the reset of the limit that is used up
    (``x-ratelimit-remaining-*`` is 0), or the sentence's "try again in 20s"; None where nothing says.
    """
    try:
        return max(0.0, float(headers.get("retry-after-ms", "")) / 1000)
    except ValueError:
        pass
    asked = retry_after_s(headers, now)
    if asked is not None:
        return asked
    resets = [
        duration_s(headers.get(f"x-ratelimit-reset-{what}", ""))
        for what in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{what}", "").strip() == "0"
    ]
    told = _TRY_AGAIN.search(said)
    waits = [wait for wait in (*resets, duration_s(told[1]) if told else None) if wait is not None]
    return max(waits, default=None)


def duration_s(text: str) -> float | None:
    """Seconds of ``1h6m0s``, ``120ms``; None for what is no duration."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or not match[0]:
        return None
    return sum(float(part) * factor for part, factor in zip(match.groups(), _SECONDS, strict=True) if part)


def _meaning(status: int, codes: list[str], said: str) -> Meaning:
    by_text = next((row for pattern, statuses, row in TEXTS if status in statuses and pattern.search(said)), None)
    by_code = next((CODES[code.lower()] for code in codes if code.lower() in CODES), None)
    return by_text or by_code or STATUSES.get(status) or HUNDREDS[min(max(status // 100, 2), 5)]


def _codes(body: object) -> Iterator[str]:
    """The codes of an error, the most precise one first."""
    outer = mapping(body)
    error = mapping(outer.get("error")) or _first(outer.get("errors")) or outer
    for value in (mapping(error.get("innererror")).get("code"), error.get("code"), error.get("type")):
        if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
            yield str(value)


def _text(body: object) -> str:
    if isinstance(body, str):
        return page_text(body)
    outer = mapping(body)
    error, first = outer.get("error"), _first(outer.get("errors"))
    found: tuple[Any, ...] = (mapping(error).get("message"), error, first.get("message"))
    found += (outer.get("message"), outer.get("detail"))
    return next((one_line(text) for text in found if isinstance(text, str) and text), "")


def _first(errors: Any) -> Mapping[str, Any]:
    return mapping(errors[0]) if isinstance(errors, list) and errors else {}
