"""Answers in JSON mode: checks them against their ``response_format``, and asks again for one that does not fit.

No provider's JSON mode guarantees the format, so every answer is checked here (see ``in_format``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any

from llmdo.backends.errors import BadReply, InvalidRequest, ModelError
from llmdo.backends.json_mode.checks import TooMuchWork, answer_problem, schema_problem, schema_problem_now
from llmdo.backends.money.billing import maybe_billed
from llmdo.backends.requests import ChatRequest, Message
from llmdo.backends.responses import ChatResponse
from llmdo.backends.usage import Usage, added

_FENCE = "```"
_FORMATS = ("text", "json_object", "json_schema")
_QUOTED = 4000  # characters of a wrong answer that the model is shown


def in_format(
    request: ChatRequest,
    answer: Callable[[ChatRequest, bool], Coroutine[Any, Any, ChatResponse]],
    provider: str,
    code: int | None = None,
) -> Coroutine[Any, Any, ChatResponse]:
    """The response of ``answer(request, fresh)``, which in JSON mode fits its ``response_format``.

    A response that does not fit is shown to the model once, with what is wrong; the usage is that of both calls. The
    second call is ``fresh``: not from a cache. Tool calls and refusals are not checked; with a schema that cannot be
    used for checking, the response must only be JSON. Raises BadReply with ``code`` if the second response does not fit
    either, and what ``answer`` raises.
    """
    wanted: Any = request.parameters.get("response_format")
    if not wants_json(wanted):
        return answer(request, False)
    return _in_format(request, wanted, answer, provider, code)


async def _in_format(
    request: ChatRequest,
    wanted: Any,
    answer: Callable[[ChatRequest, bool], Coroutine[Any, Any, ChatResponse]],
    provider: str,
    code: int | None,
) -> ChatResponse:
    response = await answer(request, False)
    unusable = await schema_problem(json.dumps(schema_of(wanted))) if _has_schema(wanted) else None
    if unusable:
        wanted = {"type": "json_schema"}
        warning = f"the answer was not checked by its JSON Schema: {unusable}"
        response = replace(response, warnings=(*response.warnings, warning))
    response = without_fence(response)
    problem = await format_problem(response, wanted)
    if problem and response.finish_reason != "length":
        try:
            second = without_fence(await answer(asked_again(request, response, problem), True))
        except ModelError as error:  # the first answer is paid for anyway
            error.lost = maybe_billed(error)
            error.usage = added(response.usage, error.usage or Usage())
            raise
        warning = f"the model was asked twice, since {problem}"
        usage = added(response.usage, second.usage)
        response = replace(second, usage=usage, warnings=(*second.warnings, warning))
        problem = await format_problem(response, wanted)
        problem = problem and f"{problem}, also when asked again"
    if problem:
        raise BadReply(
            f"{request.model}: {problem}; make the schema simpler, or name another model",
            code=code,
            request_id=response.request_id,
            provider=provider,
            usage=response.usage,
        )
    return response


def wants_json(response_format: Any) -> bool:
    """Whether a request's ``response_format`` asks for JSON."""
    return isinstance(response_format, Mapping) and response_format.get("type") in ("json_object", "json_schema")


def check_format(response_format: Any, model: str, provider: str) -> None:
    """Raises InvalidRequest for a ``response_format`` that cannot be requested; see also check_schema."""
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if kind not in _FORMATS:
        raise InvalidRequest(
            f'{model}: response_format is {_excerpt(response_format)}: write {{"type": …}} with one of '
            f"{', '.join(_FORMATS)}",
            provider=provider,
        )


async def check_schema(response_format: Any, model: str, provider: str) -> None:
    """Raises InvalidRequest for a JSON Schema that cannot be used for checking."""
    if _has_schema(response_format):
        _refuse(await schema_problem(json.dumps(schema_of(response_format))), model, provider)


def check_schema_now(response_format: Any, model: str, provider: str) -> None:
    """The same, outside of an event loop: it blocks."""
    if _has_schema(response_format):
        _refuse(schema_problem_now(json.dumps(schema_of(response_format))), model, provider)


def _has_schema(response_format: Any) -> bool:
    return isinstance(response_format, Mapping) and response_format.get("type") == "json_schema"


def _refuse(problem: str | None, model: str, provider: str) -> None:
    if problem:
        raise InvalidRequest(
            f"{model}: the JSON Schema of response_format cannot be used: {problem}", provider=provider
        )


def _excerpt(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def without_fence(response: ChatResponse) -> ChatResponse:
    """The answer without the Markdown fence that some models put around JSON, and with a warning about it."""
    # Not with a regular expression, which would take quadratic time for a long run of blanks.
    text = (response.text or "").strip()
    head, line, rest = text.partition("\n")
    fenced = head.rstrip(" \t").lower() in (_FENCE, f"{_FENCE}json") and line and rest.endswith(_FENCE)
    if not fenced:
        return response
    inside = rest.removesuffix(_FENCE).rstrip(" \t").removesuffix("\n")
    return replace(response, text=inside, warnings=(*response.warnings, "a code fence around the JSON was removed"))


async def format_problem(response: ChatResponse, response_format: Any) -> str | None:
    """What is wrong with an answer, in a clause; None if it fits, calls tools or refuses, or if JSON was not requested.

    Raises TooMuchWork if the check takes too long, with the answer's usage: it is paid for.
    """
    if not wants_json(response_format) or response.tool_calls or response.refused:
        return None
    schema = "" if response_format["type"] == "json_object" else json.dumps(schema_of(response_format))
    try:
        problem = await answer_problem(response.text or "", schema)
    except TooMuchWork as error:
        text = f"{response.model}: {error.message}: make the schema simpler"
        raise TooMuchWork(text, usage=response.usage, request_id=response.request_id) from None
    if problem and response.finish_reason == "length":
        return f"the JSON is cut off at {response.usage.output_tokens} tokens: raise max_tokens"
    return problem


def schema_of(response_format: Mapping[str, Any]) -> Any:
    """The JSON Schema, bare or in OpenAI's wrapper ``{"name", "schema", "strict"}``; else True, which allows all."""
    given = response_format.get("json_schema", True)
    wrapped = isinstance(given, dict) and isinstance(given.get("schema"), dict)
    return given["schema"] if wrapped else given


def asked_again(request: ChatRequest, response: ChatResponse, problem: str) -> ChatRequest:
    """The conversation with the wrong answer, and what is wrong with it."""
    wrong = Message("assistant", (response.text or "")[:_QUOTED])
    text = f"This cannot be used: {problem}. Answer again, with nothing but JSON that fits."
    return replace(request, messages=(*request.messages, wrong, Message("user", text)))
