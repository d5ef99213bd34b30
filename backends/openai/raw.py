"""Bodies that go to the user as they came, of OpenAI's Responses and older completions: whether they are answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llmdo.backends.errors import BadReply, ContentFiltered, InvalidRequest, ModelError, unusable_vector
from llmdo.backends.finish_reasons import FAILURES, finish_error, finish_of, finish_warning
from llmdo.backends.http.reply_json import mapping
from llmdo.backends.openai.messages import as_text, tool_calls
from llmdo.backends.openai.shapes import answer_warnings, failed_choice, first_choice, no_choice, read_usage
from llmdo.backends.openai.vectors import read_vector
from llmdo.backends.requests import RawRequest
from llmdo.backends.responses import ChatResponse
from llmdo.backends.usage import Usage

# Statuses of a response that is still being made: it was asked for in the background.
STILL_MADE = frozenset({"in_progress", "queued"})
# Fields of a response that a ChatResponse has of its own, or that its row has by another name.
_READ = frozenset({"finish_reason", "object", "output", "output_text", "status"})
# What an item of a response's output, and a part of its content, hold that is read.
_ITEM = frozenset({"arguments", "call_id", "content", "id", "name", "role", "status", "summary", "type"})
_PART = frozenset({"annotations", "logprobs", "refusal", "text", "type"})
_CALLS = frozenset({"custom_tool_call", "function_call"})


def check_answered_now(request: RawRequest) -> None:
    """Raises InvalidRequest for a body of /v1/responses that a call would be paid for, and get no answer."""
    if request.path == "responses" and request.input.get("background"):
        text = "no call waits for an answer in the background: leave background out, or run with --lane 2h or 8h"
        raise InvalidRequest(f"{request.model}: {text}")


def raw_warnings(body: Any, model: str) -> tuple[str, ...]:
    """What is not as asked about a ``response`` or a ``text_completion``; nothing about any other body.

    Raises ContentFiltered, Retryable where the answer failed, and BadReply.
    """
    fields = mapping(body)
    choice, reason = first_choice(fields), None
    if choice is not None:
        reason = choice.get("finish_reason")
        ended = failed_choice(choice, model)
    elif is_response(fields):
        ended = failed_response(fields, model)
        if ended is None:
            return _response_warnings(fields)
    else:
        ended = no_choice(fields, model)
    if ended is not None:
        raise ended
    if finish_of(reason) == "length":
        return (f"the answer is cut off at {read_usage(body).output_tokens} tokens: raise its limit",)
    odd = finish_warning(reason)
    return (odd,) if odd else ()


def _response_warnings(fields: Mapping[str, Any]) -> tuple[str, ...]:
    response = read_response(fields)
    tokens = read_usage(fields).output_tokens
    said = bool(response.text or response.tool_calls or response.body.get("output"))
    odd = answer_warnings(response.finish_reason, tokens, said, thought=bool(response.reasoning))
    return (*response.warnings, *(warning.replace("max_tokens", "max_output_tokens") for warning in odd))


def read_response(fields: Mapping[str, Any]) -> ChatResponse:
    """A body of the Responses API as a chat's answer; usage, model and ids are the caller's to add.

    ``body`` has ``output`` where that holds more than text, reasoning and tool calls.
    """
    output = fields.get("output")
    items = [item for item in output if isinstance(item, dict)] if isinstance(output, list) else []
    messages = [item for item in items if item.get("type") == "message"]
    refusals = [as_text(part.get("refusal")) or "" for item in messages for part in _parts(item)]
    text = "".join(map(_said, messages)) or as_text(fields.get("output_text"))
    reasoning = "".join(_said(item) for item in items if item.get("type") == "reasoning")
    refusal = "" if text else "".join(refusals)
    calls = tool_calls([item for item in items if item.get("type") in _CALLS])
    reason = response_reason(fields) or "completed"
    finish = "tool_calls" if calls and reason == "completed" else finish_of(reason)
    body: dict[str, Any] = {name: value for name, value in fields.items() if name not in _READ}
    if not all(map(_is_read, items)):
        body["output"] = output
    if refusal:
        body["choices"] = [{"index": 0, "message": {"content": None, "refusal": refusal}}]
    odd = finish_warning(reason)
    return ChatResponse(
        # Empty text is not an answer where the model called tools, or spent its tokens on reasoning.
        text=refusal or (None if not text and (calls or reasoning) else text),
        finish_reason=finish,
        usage=Usage(),
        model="",
        reasoning=reasoning or None,
        tool_calls=calls,
        warnings=(*(("the model refused",) if refusal else ()), *((odd,) if odd else ())),
        body=body,
    )


def _parts(item: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The parts of an item's content, or of its summary."""
    parts = item.get("content") or item.get("summary") or []
    return [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []


def _said(item: Mapping[str, Any]) -> str:
    content = item.get("content")
    return content if isinstance(content, str) else "".join(str(part.get("text") or "") for part in _parts(item))


def _is_read(item: Mapping[str, Any]) -> bool:
    """Whether text, reasoning and tool calls are all that an item of a response's output holds."""
    known = item.get("type") in ("message", "reasoning", "function_call") and item.keys() <= _ITEM
    return known and not any(_has_more(part) for part in _parts(item))


def _has_more(part: Mapping[str, Any]) -> bool:
    return bool(part.keys() - _PART or part.get("annotations") or part.get("logprobs"))


def without_bad_vectors(body: Any, model: str, warn: Callable[[str], None]) -> Any:
    """A list of embeddings in which a vector that holds NaN or infinity is null, with an ``error`` beside it.

    ``warn`` gets a sentence that names its place. Raises BadReply where no vector is left. Any other body is as it was.
    """
    rows = mapping(body).get("data")
    listed = rows if isinstance(rows, list) else []
    bad = [number for number, row in enumerate(listed) if read_vector(mapping(row).get("embedding")) == ()]
    if not bad:
        return body
    error = unusable_vector(model, read_usage(body))
    if len(bad) == len(listed):
        raise error
    said = {"embedding": None, "error": {"code": None, "message": error.message}}
    for number in bad:
        warn(f"text {number} has no vector: {error.message}")
    return {**body, "data": [{**row, **said} if number in bad else row for number, row in enumerate(listed)]}


def is_response(body: Any) -> bool:
    """Whether a body is one of the Responses API."""
    return mapping(body).get("object") == "response"


def response_reason(body: Any) -> Any:
    """Why a response ended: the reason that it is incomplete for, else its status."""
    fields = mapping(body)
    return mapping(fields.get("incomplete_details")).get("reason") or fields.get("status")


def failed_response(body: Any, model: str) -> ModelError | None:
    """The error of a response that failed, was cancelled or filtered, or is not made yet; None for an answer.

    One that is incomplete for want of tokens is an answer that is cut off.
    """
    fields = mapping(body)
    error, status = mapping(fields.get("error")), fields.get("status")
    words = as_text(error.get("message")) or ""
    if status in STILL_MADE:
        return BadReply(
            f"{model} has not answered yet (status {status}): omit background: llmdo does not ask again later"
        )
    code = str(error.get("code") or "")
    if "policy" in code or "safety" in code:
        text = f"{model}: the filter withheld the answer ({code}: {words}): change the prompt"
        return ContentFiltered(text, code=code)
    reason = response_reason(fields)
    if error and reason not in FAILURES:
        reason = "failed"
    return finish_error(reason, model, words)
