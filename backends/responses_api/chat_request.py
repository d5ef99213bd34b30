"""A /v1/responses body as a chat, for services that have no such route: what each of its fields becomes.

What can be left out without another answer is named in a warning; what cannot is refused with a reason.
Source: platform.openai.com/docs/api-reference/responses/create.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from llmdo.backends.errors import InvalidRequest, short
from llmdo.backends.requests import ChatRequest, Message
from llmdo.backends.responses_api.input_items import read_items

_Warn = Callable[[str], object]


class Field(NamedTuple):
    """What becomes of a field in a chat.

    Attributes:
        how: ``same``: a parameter of this name; ``content``: of the conversation; ``translated``: see ``as``;
            ``left out``: with a warning, unless the value is in ``nothing``; ``refused``.
        note: what it becomes, or why not.
        nothing: values that ask for nothing a chat does not do anyway.
    """

    how: Literal["same", "content", "translated", "left out", "refused"]
    note: str = ""
    nothing: tuple[Any, ...] = ()


_NOT_KEPT = "a line is answered by itself: write the earlier turns into 'input'"
FIELDS: Mapping[str, Field] = {
    "access_programs": Field("left out", "it is OpenAI's own"),
    "background": Field("left out", "an answer is written when it is complete"),
    "background_options": Field("left out", "an answer is written when it is complete"),
    "context_management": Field("left out", "a chat is sent whole"),
    "conversation": Field("refused", _NOT_KEPT),
    "image": Field("left out", "a chat has no such setting"),
    "include": Field("translated", "logprobs, for message.output_text.logprobs; others are left out"),
    "input": Field("content", "the messages"),
    "instructions": Field("content", "the first message, of the role system"),
    "max_output_tokens": Field("translated", "max_tokens"),
    "max_tool_calls": Field("left out", "a chat's tools are called by who asks"),
    "metadata": Field("content", "in the response, as it is"),
    "model": Field("content", "the model"),
    "moderation": Field("same"),
    "parallel_tool_calls": Field("same"),
    "previous_response_id": Field("refused", _NOT_KEPT),
    "prompt": Field("refused", "it is kept by OpenAI: write its text into 'instructions' and 'input'"),
    "prompt_cache_key": Field("same"),
    "prompt_cache_options": Field("same"),
    "prompt_cache_retention": Field("same"),
    "reasoning": Field("translated", "reasoning_effort, for effort; others are left out"),
    "safety_identifier": Field("same"),
    "service_tier": Field("same"),
    "store": Field("left out", "no response is kept by the service", (False,)),
    "stream": Field("left out", "an answer is written when it is complete", (False,)),
    "stream_options": Field("left out", "an answer is written when it is complete"),
    "temperature": Field("same"),
    "text": Field("translated", "response_format, for format; verbosity"),
    "tool_choice": Field("translated", "tool_choice, in a chat's form"),
    "tools": Field("translated", "tools, in a chat's form; hosted ones are refused"),
    "top_logprobs": Field("translated", "top_logprobs, with logprobs"),
    "top_p": Field("same"),
    "truncation": Field("left out", "an input that is too long is an error", ("disabled",)),
    "user": Field("same"),
}
_UNKNOWN = Field("same")  # what servers have besides, such as top_k
_TOOLS = ("function", "custom")
_LOGPROBS = "message.output_text.logprobs"


def as_chat(
    body: Mapping[str, Any],
    model: str,
    request_id: str,
    warn: _Warn,
    defaults: Mapping[str, Any] | None = None,
) -> ChatRequest:
    """The conversation that a body asks for. ``defaults``: parameters of a chat, which the body's own override.

    Raises InvalidRequest for what would be answered otherwise than by /v1/responses.
    """
    check_alone(body)
    parameters: dict[str, Any] = {}
    for name, value in body.items():
        field = FIELDS.get(name, _UNKNOWN)
        if value is None or value in field.nothing or field.how == "content":
            continue
        if field.how == "same":
            parameters[name] = value
        elif field.how == "left out":
            warn(f"{name} was left out: {field.note}")
        elif field.how == "refused":
            raise InvalidRequest(f"{model} is asked by a chat, which cannot have {name!r}: {field.note}")
        else:
            parameters.update(_TRANSLATED[name](value, warn))
    messages = read_items(body.get("input"), warn)
    if (instructions := body.get("instructions")) is not None:
        # It may also be a list of items, as in a response that is sent back.
        first = [Message("system", instructions)] if isinstance(instructions, str) else read_items(instructions, warn)
        messages = [*first, *messages]
    return ChatRequest(model, tuple(messages), {**(defaults or {}), **parameters}, request_id)


def check_alone(body: Mapping[str, Any]) -> None:
    """Raises InvalidRequest for a body that continues what a service has kept, which may be gone or other by then."""
    for name in ("previous_response_id", "conversation"):
        if body.get(name) is not None:
            raise InvalidRequest(f"{name!r} cannot be used: {FIELDS[name].note}")


def _limit(value: Any, _: _Warn) -> dict[str, Any]:
    return {"max_tokens": value}


def _include(value: Any, warn: _Warn) -> dict[str, Any]:
    wanted = value if isinstance(value, list) else [value]
    for other in wanted:
        if other != _LOGPROBS:
            warn(f"include of {short(other)} was left out: a chat's answer has no such part")
    return {"logprobs": True} if _LOGPROBS in wanted else {}


def _top_logprobs(value: Any, _: _Warn) -> dict[str, Any]:
    return {"logprobs": True, "top_logprobs": value}


def _reasoning(value: Any, warn: _Warn) -> dict[str, Any]:
    fields = _object("reasoning", value)
    _others("reasoning", fields, {"effort"}, warn)
    return {"reasoning_effort": fields["effort"]} if fields.get("effort") is not None else {}


def _text(value: Any, warn: _Warn) -> dict[str, Any]:
    fields = _object("text", value)
    _others("text", fields, {"format", "verbosity"}, warn)
    found = {"verbosity": fields["verbosity"]} if fields.get("verbosity") is not None else {}
    wanted = response_format(fields.get("format"))
    return found | ({"response_format": wanted} if wanted else {})


def response_format(wanted: Any) -> dict[str, Any] | None:
    """The format of a ``text``, as a chat's ``response_format``; None for plain text."""
    if not isinstance(wanted, Mapping) or wanted.get("type") == "text":
        return None
    if wanted.get("type") != "json_schema" or "schema" not in wanted:
        return dict(wanted)
    inner = {name: value for name, value in wanted.items() if name != "type" and value is not None}
    return {"type": "json_schema", "json_schema": {"name": "answer", **inner}}


