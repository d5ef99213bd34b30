"""A chat's answer as a ``response`` object, as OpenAI's own types read it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llmdo.backends.responses import ChatResponse
from llmdo.backends.usage import Usage

# What is sent back as it was asked for, and the value where it was not.
_ECHOED: Mapping[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "prompt_cache_key": None,
    "reasoning": None,
    "safety_identifier": None,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": None,
    "top_p": None,
    "user": None,
}
_NEEDED = ("parallel_tool_calls", "tool_choice", "tools")
# Fields of a chat.completion that are read, or whose names have another meaning in a response.
_READ = frozenset(
    """choices completed_at conversation created id image input_transformations model moderation object prompt
    tool_usage usage""".split()
)
# Kinds of annotations that a response has, with the fields that they have at least.
_CITATIONS: Mapping[str, Mapping[str, Any]] = {
    "container_file_citation": {"container_id": "", "file_id": "", "filename": "", "start_index": 0, "end_index": 0},
    "file_citation": {"file_id": "", "filename": "", "index": 0},
    "file_path": {"file_id": "", "index": 0},
    "url_citation": {"url": "", "title": "", "start_index": 0, "end_index": 0},
}
_SAID = frozenset({"annotations", "content", "reasoning_content", "refusal", "role", "tool_calls"})


def response_object(response: ChatResponse, request_id: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The answer, whose settings are those that were ``asked``, the /v1/responses body.

    What else the service has sent is beside OpenAI's fields, in the response or in its message.
    """
    given = response.body
    cut = response.finish_reason == "length"
    identity = str(given.get("id") or response.request_id or request_id)
    created = given.get("created")
    fixed = {
        "id": identity,
        "object": "response",
        "created_at": created if isinstance(created, int | float) else 0,
        "status": "incomplete" if cut else "completed",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "model": response.model,
        "output": list(_items(response, identity)),
        "usage": usage_fields(response.usage),
        "background": False,
        "previous_response_id": None,
        "store": False,
        "truncation": "disabled",
        **{name: default if asked.get(name) is None else _flat(asked[name]) for name, default in _ECHOED.items()},
    }
    return fixed | {name: value for name, value in given.items() if name not in _READ and name not in fixed}


def as_for_responses(warnings: tuple[str, ...]) -> tuple[str, ...]:
    """What is not as asked about a chat's answer, by the name that the limit has in a /v1/responses body."""
    return tuple(warning.replace("raise max_tokens", "raise max_output_tokens") for warning in warnings)


def completed_response(
    given: Mapping[str, Any], request_id: str, asked: Mapping[str, Any], model: str
) -> dict[str, Any]:
    """A service's own response, and what OpenAI's types need of it: servers with its API leave some fields out."""
    identity = str(given.get("id") or request_id)
    items = given.get("output")
    needed = {
        "id": identity,
        "object": "response",
        "created_at": 0,
        "model": model,
        **{name: _ECHOED[name] if asked.get(name) is None else _flat(asked[name]) for name in _NEEDED},
    }
    return {
        **given,
        **{name: value for name, value in needed.items() if given.get(name) is None},
        "output": [_completed(item, identity) for item in items] if isinstance(items, list) else [],
        "usage": _completed_usage(given.get("usage")),
    }


def _completed(item: Any, identity: str) -> Any:
    kind = item.get("type") if isinstance(item, Mapping) else None
    if kind == "reasoning":
        return {"id": f"rs_{identity}", "summary": [], **item}
    if kind != "message":
        return item
    parts = item.get("content")
    content = [parts] if isinstance(parts, str) else parts if isinstance(parts, list) else []
    fixed = {"id": f"msg_{identity}", "role": "assistant", "status": "completed"}
    return {**fixed, **item, "content": [_completed_part(part) for part in content]}


def _completed_part(part: Any) -> Any:
    if isinstance(part, str):
        return {"type": "output_text", "text": part, "annotations": []}
    cited = isinstance(part, Mapping) and part.get("type") == "output_text" and part.get("annotations") is None
    return {**part, "annotations": []} if cited else part


