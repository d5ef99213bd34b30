"""A chat's body as one of /v1/responses, for what only that route does: what each of its fields becomes.

What has no place there is refused; nothing is left out that an answer may depend on.
Source: platform.openai.com/docs/api-reference/responses/create, and the types of the official client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llmdo.backends.errors import InvalidRequest
from llmdo.backends.responses_api.chat_request import text_format

_ROUTE = "/v1/responses"
_LEAST_TOKENS = 16  # as the API answers: "integer below minimum value"
_SAME = frozenset(
    """metadata model moderation parallel_tool_calls prompt_cache_key prompt_cache_options prompt_cache_retention
    safety_identifier service_tier temperature top_p user""".split()
)
# What asks for nothing that a response has not anyway.
_NOTHING: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "n": (1,),
    "presence_penalty": (0,),
    "stop": ([],),
    "store": (True,),
    "stream": (False,),
}
_PARTS = {"text": "input_text", "image_url": "input_image", "file": "input_file"}
_FILE = frozenset({"file_data", "file_id", "filename"})


def responses_body(chat: Mapping[str, Any]) -> dict[str, Any]:
    """The body that asks for the same as a chat.completion's. Raises InvalidRequest for what has no place there."""
    if chat.get("store") is False:
        raise InvalidRequest("background responses are kept by the service, and store is false")
    body: dict[str, Any] = {}
    for name, value in chat.items():
        if value is None or any(value == nothing for nothing in _NOTHING.get(name, ())):
            continue
        if name in _SAME:
            body[name] = value
        elif name in _TRANSLATED:
            for field, inner in _TRANSLATED[name](value):
                known = body.get(field)
                body[field] = {**known, **inner} if isinstance(known, dict) else inner
        else:
            raise _no_place(name)
    return body


_Fields = Iterator[tuple[str, Any]]


def _messages(messages: Any) -> _Fields:
    custom = [
        call.get("id")
        for message in messages
        for call in _listed(message.get("tool_calls"), "tool_calls")
        if isinstance(call, Mapping) and call.get("type") == "custom"
    ]
    yield "input", [item for message in messages for item in _items(message, custom)]


def _items(message: Mapping[str, Any], custom: list[Any]) -> Iterator[dict[str, Any]]:
    """A message as the items that it becomes; ``custom``: ids of calls of custom tools."""
    given = {name: value for name, value in message.items() if value not in (None, [])}
    role, content = given.pop("role", None), given.pop("content", None)
    if role == "tool":
        call = given.pop("tool_call_id", None)
        _nothing_else(given, "message")
        kind = "custom_tool_call_output" if call in custom else "function_call_output"
        yield {"type": kind, "call_id": call, "output": _content(content)}
        return
    if role not in ("system", "developer", "user", "assistant"):
        raise _no_place(f"messages of {role!r}")
    calls, refusal = given.pop("tool_calls", []), given.pop("refusal", "")
    _nothing_else(given, "message")
    if not isinstance(refusal, str):
        raise InvalidRequest("'refusal' must be a string")
    said = _turn(content) + refusal if role == "assistant" else _content(content)
    if said or not calls:
        yield {"type": "message", "role": role, "content": said}
    for call in calls:
        yield _call(call)


def _turn(content: Any) -> str:
    """What the assistant has said, as text alone: its parts would need the ids of a response."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in _listed(content, "content"):
        kind, inner = _typed(part, "text")
        if kind not in ("text", "refusal"):
            raise _no_place(f"part {kind!r} of the assistant's")
        texts.append(str(inner or ""))
    return "".join(texts)


def _content(content: Any) -> Any:
    """A message's content: text stays, parts get the names that they have there."""
    return [_part(part) for part in content] if isinstance(content, list) else content or ""


def _part(part: Any) -> dict[str, Any]:
    kind, inner = _typed(part, "text")
    if inner is None or kind not in _PARTS or part.keys() - {"type", kind, "prompt_cache_breakpoint"}:
        raise _no_place(f"part {kind!r}")
    more = {"prompt_cache_breakpoint": part["prompt_cache_breakpoint"]} if "prompt_cache_breakpoint" in part else {}
    if kind == "text":
        return {"type": _PARTS[kind], "text": inner, **more}
    if kind == "file":
        if not isinstance(inner, Mapping):
            raise InvalidRequest("the file of a part must be an object")
        _nothing_else({name: one for name, one in inner.items() if name not in _FILE}, "file")
        return {"type": _PARTS[kind], **inner, **more}
    image = inner if isinstance(inner, Mapping) else {"url": inner}
    return {"type": _PARTS[kind], "image_url": image.get("url"), "detail": image.get("detail") or "auto", **more}


