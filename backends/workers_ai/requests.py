"""Requests as Workers AI takes them: chats, embeddings and raw inputs, in either shape of a model's input.

What a model does not take is left out, and a number beyond its range moved into it; ``warn`` gets a sentence each time.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from typing import Any

from llmdo.backends.errors import ContextOverflow, InvalidRequest
from llmdo.backends.json_mode.answers import check_format
from llmdo.backends.limits.sizes import DEFAULT_MAX_TOKENS, bounded, checked_token_limit, token_limit
from llmdo.backends.openai import requests as openai_request
from llmdo.backends.parameters import translate
from llmdo.backends.requests import COMMON_ROLES, ChatRequest, EmbedRequest, Message, RawRequest, Request
from llmdo.backends.responses_api.input_items import check_file_parts
from llmdo.backends.workers_ai.errors import PROVIDER
from llmdo.backends.workers_ai.models import DIALECTS, EMBEDDING_PARAMETERS, Shape, bytes_field, describes_images

_BYTES = frozenset({"image", "audio"})
_MOST_ENCODED = 8_000_000  # characters of base64 that become numbers, one by one: more would hold up all other calls
_DESCRIBING = ("image", "max_tokens", "temperature", "raw")  # what a model that describes images takes
LEAST_MAX_TOKENS = 64  # below this, an answer that fits the context window is not worth a second call
_OVERFLOW = re.compile(r"tokens \((\d+)\).*limit \((\d+)\)", re.DOTALL)

Warn = Callable[[str], object]


def body_of(request: Request, shape: Shape = "native", warn: Warn = lambda _: None) -> dict[str, Any]:
    """The input of any request. Raises InvalidRequest."""
    if isinstance(request, ChatRequest):
        return chat_body(request, shape, warn)
    return embed_body(request, warn) if isinstance(request, EmbedRequest) else raw_body(request)


def chat_body(request: ChatRequest, shape: Shape = "native", warn: Warn = lambda _: None) -> dict[str, Any]:
    """The input of a conversation, always with a limit of tokens. Raises InvalidRequest.

    The limit goes by its old name max_tokens, which models of both shapes take.
    """
    limit = checked_token_limit(request.parameters) or DEFAULT_MAX_TOKENS
    check_file_parts(request.messages)
    if (wanted := request.parameters.get("response_format")) is not None:
        check_format(wanted, request.model, PROVIDER)
    if shape == "chat":
        body, changed = openai_request.chat_body(request, DIALECTS[shape])
        del body["model"]
    else:
        body, changed = translate(request.parameters, DIALECTS[shape], request.model)
        if "response_format" in body:
            body["response_format"] = _bare_schema(body["response_format"])
    for warning in changed:
        warn(warning)
    for warning in bounded(request.parameters):
        warn(warning)
    body.pop("max_completion_tokens", None)
    body["max_tokens"] = limit
    if describes_images(request.model) or (shape == "native" and bytes_field(request.model) == "image"):
        return _with_image(body, request, warn)
    called = _called(request.messages)
    body["messages"] = [_message(message, called) for message in request.messages]
    return body


def embed_body(request: EmbedRequest, warn: Warn = lambda _: None) -> dict[str, Any]:
    """The input of an embedding model."""
    known = {name for name, pattern in EMBEDDING_PARAMETERS if pattern.search(request.model)}
    body = {name: value for name, value in request.parameters.items() if name in known}
    if request.parameters.get("encoding_format") == "base64":
        known.add("encoding_format")  # rows are written so, however the service sends vectors
    _left_out(request.model, request.parameters.keys() - known, warn)
    return {**body, "text": list(request.texts)}


def raw_body(request: RawRequest) -> dict[str, Any]:
    """A model's own input, with base64 turned into an array of bytes where the model wants that. Raises InvalidRequest.

    A ``data:`` URI is base64 with a head; other models get it without the head.
    """
    if request.path:
        raise InvalidRequest(
            f"{request.model}: llmdo does not ask Workers AI by /v1/{request.path}: "
            "write the url /v1/chat/completions, with messages"
        )
    body, wanted = dict(request.input), bytes_field(request.model)
    for name in _BYTES & body.keys():
        value = body[name]
        if isinstance(value, str) and name == wanted:
            body[name] = list(_decoded(value, name, request.model))
        elif isinstance(value, str) and value.startswith("data:"):
            body[name] = _payload(value)
    return body


def _called(messages: tuple[Message, ...]) -> Mapping[str, str]:
    """The function that each tool call in a conversation named, by the call's id."""
    calls = [call for message in messages for call in message.extra.get("tool_calls") or () if isinstance(call, dict)]
    return {str(call.get("id")): str((call.get("function") or {}).get("name") or "") for call in calls}