def _completed_usage(usage: Any) -> Any:
    if not isinstance(usage, Mapping):
        return usage
    given, said = usage.get("input_tokens_details") or {}, usage.get("output_tokens_details") or {}
    tokens = {name: usage.get(name) or 0 for name in ("input_tokens", "output_tokens")}
    return {
        "total_tokens": sum(tokens.values()),
        **usage,
        **tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0, **given},
        "output_tokens_details": {"reasoning_tokens": 0, **said},
    }


def usage_fields(usage: Usage) -> dict[str, Any]:
    """What a call used, as a response has it."""
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": usage.cache_write_tokens},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def _flat(asked: Any) -> Any:
    """A setting as the API has it, also where it was written for a chat: ``{"type": "function", "function": {…}}``."""
    if isinstance(asked, list):
        return [_flat(one) for one in asked]
    if isinstance(asked, Mapping) and isinstance(inner := asked.get(str(asked.get("type"))), Mapping):
        return {"type": asked["type"], **inner}
    return asked


def _items(response: ChatResponse, identity: str) -> Iterator[dict[str, Any]]:
    choice: Mapping[str, Any] = (response.body.get("choices") or [{}])[0]
    message: Mapping[str, Any] = choice.get("message") or {}
    status = "incomplete" if response.finish_reason == "length" else "completed"
    if response.reasoning is not None:
        content = [{"type": "reasoning_text", "text": response.reasoning}]
        yield {"id": f"rs_{identity}", "type": "reasoning", "summary": [], "content": content, "status": status}
    if response.text is not None or not (response.tool_calls or response.reasoning):
        more = {name: value for name, value in message.items() if name not in _SAID}
        if others := [one for one in _annotations(message) if one["type"] not in _CITATIONS]:
            more["annotations"] = others
        part = _refusal(response) if response.refused else _text(response, message, choice)
        fixed = {"id": f"msg_{identity}", "type": "message", "role": "assistant", "status": status, "content": [part]}
        yield {**more, **fixed}
    for number, call in enumerate(response.tool_calls):
        yield _call(call, f"fc_{identity}_{number}", status)


def _refusal(response: ChatResponse) -> dict[str, Any]:
    return {"type": "refusal", "refusal": response.text or ""}


def _text(response: ChatResponse, message: Mapping[str, Any], choice: Mapping[str, Any]) -> dict[str, Any]:
    cited = [{**_CITATIONS[one["type"]], **one} for one in _annotations(message) if one["type"] in _CITATIONS]
    part = {"type": "output_text", "text": response.text or "", "annotations": cited}
    logprobs = (choice.get("logprobs") or {}).get("content") if isinstance(choice.get("logprobs"), Mapping) else None
    return {**part, "logprobs": [_logprob(one) for one in logprobs]} if isinstance(logprobs, list) else part


def _annotations(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """``{"type": "url_citation", "url_citation": {…}}`` of a chat is flat in a response."""
    given = message.get("annotations")
    listed = [one for one in given if isinstance(one, Mapping)] if isinstance(given, list) else []
    return [{"type": "", **_flat(one)} for one in listed]


def _logprob(given: Any) -> dict[str, Any]:
    """A chat's ``bytes`` and ``top_logprobs`` may be null, where a response has lists."""
    fields: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    top = fields.get("top_logprobs")
    alternatives = [{**one, "bytes": _bytes(one)} for one in top if isinstance(one, Mapping)] if top else []
    return {**fields, "bytes": _bytes(fields), "top_logprobs": alternatives}


def _bytes(token: Mapping[str, Any]) -> Any:
    return token.get("bytes") or list(str(token.get("token") or "").encode())


def _call(call: Mapping[str, Any], identity: str, status: str) -> dict[str, Any]:
    custom, function = call.get("custom"), call.get("function")
    if isinstance(custom, Mapping):
        named = {"name": str(custom.get("name") or ""), "input": str(custom.get("input") or "")}
        return {"id": identity, "type": "custom_tool_call", "call_id": str(call["id"]), **named}
    inner: Mapping[str, Any] = function if isinstance(function, Mapping) else {}
    named = {"name": str(inner.get("name") or ""), "arguments": str(inner.get("arguments") or "{}")}
    return {"id": identity, "type": "function_call", "call_id": str(call["id"]), **named, "status": status}
