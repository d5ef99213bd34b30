"""Finds out whose API a line is for, and writes it as the line of an OpenAI batch that asks the same.

Understood are the batch lines of Anthropic (``custom_id, params``), of Gemini (``key, request``), both also as Vertex
takes them (``request``), of Claude on Bedrock (``recordId, modelInput``), lines with a URL of these APIs, and requests
of theirs without anything around them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llmdo.transforms.other_apis.anthropic_requests import ANTHROPIC_FIELDS, chat_of_messages, is_for_anthropic
from llmdo.transforms.other_apis.gemini_requests import (
    GEMINI_FIELDS,
    chat_of_contents,
    embedding_of_content,
    is_for_gemini,
)
from llmdo.transforms.other_apis.translation import Untranslatable, WarnOf

_Translate = Callable[[Mapping[str, Any], WarnOf], dict[str, Any]]

_CHAT, _EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
_MESSAGES = "/v1/messages"
# The end of a URL → the translation of the body, and the URL of its translation.
_BY_URL: tuple[tuple[str, _Translate, str], ...] = (
    ("/messages", chat_of_messages, _CHAT),
    (":generateContent", chat_of_contents, _CHAT),
    (":streamGenerateContent", chat_of_contents, _CHAT),
    (":embedContent", embedding_of_content, _EMBEDDINGS),
)
# The field that holds the request, and one that is in it → the same.
_BY_FIELDS: tuple[tuple[str, str, _Translate, str], ...] = (
    ("params", "messages", chat_of_messages, _CHAT),
    ("request", "contents", chat_of_contents, _CHAT),
    ("request", "anthropic_version", chat_of_messages, _CHAT),
    ("request", "content", embedding_of_content, _EMBEDDINGS),
    ("modelInput", "anthropic_version", chat_of_messages, _CHAT),
)
# What other APIs call a custom_id.
_IDS = ("key", "recordId")


def as_openai_line(
    document: Mapping[str, Any], content: frozenset[str], takes_messages: Callable[[object], bool]
) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The line as an OpenAI batch line, and a sentence for each thing that was left out; any other line as it is.

    ``content`` names the fields beside which a line is not one of another API. ``takes_messages``: whether the model of
    this name, or none, takes a request of Anthropic's API: then that is the body as it is. Raises Untranslatable.
    """
    warnings: dict[str, None] = {}

    def body_of(request: Mapping[str, Any], translate: _Translate, url: str) -> dict[str, Any]:
        if translate is chat_of_messages and takes_messages(document.get("model") or request.get("model")):
            return {"url": _MESSAGES, "body": request}
        return {"url": url, "body": translate(request, warnings.setdefault)}

    bare = _bare(document)
    if bare is not None:
        translate, names = bare
        request = {name: value for name, value in document.items() if name in names}
        around = {name: value for name, value in document.items() if name not in names}
        return {**around, **body_of(request, translate, _CHAT)}, tuple(warnings)
    found = _found(document, content)
    if found is None:
        return document, ()
    holder, translate, url = found
    asked = body_of(document[holder], translate, url)
    about = next((name for name in _IDS if name in document), None) if holder != "body" else None
    around = {name: value for name, value in document.items() if name not in (holder, about)}
    if about is not None and document[about] is not None:
        around.setdefault("custom_id", document[about])
    return {**around, **asked}, tuple(warnings)


def _bare(document: Mapping[str, Any]) -> tuple[_Translate, frozenset[str]] | None:
    """The translation of a line that is a request itself, and the fields that belong to it; all others are the user's.

    Messages could be OpenAI's as well: what only Anthropic's API has decides.
    """
    if "messages" in document:
        return (chat_of_messages, ANTHROPIC_FIELDS) if is_for_anthropic(document) else None
    return (chat_of_contents, GEMINI_FIELDS) if is_for_gemini(document) else None


def _found(document: Mapping[str, Any], content: frozenset[str]) -> tuple[str, _Translate, str] | None:
    """The field that holds the request, its translation, and the URL of the translation."""
    if content & document.keys():
        return None
    if isinstance(document.get("body"), dict):
        url = str(document.get("url") or "").partition("?")[0].rstrip("/")
        return next((("body", how, to) for ending, how, to in _BY_URL if url.endswith(ending)), None)
    for holder, field, how, to in _BY_FIELDS:
        held = document.get(holder)
        if isinstance(held, dict) and field in held and "url" not in document:
            return holder, how, to
    if "custom_id" in document and isinstance(document.get("params"), dict):
        raise Untranslatable("'params' has no messages, which Anthropic's API needs: add them")
    if "key" in document and isinstance(document.get("request"), dict):
        raise Untranslatable("'request' has no contents, which Gemini's API needs: add them")
    return None
