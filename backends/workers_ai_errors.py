"""Workers AI's refusals: which error each code, status and text means, and what to do about it.

Codes: developers.cloudflare.com/workers-ai/platform/errors, and 3021, 3030, 3046, 4006, 5001, 5021, 5024, 5025, 5028
and 5035 as users report them. Those of AI Gateway, 2000 and above: ai-gateway/features/guardrails, and users' reports.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from backends.errors import (
    AccountBlocked,
    BadReply,
    CallTimeout,
    ContentFiltered,
    ContextOverflow,
    InvalidRequest,
    LicenceNotAccepted,
    ModelError,
    ModelNotFound,
    ModelRetired,
    Overloaded,
    PlanRequired,
    QuotaExhausted,
    RateLimited,
    Retryable,
    Unauthorized,
)
from backends.refusal_body import Body, read_body
from backends.refusal_rows import COMPATIBLE, CONTEXT
from backends.refusals import Meaning, Refusals, Row, make_error, words

PROVIDER = "workers-ai"


_QUOTA = Meaning(
    QuotaExhausted,
    "the day's free allocation of neurons is used",
    "go on after 00:00 UTC, or change to the Workers Paid plan",
    ends="UTC",
)
_BUSY = Meaning(Overloaded, "the model is out of capacity", "lower --concurrency, or try later")
_RATE = Meaning(RateLimited, "too many requests this minute", "lower --concurrency")
_SLOW = Meaning(CallTimeout, "the model took too long", "ask for fewer tokens, or send a shorter prompt")
_TOKEN = Meaning(
    Unauthorized,
    "the token is not valid here",
    "check {key} (it needs Workers AI Read and Edit) and CLOUDFLARE_ACCOUNT_ID",
)
_INVALID = Meaning(InvalidRequest, "the input does not fit the model", "compare it with the model's input schema")
_NO_MODEL = Meaning(ModelNotFound, "there is no such model", "list them with `llmdo models workers-ai`")
_NOT_ALLOWED = Meaning(ModelNotFound, "the model is not open to this account", "name another model")

_NO_CREDITS = Meaning(QuotaExhausted, "the AI Gateway's credits are used", "load credits, or leave --gateway out")
_RETIRED = Meaning(
    ModelRetired, "the model was switched off", "name its successor: `llmdo models workers-ai` lists those there are"
)
_PLAN = Meaning(PlanRequired, "the model is not part of the account's plan", "change the plan, or name another model")
_NO_JSON = Meaning(Retryable, "the model did not keep to the JSON schema", "make the schema simpler")

CODES: Mapping[int, Meaning] = {
    2001: Meaning(Unauthorized, "there is no such AI Gateway", "check --gateway, or create it in the dashboard"),
    2002: Meaning(Retryable, "AI Gateway could not read what the model sent", "try later, or leave --gateway out"),
    2003: Meaning(
        RateLimited, "the AI Gateway's own rate limit is reached", "lower --rpm, or raise the gateway's limit"
    ),
    2009: Meaning(
        Unauthorized,
        "the AI Gateway refuses the token",
        "set CLOUDFLARE_AI_GATEWAY_TOKEN to a token with AI Gateway Run, and check {key}",
    ),
    2014: Meaning(CallTimeout, "AI Gateway waited too long for the model", "ask for fewer tokens"),
    2016: Meaning(ContentFiltered, "the AI Gateway's guardrails blocked the prompt", "change the prompt"),
    2017: Meaning(ContentFiltered, "the AI Gateway's guardrails blocked the answer", "change the prompt"),
    2019: Meaning(InvalidRequest, "AI Gateway cannot use the input", "compare it with the model's input schema"),
    2021: _NO_CREDITS,
    2047: Meaning(Unauthorized, "AI Gateway has no valid key for the provider", "check the keys that it keeps"),
    2049: _NO_CREDITS,
    3003: Meaning(InvalidRequest, "the request is incomplete", "compare it with the model's input schema"),
    3006: Meaning(ContextOverflow, "the request is too large", "shorten or split the input"),
    3007: _SLOW,
    3008: Meaning(CallTimeout, "the call was aborted", "try later"),
    3021: _RATE,
    3023: Meaning(AccountBlocked, "the account is blocked", "write to Cloudflare's support"),
    3030: Meaning(ContentFiltered, "the output was withheld by the filter", "change the prompt"),
    3036: _QUOTA,
    3039: Meaning(InvalidRequest, "the fine-tune's files are missing", "upload the fine-tune again"),
    3040: _BUSY,
    3041: _NOT_ALLOWED,
    3042: _NO_MODEL,
    3046: _SLOW,
    4006: _QUOTA,
    5001: Meaning(Overloaded, "the service failed inside", "try later"),
    5004: Meaning(InvalidRequest, "the base64 data is invalid", "encode the input again"),
    5005: Meaning(InvalidRequest, "the model takes no LoRA", "leave lora out, or name a -lora model"),
    5006: _INVALID,
    5007: _NO_MODEL,
    5016: Meaning(
        LicenceNotAccepted,
        "the model's licence is not accepted yet",
        "send it the prompt 'agree' once with `llmdo ask agree --model …`",
    ),
    5018: _NOT_ALLOWED,
    5019: Meaning(InvalidRequest, "the model refuses this kind of client", "name another model"),
    5021: CONTEXT,
    5024: _NO_JSON,
    5025: Meaning(InvalidRequest, "the model takes no JSON schema", "leave response_format out, or name another model"),
    5028: _RETIRED,
    5035: _PLAN,
    7000: Meaning(
        ModelNotFound, "there is no such route", "check the model's name, and CLOUDFLARE_BASE_URL if every line fails"
    ),
    7003: Meaning(Unauthorized, "there is no such account", "check CLOUDFLARE_ACCOUNT_ID"),
    7009: Meaning(Overloaded, "the service behind the API is unavailable", "try later"),
    10000: _TOKEN,
}

# Known only by their text, before the codes, because the code beside them differs.
TEXTS: tuple[Row, ...] = (
    words(r"daily free allocation", 200, 429, meaning=_QUOTA),
    words(r"maximum context length|context window limit", 200, 400, 403, 413, meaning=CONTEXT),
    words(
        r"model (?:was|has been|is) (?:deprecated|retired)|model is no longer available",
        *(200, 400, 403, 404, 410),
        meaning=_RETIRED,
    ),
    words(
        r"not (?:available|supported) (?:on|in|for) (?:the )?(?:workers )?free|requires? .{0,20}paid",
        *(200, 400, 402, 403),
        meaning=_PLAN,
    ),
    words(r"JSON Mode couldn't be met", 200, 400, 422, 500, meaning=_NO_JSON),
)

STATUSES: Mapping[int, Meaning] = {
    **COMPATIBLE.statuses,
    3: Meaning(BadReply, "the service redirects elsewhere", "correct CLOUDFLARE_BASE_URL"),
    4: _INVALID,
    401: replace(_TOKEN, about="unclear"),
    402: replace(_PLAN, about="unclear"),
    403: replace(_TOKEN, about="unclear"),
    404: replace(_NO_MODEL, about="unclear"),
    410: _RETIRED,
}
_CHALLENGE = Meaning(
    AccountBlocked,
    "Cloudflare's bot protection challenges this machine's address",
    "run it from another network, or ask Cloudflare's support to allow the address",
)
_PAGE = Meaning(
    AccountBlocked,
    "a web page refuses the call, in the place of the API",
    "look for a firewall or proxy between, check CLOUDFLARE_BASE_URL, or run it from another network",
    "unclear",  # a firewall may dislike one prompt
)
# There was an answer, and it was withheld.
_ANSWERED = frozenset({2017, 3030})
_CODE_IN_TEXT = re.compile(r"\b(\d{4,5}):")

CLOUDFLARE = Refusals(TEXTS, CODES, STATUSES)


def refusal(status: int, headers: Mapping[str, str], body: object, model: str, now: float) -> ModelError:
    """The error that a reply means. ``body`` is parsed JSON, or the text of a body that is not JSON (an HTML page).

    ``now``: Unix time in seconds, for Retry-After dates and the end of a used quota.
    """
    read = read_body(body)
    if status < 300:  # an error inside a success, or in a stream: some services put the status beside it
        status = read.status or status
    found = numbers(read)
    # The first code that the table knows, else the first there is: as Cloudflare's own provider reads it.
    code = next((number for number in found if number in CODES), found[0] if found else None)
    in_text = (int(digits) for digits in _CODE_IN_TEXT.findall(read.words))
    code = code if code in CODES else next((number for number in in_text if number in CODES), code)
    return make_error(
        _meaning(status, code, read, headers),
        read,
        headers,
        now,
        model=model,
        status=status,
        code=code,
        request_id=request_id(headers),
        provider=PROVIDER,
        key="CLOUDFLARE_API_TOKEN",
        lost=True if code in _ANSWERED else None,
    )


def numbers(read: Body) -> list[int]:
    """Cloudflare's codes in a body; a status that is named there is none."""
    return [int(code) for code in read.codes if re.fullmatch(r"\d{4,9}", code, re.ASCII)]


def is_refusal(body: object) -> bool:
    """Whether a JSON body is an error although its HTTP status is 200."""
    if not isinstance(body, dict):
        return False
    if body.get("success") is False or body.get("internalCode"):
        return True
    return bool(body.get("errors") or body.get("error")) and not body.get("success") and "object" not in body


def request_id(headers: Mapping[str, str]) -> str | None:
    """The provider's id of a call."""
    return headers.get("cf-ai-req-id") or headers.get("cf-ray")


def _meaning(status: int, code: int | None, read: Body, headers: Mapping[str, str]) -> Meaning:
    if headers.get("cf-mitigated") == "challenge":
        return _CHALLENGE
    if status == 403 and code is None and "html" in headers.get("content-type", ""):
        return _PAGE
    return (
        CLOUDFLARE.known(status, [code], read.words)
        or COMPATIBLE.known(status, (code.lower() for code in read.codes), f"{read.words} {' '.join(read.codes)}")
        or CLOUDFLARE.by_status(status)
    )
