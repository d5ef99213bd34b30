"""Chooses the kind of request by a line's URL or fields. A line that leaves it unclear makes no call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmdo.backends.errors import short
from llmdo.backends.providers import chats, has_own_inputs, passes_routes_on, takes_own_input
from llmdo.settings.environment import is_openai_itself
from llmdo.transforms.prompts.fields import CONTENT, IDS, RequestTarget
from llmdo.transforms.prompts.line_json import BadLine
from llmdo.transforms.prompts.messages import are_messages
from llmdo.transforms.prompts.requests import (
    Builder,
    build_chat,
    build_completion,
    build_embedding,
    build_input_chat,
    build_messages,
    build_moderation,
    build_own_input,
    build_responses,
)
from llmdo.transforms.prompts.templates import fields_of

# The end of a batch line's URL → what its body is; the first match wins.
_BY_URL: tuple[tuple[str, Builder | None], ...] = (
    ("/chat/completions", build_chat),
    ("/fim/completions", None),
    ("/completions", build_completion),
    ("/embeddings", build_embedding),
    ("/responses", build_responses),
    ("/messages", build_messages),
    ("/chat/moderations", None),
    ("/moderations", build_moderation),
)
# What moderates where there is no such route.
_GUARD = "ask a model that judges, such as @cf/meta/llama-guard-3-8b, by /v1/chat/completions"
# In the name of each of OpenAI's models that moderate, and of no other.
_MODERATES = "moderation"
# Only bodies of /v1/responses have these: fields, and kinds of parts in the messages of their ``input``.
_OF_RESPONSES = frozenset({"instructions", "max_output_tokens", "previous_response_id"})
_PARTS_OF_RESPONSES = frozenset({"input_text", "input_image", "input_file", "output_text"})
# The most fields of a line that an error names, and the most characters of each.
_MOST, _LONGEST = 5, 40


def batch_body(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The body of a batch line; None for other lines. Raises BadLine.

    OpenAI's batch lines have a URL; those of Mistral, Together and Fireworks do not.
    """
    body, has_content = document.get("body"), bool(CONTENT & document.keys())
    if isinstance(body, dict) and ("url" in document or not has_content):
        return body
    if {"url", "body"} <= document.keys() and not has_content:
        raise BadLine("'body' must be an object, as in an OpenAI batch line")
    return None


def batch_builder(document: Mapping[str, Any], target: RequestTarget) -> Builder:
    """Chooses by a batch line's URL, or if it has none by the fields of its body. Raises BadLine."""
    if document.get("url") is None:
        body = document["body"]
        if "prompt" in body and "messages" not in body and passes_routes_on(target.provider):
            raise BadLine(
                'a prompt in a \'body\' may be for completions or for a chat: add "url": "/v1/completions", or write '
                "messages"
            )
        return line_builder(body, target)
    url = str(document["url"]).partition("?")[0].rstrip("/")
    found = next((build for ending, build in _BY_URL if url.endswith(ending)), None)
    if found is None:
        known = ", ".join(f"/v1{ending}" for ending, build in _BY_URL if build)
        raise BadLine(f"'url' {short(document['url'])} is not one that can be answered: use one of {known}")
    if found is build_moderation:
        _check_moderates(target)
    if found is build_embedding and has_own_inputs(target.provider) and not target.embeds:
        if chats(target.provider, target.model):
            raise BadLine(f"{target.provider}/{target.model} does not embed: name an embedding model")
        return build_own_input
    return found


def _check_moderates(target: RequestTarget) -> None:
    """Raises BadLine for a provider without moderations, and for a model of OpenAI that is known to chat."""
    if not passes_routes_on(target.provider):
        raise BadLine(f"{target.provider} has no /v1/moderations: name a model of openai/…, or {_GUARD}")
    if target.provider == "openai" and is_openai_itself() and _MODERATES not in target.model:
        raise BadLine(
            f"{target.provider}/{target.model} does not moderate: name one that does, in 'body' or as the model, such "
            "as omni-moderation-latest"
        )


def line_builder(line: Mapping[str, Any], target: RequestTarget) -> Builder:
    """Chooses by the fields of a line that is not a batch line. Raises BadLine."""
    named = target.provider, target.model
    own = takes_own_input(*named) or not chats(*named)
    if "messages" in line:
        return build_chat
    if "prompt" in line:
        # An image model's prompt is not a conversation.
        return build_own_input if takes_own_input(*named) else build_chat
    if target.embeds and ("text" in line or "input" in line):
        return build_embedding
    if own:
        return build_own_input
    if are_messages(line.get("input")) and not _is_for_responses(line):
        return build_input_chat
    raise BadLine(_what_to_write(line, target))


def _what_to_write(line: Mapping[str, Any], target: RequestTarget) -> str:
    fields = [name for name in line if name not in IDS | {"model", "metadata", "error"}]
    if not fields:
        return "there is nothing to answer: give 'prompt', 'messages', or 'text' for an embedding model"
    does_not = f"the line ({_named(fields)}) does not say what to ask {target.provider}/{target.model}"
    if _is_for_responses(line):
        return (
            f"{does_not}: give 'prompt' or 'messages', or for the Responses API "
            'put the fields into a batch line, {"url": "/v1/responses", "body": {…}}'
        )
    if _are_sharegpts(line.get("conversations")):
        return (
            f"{does_not}: write 'conversations' as messages, with role and content in the place of from and value "
            "(human is user, gpt is assistant)"
        )
    embed = ""
    if name := next((name for name in ("text", "input") if name in line), None):
        embed = f"; to embed {name!r}, name an embedding model"
        if passes_routes_on(target.provider):
            embed += ', or write {"url": "/v1/embeddings", "body": {"input": …}}'
    # Only names that can be fields: somebody may paste the remedy into a shell.
    template = " ".join(
        f"{{{name}}}" for name in fields[:_MOST] if len(name) <= _LONGEST and fields_of(f"{{{name}}}") == {name}
    )
    by_template = f", or a template of their names: --prompt '{template}' (in Python prompt=)" if template else ""
    return f"{does_not}: give 'prompt' or 'messages'{by_template}{embed}"


def _is_for_responses(line: Mapping[str, Any]) -> bool:
    given = line.get("input")
    contents = [one.get("content") for one in given if isinstance(one, dict)] if isinstance(given, list) else []
    parts = [part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict)]
    return bool(_OF_RESPONSES & line.keys()) or any(str(part.get("type")) in _PARTS_OF_RESPONSES for part in parts)


def _are_sharegpts(turns: object) -> bool:
    return isinstance(turns, list) and any(isinstance(one, dict) and {"from", "value"} <= one.keys() for one in turns)


def _named(fields: list[str]) -> str:
    names = [name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…" for name in fields[:_MOST]]
    return ", ".join(names if len(fields) <= _MOST else [*names, "…"])
