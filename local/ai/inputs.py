"""Workers AI's inputs, checked as it checks them: bodies of native runs and of the OpenAI routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

from llmdo.backends.requests import ChatRequest, EmbedRequest, Message
from llmdo.backends.responses_api.chat_request import as_chat
from llmdo.local.ai.catalogue import LocalModel
from llmdo.local.wire import HttpCall, Refused

_MAX_TOKENS = 256  # developers.cloudflare.com/workers-ai/models: every text generation model
_ROLES = ("system", "user", "assistant", "tool")
# Everything else in a chat body is a parameter of the model.
_NO_PARAMETERS = frozenset(
    ("messages", "prompt", "model", "stream", "stream_options", "raw", "max_completion_tokens", "custom_id", "metadata")
)


def json_body(call: HttpCall) -> dict[str, Any]:
    """The JSON object that was sent. Raises Refused with 3003."""
    try:
        body = from_json(call.body)
    except ValueError as error:
        raise Refused(400, 3003, f"AiError: AiError: 3003: Incomplete request: {error}") from error
    if not isinstance(body, dict):
        raise Refused(400, 3003, "AiError: AiError: 3003: Incomplete request: the body is not a JSON object")
    return body


def bad_input(message: str) -> Refused:
    """The refusal of an input that does not fit the model's schema."""
    return Refused(400, 5006, f"AiError: AiError: Bad input: Error: {message}")


def chat_request(body: Mapping[str, Any], model: LocalModel) -> ChatRequest:
    """A conversation from ``prompt`` or ``messages``. Raises Refused with 5006."""
    if "messages" in body:
        messages = _messages(body["messages"])
    elif isinstance(body.get("prompt"), str) and body["prompt"]:
        messages = (Message("user", body["prompt"]),)
    else:
        raise bad_input(
            "oneOf at '/' not met, 0 matches: required properties at '/' are 'prompt',"
            " required properties at '/' are 'messages'"
        )
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    if limit is None:
        limit = _MAX_TOKENS
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise bad_input("Type mismatch of '/max_tokens', 'integer' above 0 expected")
    parameters = {name: value for name, value in body.items() if name not in _NO_PARAMETERS and value is not None}
    return ChatRequest(model.serves, messages, {**parameters, "max_tokens": limit})


def responses_request(body: Mapping[str, Any], model: LocalModel) -> ChatRequest:
    """A conversation from the ``input`` of the Responses API. Raises Refused with 5006, InvalidRequest."""
    if not body.get("input"):
        raise bad_input("required properties at '/' are 'input'")
    given = {name: value for name, value in body.items() if name not in ("model", "stream")}
    return as_chat(given, model.serves, "", lambda _: None, {"max_tokens": _MAX_TOKENS})


def embed_request(body: Mapping[str, Any], model: LocalModel, fields: tuple[str, ...]) -> EmbedRequest:
    """Texts from the first of ``fields`` in the body: a string, or 1 to ``max_texts`` strings. Raises Refused."""
    name = next((field for field in fields if field in body), None)
    if name is None:
        raise bad_input(f"required properties at '/' are '{fields[0]}'")
    given = body[name]
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise bad_input(f"Type mismatch of '/{name}', 'string' or an array of strings expected")
    if not 1 <= len(texts) <= model.max_texts or not all(texts):
        raise bad_input(f"Length of '/{name}' must be >= 1 and <= {model.max_texts}, and no text empty")
    return EmbedRequest(model.serves, tuple(texts), {k: body[k] for k in ("pooling", "instruction") if k in body})


def prompts_of(body: Mapping[str, Any]) -> list[str]:
    """The texts of a call, for the statistics and for the match of a fault: see ``stats.prompt_hash``."""
    messages, given = body.get("messages"), body.get("text", body.get("input", body.get("queries")))
    if isinstance(given, list) and any(isinstance(item, dict) for item in given):  # of the Responses API
        messages = given
    if isinstance(messages, list):
        return [
            "\n".join(_plain(m.get("content")) for m in messages if isinstance(m, dict) and m.get("role") == "user")
        ]
    if isinstance(body.get("prompt"), str):
        return [body["prompt"]]
    if isinstance(given, list):
        return [text for text in given if isinstance(text, str)]
    return [given] if isinstance(given, str) else []


def _messages(given: object) -> tuple[Message, ...]:
    if not isinstance(given, list) or not given:
        raise bad_input("Type mismatch of '/messages', 'array' of at least one message expected")
    for number, message in enumerate(given):
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise bad_input(f"required properties at '/messages/{number}' are 'role,content'")
        content = message.get("content")
        if not isinstance(content, str | list) and not message.get("tool_calls"):
            raise bad_input(f"Type mismatch of '/messages/{number}/content', 'string' or 'array' expected")
        if isinstance(content, list) and not all(isinstance(part, dict) for part in content):
            raise bad_input(f"Type mismatch of '/messages/{number}/content', 'array' of 'object' expected")
    return tuple(
        Message(
            m["role"],
            tuple(m["content"]) if isinstance(m.get("content"), list) else m.get("content"),
            {k: v for k, v in m.items() if k not in ("role", "content")},
        )
        for m in given
    )


def _plain(content: object) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
