"""A /v1/responses body that is passed on, whose answer is checked by its ``text.format`` as a chat's is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from llmdo.backends.errors import BadReply
from llmdo.backends.http.reply_json import excerpt
from llmdo.backends.json_mode.answers import in_format, wants_json
from llmdo.backends.limits.sizes import count_of
from llmdo.backends.requests import ChatRequest, RawRequest
from llmdo.backends.responses import ChatResponse, RawResponse
from llmdo.backends.responses_api.chat_request import response_format
from llmdo.backends.responses_api.response_object import completed_response, usage_fields
from llmdo.backends.usage import Usage

_Send = Callable[[RawRequest], Awaitable[RawResponse]]
_Read = Callable[[Mapping[str, Any]], ChatResponse]


async def checked_response(request: RawRequest, send: _Send, again: _Send, read: _Read, provider: str) -> RawResponse:
    """The response of ``send``; in JSON mode one that fits its format, see in_format. ``read``: as a chat's answer.

    ``again``: by which a model is asked that has not kept to its format. What OpenAI's types need, and the service has
    not sent, is added. Raises BadReply for what is not a response.
    """
    response = await _checked(request, send, again, read, provider)
    if not isinstance(response.result, Mapping) or not isinstance(response.result.get("output"), list):
        return _as_it_came(request.model, response)
    limit, used = count_of(request.input.get("max_output_tokens")), response.usage.output_tokens
    if response.result.get("status") == "completed" and limit is not None and used >= limit:  # as llama.cpp has it
        odd = f"the answer has all {used} tokens that it may have, and may be cut off: raise max_output_tokens"
        response = replace(response, warnings=(*response.warnings, odd))
    result = completed_response(response.result, request.request_id, request.input, response.model)
    return replace(response, result=result)


def _as_it_came(model: str, response: RawResponse) -> RawResponse:
    """What is not a response, but may be an answer, since it was paid for. Raises BadReply for any other."""
    what = f"{model} sent a reply that is not a response ({excerpt(response.result)})"
    named = response.result.get("object") if isinstance(response.result, Mapping) else "response"
    if response.usage == Usage() or named in ("response", "chat.completion"):
        text = f"{what}: check the base URL, or use the url /v1/chat/completions"
        raise BadReply(text, usage=response.usage)
    return replace(response, warnings=(*response.warnings, f"{what}: it is as it came"))


async def _checked(request: RawRequest, send: _Send, again: _Send, read: _Read, provider: str) -> RawResponse:
    text = request.input.get("text")
    wanted = response_format(text.get("format")) if isinstance(text, Mapping) else None
    if not wants_json(wanted):
        return await send(request)
    sent: list[RawResponse] = []

    async def answer(asked: ChatRequest, second: bool) -> ChatResponse:
        turns = [{"type": "message", "role": one.role, "content": one.content} for one in asked.messages]
        whole = {**request.input, **_with(request.input.get("input"), turns)}
        raw = await (again if second else send)(replace(request, input=whole))
        sent.append(raw)
        return replace(
            read(raw.result if isinstance(raw.result, Mapping) else {}),
            usage=raw.usage,
            model=raw.model,
            request_id=raw.request_id,
            warnings=raw.warnings,
            details=raw.details,
        )

    # Only what is said when it is asked again stands in the messages of this chat.
    asked = ChatRequest(request.model, (), {"response_format": wanted}, request.request_id)
    response = await in_format(asked, answer, provider)
    last = sent[-1]
    result = last.result
    if response.text != read(result).text:
        result = {**result, "output": [_with_text(item, response.text) for item in result.get("output") or []]}
    if len(sent) > 1:
        result = {**result, "usage": usage_fields(response.usage)}
    return replace(last, result=result, usage=response.usage, warnings=response.warnings)


def _with(given: Any, turns: list[dict[str, Any]]) -> dict[str, Any]:
    """The ``input`` with turns behind it."""
    if not turns:
        return {}
    before = given if isinstance(given, list) else [{"type": "message", "role": "user", "content": given}]
    return {"input": [*before, *turns]}


def _with_text(item: Any, text: str | None) -> Any:
    """An item of the output, whose text is another one: without the fence around it."""
    parts = item.get("content") if isinstance(item, dict) and item.get("type") == "message" else None
    if not isinstance(parts, list):
        return item
    first = next((part for part in parts if isinstance(part, dict) and part.get("type") == "output_text"), {})
    return {**item, "content": [{**first, "type": "output_text", "text": text}]}