def text_format(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """A chat's ``response_format`` as the format of a ``text``."""
    inner = wanted.get("json_schema")
    if wanted.get("type") != "json_schema" or not isinstance(inner, Mapping):
        return dict(wanted)
    named = inner if isinstance(inner.get("schema"), Mapping) else {"schema": inner}
    return {"type": "json_schema", "name": "answer", **named}


def _tools(value: Any, _: _Warn) -> dict[str, Any]:
    if not isinstance(value, list):
        raise InvalidRequest("'tools' must be an array")
    return {"tools": [_tool(tool, f"tools.{number}") for number, tool in enumerate(value)]} if value else {}


def _tool(tool: Any, place: str) -> Mapping[str, Any]:
    kind = tool.get("type", "function") if isinstance(tool, Mapping) else None
    if kind not in _TOOLS:
        raise _hosted(place, kind)
    if isinstance(tool.get(kind), Mapping):  # in a chat's form already
        return dict(tool)
    inner = {name: value for name, value in tool.items() if name != "type" and value is not None}
    if kind == "custom" and isinstance(form := inner.get("format"), Mapping) and form.get("type") == "grammar":
        grammar = {name: value for name, value in form.items() if name != "type"}
        inner["format"] = form if "grammar" in form else {"type": "grammar", "grammar": grammar}
    return {"type": kind, kind: inner}


def _hosted(place: str, kind: Any) -> InvalidRequest:
    return InvalidRequest(
        f"{place}: {short(kind)} runs at OpenAI, and a chat has only functions and custom tools: leave it out, or "
        "ask a service that has /v1/responses"
    )


def _tool_choice(value: Any, _: _Warn) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {"tool_choice": value}
    kind = value.get("type")
    if kind == "allowed_tools" and not isinstance(value.get("allowed_tools"), Mapping):
        tools = [_named(tool, f"tool_choice.tools.{number}") for number, tool in enumerate(value.get("tools") or [])]
        return {"tool_choice": {"type": kind, "allowed_tools": {"mode": value.get("mode", "auto"), "tools": tools}}}
    return {"tool_choice": dict(value) if kind == "allowed_tools" else _named(value, "tool_choice")}


def _named(tool: Any, place: str) -> Mapping[str, Any]:
    kind = tool.get("type") if isinstance(tool, Mapping) else None
    if kind not in _TOOLS:
        raise _hosted(place, kind)
    inner = tool.get(kind)
    return {"type": kind, kind: inner if isinstance(inner, Mapping) else {"name": tool.get("name")}}


def _object(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{name!r} must be an object, not {short(value)}")
    return value


def _others(name: str, fields: Mapping[str, Any], known: set[str], warn: _Warn) -> None:
    for other in sorted(fields.keys() - known):
        if fields[other] is not None:
            warn(f"{name}.{other} was left out: a chat has no such setting")


_TRANSLATED: Mapping[str, Callable[[Any, _Warn], dict[str, Any]]] = {
    "include": _include,
    "max_output_tokens": _limit,
    "reasoning": _reasoning,
    "text": _text,
    "tool_choice": _tool_choice,
    "tools": _tools,
    "top_logprobs": _top_logprobs,
}