def _call(call: Any) -> dict[str, Any]:
    kind, inner = _typed(call, "function")
    if kind not in ("function", "custom") or not isinstance(inner, Mapping):
        raise _no_place(f"tool call {kind!r}")
    named = {"call_id": call.get("id"), "name": inner.get("name")}
    if kind == "custom":
        return {"type": "custom_tool_call", **named, "input": inner.get("input") or ""}
    return {"type": "function_call", **named, "arguments": inner.get("arguments") or "{}"}


def _tools(tools: Any) -> _Fields:
    if listed := _listed(tools, "tools"):
        yield "tools", [_tool(tool) for tool in listed]


def _tool(tool: Any) -> dict[str, Any]:
    kind, inner = _typed(tool, "function")
    if kind not in ("function", "custom") or not isinstance(inner, Mapping):
        raise _no_place(f"tool {kind!r}")
    if kind == "function":  # strict unless it says otherwise, where a chat's is not
        return {"type": kind, "parameters": None, **inner, "strict": bool(inner.get("strict"))}
    form = inner.get("format")
    grammar = form.get("grammar") if isinstance(form, Mapping) else None
    return {
        "type": kind,
        **inner,
        **({"format": {"type": "grammar", **grammar}} if isinstance(grammar, Mapping) else {}),
    }


def _tool_choice(choice: Any) -> _Fields:
    yield "tool_choice", _chosen(choice)


def _chosen(choice: Any) -> Any:
    if not isinstance(choice, Mapping):
        return choice
    kind = choice.get("type")
    inner = choice.get(str(kind))
    if not isinstance(inner, Mapping):
        return dict(choice)
    if kind == "allowed_tools":
        return {"type": kind, **inner, "tools": [_chosen(tool) for tool in _listed(inner.get("tools"), "tools")]}
    return {"type": kind, **inner}


def _response_format(wanted: Any) -> _Fields:
    if not isinstance(wanted, Mapping):
        raise InvalidRequest("'response_format' must be an object")
    if wanted.get("type") != "text":
        yield "text", {"format": text_format(wanted)}


def _verbosity(value: Any) -> _Fields:
    yield "text", {"verbosity": value}


def _effort(value: Any) -> _Fields:
    yield "reasoning", {"effort": value}


def _limit(value: Any) -> _Fields:
    if isinstance(value, int) and value < _LEAST_TOKENS:
        raise InvalidRequest(f"{_ROUTE} takes no limit below {_LEAST_TOKENS} tokens, and it is {value}")
    yield "max_output_tokens", value


def _logprobs(wanted: Any) -> _Fields:
    if wanted:
        yield "include", ["message.output_text.logprobs"]


def _top_logprobs(count: Any) -> _Fields:
    yield "top_logprobs", count


_TRANSLATED: Mapping[str, Callable[[Any], _Fields]] = {
    "logprobs": _logprobs,
    "max_completion_tokens": _limit,
    "max_tokens": _limit,
    "messages": _messages,
    "reasoning_effort": _effort,
    "response_format": _response_format,
    "tool_choice": _tool_choice,
    "tools": _tools,
    "top_logprobs": _top_logprobs,
    "verbosity": _verbosity,
}


def _typed(given: Any, default: str) -> tuple[Any, Any]:
    """The type of a part, a tool or a call, and what stands under that name; None of what has none."""
    kind = given.get("type", default) if isinstance(given, Mapping) else None
    return kind, given.get(kind) if isinstance(kind, str) else None


def _listed(given: Any, name: str) -> list[Any]:
    """A list, or nothing. Raises InvalidRequest for what is neither."""
    if given is not None and not isinstance(given, list):
        raise InvalidRequest(f"{name!r} must be an array")
    return given or []


def _nothing_else(given: Mapping[str, Any], where: str) -> None:
    for name in given:
        raise _no_place(f"{name!r} of a {where}")


def _no_place(what: str) -> InvalidRequest:
    return InvalidRequest(f"{_ROUTE} has no {what if ' ' in what else repr(what)}")
