"""A chat answer as the body that OpenAI's API would send, with all that its provider reported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmdo.backends.http.reply_json import mapping, whole_number
from llmdo.backends.openai.shapes import said_fields
from llmdo.backends.responses import ChatResponse
from llmdo.backends.usage import Usage


def completion_body(response: ChatResponse, request_id: str) -> dict[str, Any]:
    """A chat.completion: the provider's own, in which OpenAI's fields have the values that OpenAI's types allow.

    Where the provider names no ``id``, it is that of the call; no ``created``, 0; no finish reason, ``stop``.
    """
    given = response.body
    choices = given.get("choices") or [{}]
    message = {"role": "assistant", "content": response.text, **said_fields(response)}
    first = {
        **choices[0],
        "index": choices[0].get("index", 0),
        "message": {**message, **mapping(choices[0].get("message"))},
        "finish_reason": response.finish_reason or "stop",
    }
    return {
        **given,
        "id": str(given.get("id") or response.request_id or request_id),
        "object": "chat.completion",
        "created": whole_number(given.get("created")) or 0,
        "model": response.model,
        "choices": [first, *choices[1:]],
        "usage": _usage(mapping(given.get("usage")), response.usage),
    }


def _usage(given: Mapping[str, Any], usage: Usage) -> dict[str, Any]:
    """The provider's own sum is kept where its parts are those of the answer: it may hold more than these."""
    ours = {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }
    same = all(type(given.get(name)) is int for name in ours) and all(
        given[name] == ours[name] for name in ("prompt_tokens", "completion_tokens")
    )
    return {**given} if same else {**given, **ours}