def _left_out(model: str, names: set[str], warn: Warn) -> None:
    for name in sorted(names):
        warn(f"{name} was left out: {model} cannot use it")


def _bare_schema(wanted: Any) -> Any:
    """Native models want the bare JSON Schema where OpenAI wraps it as ``{"name", "schema", "strict"}``."""
    schema = wanted.get("json_schema") if isinstance(wanted, dict) else None
    if isinstance(schema, dict) and isinstance(schema.get("schema"), dict):
        return {**wanted, "json_schema": schema["schema"]}
    return wanted


def _message(message: Message, called: Mapping[str, str]) -> dict[str, Any]:
    content = message.content  # null is refused, also beside tool calls
    parts = "" if content is None else content if isinstance(content, str) else list(content)
    named = called.get(str(message.extra.get("tool_call_id"))) if message.role == "tool" else None
    more = {"name": named} if named else {}  # native models know a tool's answer by its name
    return {**more, **message.extra, "role": COMMON_ROLES.get(message.role, message.role), "content": parts}


def _with_image(body: dict[str, Any], request: ChatRequest, warn: Warn) -> dict[str, Any]:
    """The input of an older vision model: one image as bytes, beside the text."""
    urls = [str((part.get("image_url") or {}).get("url") or "") for part in _parts(request, "image_url")]
    given = body.pop("image", None)
    if isinstance(given, str):
        urls.append(given)
    elif isinstance(given, list):
        body["image"] = given
    if urls:
        body["image"] = list(_decoded(urls[-1], "image", request.model))
    for _ in urls[1:]:
        warn(f"an image was left out: {request.model} takes one, and got the last")
    for kind in sorted(_kinds(request) - {"text", "image_url"}):
        warn(f"{kind} was left out: {request.model} takes text with an image")
    texts = [(message, _text(message)) for message in request.messages]
    if describes_images(request.model):
        known: dict[str, Any] = {name: body[name] for name in _DESCRIBING if name in body}
        _left_out(request.model, body.keys() - known, warn)
        _left_out(request.model, {name for message in request.messages for name in message.extra}, warn)
        if any(message.role != "user" for message in request.messages) or len(request.messages) > 1:
            warn(f"the messages were joined to one prompt, without their roles: {request.model} takes no conversation")
        return {**known, "prompt": "\n".join(text for _, text in texts if text)}
    body["messages"] = [
        {**message.extra, "role": COMMON_ROLES.get(message.role, message.role), "content": text}
        for message, text in texts
    ]
    return body


def _kinds(request: ChatRequest) -> set[str]:
    contents = [message.content for message in request.messages if isinstance(message.content, tuple)]
    return {str(part.get("type")) for content in contents for part in content}


def _parts(request: ChatRequest, kind: str) -> list[Mapping[str, Any]]:
    contents = [message.content for message in request.messages if isinstance(message.content, tuple)]
    return [part for content in contents for part in content if part.get("type") == kind]


def _text(message: Message) -> str:
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    return "\n".join(str(part.get("text") or "") for part in message.content if part.get("type") == "text")


def _decoded(value: str, name: str, model: str) -> bytes:
    if value.startswith(("http://", "https://")):
        raise InvalidRequest(f"{model} takes no URL for {name}: give its bytes as base64, or as a data: URI")
    if len(value) > _MOST_ENCODED:
        raise InvalidRequest(f"{model} takes {name} as an array of bytes, and llmdo sends 6 MB so: give a smaller one")
    try:
        return base64.b64decode(_payload(value), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"{model}: {name} is not valid base64 ({error}): encode it again") from error


def _payload(value: str) -> str:
    return value.partition(",")[2] if value.startswith("data:") else value


def lower_limit(body: dict[str, Any], request: ChatRequest, error: ContextOverflow, warnings: list[str]) -> None:
    """Sets max_tokens to what the window leaves, by the numbers in error 5021; raises it where that is too little."""
    numbers = _OVERFLOW.search(error.message)
    if token_limit(request.parameters) or not numbers:
        raise error
    estimate, limit = map(int, numbers.groups())
    fits = DEFAULT_MAX_TOKENS - (estimate - limit)
    if not LEAST_MAX_TOKENS <= fits < DEFAULT_MAX_TOKENS:
        raise error
    body["max_tokens"] = fits
    warnings.append(f"max_tokens was lowered from {DEFAULT_MAX_TOKENS} to {fits} to fit the context window")
