"""What Cloudflare's refusals mean, of Workers AI and of AI Gateway: one row for each code, sentence and status."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from llmdo.backends.errors import (
    AccountBlocked,
    BadReply,
    CallTimeout,
    ContentFiltered,
    ContextOverflow,
    InvalidRequest,
    LicenceNotAccepted,
    ModelNotFound,
    ModelRetired,
    Overloaded,
    PlanRequired,
    QuotaExhausted,
    RateLimited,
    Retryable,
    Unauthorized,
)
from llmdo.backends.refusals.body import Body
from llmdo.backends.refusals.meanings import Meaning, Refusals, Row, words
from llmdo.backends.refusals.rows import COMPATIBLE_REFUSALS, CONTEXT

_QUOTA = Meaning(
    QuotaExhausted,
    "the day's free allocation of neurons is used",
    "resume after 00:00 UTC, or change to the Workers Paid plan",
    ends="UTC",
)
_BUSY = Meaning(Overloaded, "the model is out of capacity", "lower the concurrency, or try later")
_RATE = Meaning(RateLimited, "too many requests this minute", "lower the concurrency")
_SLOW = Meaning(CallTimeout, "the model took too long", "ask for fewer tokens, or send a shorter prompt")
_TOKEN = Meaning(
    Unauthorized,
    "the token is not valid here",
    "check {key} (it needs Workers AI Read and Edit) and CLOUDFLARE_ACCOUNT_ID",
)
_INVALID = Meaning(InvalidRequest, "the input does not fit the model", "compare it with the model's input schema")
_NO_MODEL = Meaning(ModelNotFound, "there is no such model", "list them with `llmdo models workers-ai`")
_NOT_ALLOWED = Meaning(ModelNotFound, "the model is not open to this account", "name another model")
_NO_CREDITS = Meaning(QuotaExhausted, "the AI Gateway's credits are used", "load credits, or leave the gateway out")
_RETIRED = Meaning(
    ModelRetired, "the model was switched off", "name its successor: `llmdo models workers-ai` lists those there are"
)
_PLAN = Meaning(PlanRequired, "the model is not part of the account's plan", "change the plan, or name another model")
_NO_JSON = Meaning(Retryable, "the model did not keep to the JSON schema", "make the schema simpler")

CODES: Mapping[int, Meaning] = {
    2001: Meaning(Unauthorized, "there is no such AI Gateway", "check the gateway's id, or create it in the dashboard"),
    2002: Meaning(Retryable, "AI Gateway could not read what the model sent", "try later, or leave the gateway out"),
    2003: Meaning(RateLimited, "the AI Gateway's own rate limit is reached", "lower rpm, or raise the gateway's limit"),
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
    **COMPATIBLE_REFUSALS.statuses,
    3: Meaning(BadReply, "the service redirects elsewhere", "correct CLOUDFLARE_BASE_URL"),
    4: _INVALID,
    401: replace(_TOKEN, about="unclear"),
    402: replace(_PLAN, about="unclear"),
    403: replace(_TOKEN, about="unclear"),
    404: replace(_NO_MODEL, about="unclear"),
    410: _RETIRED,
}


CLOUDFLARE_REFUSALS = Refusals(TEXTS, CODES, STATUSES)


def numbers(read: Body) -> list[int]:
    """Cloudflare's codes in a body; a status that is named there is none."""
    return [int(code) for code in read.codes if re.fullmatch(r"\d{4,9}", code, re.ASCII)]
