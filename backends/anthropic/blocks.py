"""Messages of a chat as the turns of Anthropic's Messages API. Pure functions.

Source: platform.claude.com/docs/en/api/messages. Parts that are written as this API has them are passed on.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pydantic_core import from_json

from llmdo.backends.errors import InvalidRequest, short
from llmdo.backends.http.reply_json import mapping
from llmdo.backends.requests import COMMON_ROLES, Message

_Warn = Callable[[str], object]
Block = dict[str, Any]

_DATA_URL = re.compile(r"data:([^;,]*)(?:;[^;,]*)*?;base64,", re.IGNORECASE)
_ODD_ID = re.compile(r"[^a-zA-Z0-9_-]")  # what an id of a tool call must not have
_MOVED = "a {role} message was moved to the beginning, where Anthropic has the instructions"


def system_and_turns(messages: Iterable[Message], warn: _Warn) -> tuple[str | list[Block], list[Block]]:
    """The instructions, "" without any, and the turns, in which the same role never comes twice. Raises InvalidRequest.

    ``warn`` gets a sentence for what is left out or changed.
    """
    system: list[Block] = []
    turns: list[Block] = []
    for number, message in enumerate(messages):
        role = COMMON_ROLES.get(message.role, message.role)
        place = f"messages.{number}"
        if role == "system":
            system += _content(message.content, place, warn)
            if turns:
                warn(_MOVED.format(role=message.role))
        elif role == "tool":
            _add(turns, "user", [_result(message, place, warn)])
        elif role == "assistant":
            _add(turns, role, _assistant(message, place, warn))
        else:
            _add(turns, role, _content(message.content, place, warn))
    for turn in turns:
        # Results of tools stand first in their turn, as the service wants them.
        turn["content"].sort(key=lambda block: turn["role"] == "user" and block.get("type") != "tool_result")
        turn["content"] = _plain(turn["content"])
    return _plain(system) if system else "", turns


def _add(turns: list[Block], role: str, blocks: list[Block]) -> None:
    if not blocks:
        return
    if turns and turns[-1]["role"] == role:
        turns[-1]["content"] += blocks
    else:
        turns.append({"role": role, "content": blocks})


def _plain(blocks: list[Block]) -> str | list[Block]:
    """A single text without anything around it is sent as it is."""
    return blocks[0]["text"] if len(blocks) == 1 and blocks[0].keys() == {"type", "text"} else blocks


def _content(content: str | Iterable[Mapping[str, Any]] | None, place: str, warn: _Warn) -> list[Block]:
    """Blocks; an empty text, which the service refuses, is none."""
    if content is None or isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return [block for at, part in enumerate(content) for block in _blocks(part, f"{place}.content.{at}", warn)]


def _blocks(part: Mapping[str, Any], place: str, warn: _Warn) -> Iterator[Block]:
    kind = part.get("type", "text")
    if kind in ("text", "input_text", "output_text", "refusal"):
        text = str(part.get("refusal" if kind == "refusal" else "text") or "")
        more = {name: value for name, value in part.items() if name not in ("type", "text", "refusal")}
        if text:
            yield {**more, "type": "text", "text": text}
    elif kind == "image_url":
        yield {"type": "image", "source": _source(_url(part, kind), place), **_marked(part)}
    elif kind == "file":
        yield {**_document(mapping(part.get("file")), place, warn), **_marked(part)}
    elif kind in ("input_audio", "audio_url", "video_url"):
        raise InvalidRequest(f"{place} is of the type {kind}: Claude reads text, images and PDF files, so leave it out")
    else:  # as Anthropic writes it: image with a source, document, search_result, thinking …
        yield dict(part)


def _marked(part: Mapping[str, Any]) -> Block:
    return {"cache_control": part["cache_control"]} if part.get("cache_control") else {}


def _url(part: Mapping[str, Any], kind: str) -> str:
    given = part.get(kind)
    return str(given.get("url") or "") if isinstance(given, Mapping) else str(given or "")


def _source(url: str, place: str) -> Block:
    """Where an image or a document is."""
    if url.startswith(("http://", "https://")):
        return {"type": "url", "url": url}
    found = _DATA_URL.match(url)
    if not found:
        raise InvalidRequest(f"{place}: {short(url)} is neither a URL nor a data: URI in base64: write one of these")
    return {"type": "base64", "media_type": found[1] or "image/png", "data": url[found.end() :]}


def _document(file: Mapping[str, Any], place: str, warn: _Warn) -> Block:
    """A file as a document: PDF as it is, text as text."""
    if file.get("file_id"):
        return {"type": "document", "source": {"type": "file", "file_id": file["file_id"]}}
    url = str(file.get("file_data") or file.get("file_url") or file.get("url") or "")
    title = {"title": str(file["filename"])} if file.get("filename") else {}
    source = _source(url, place)
    kind = source.get("media_type", "")
    if kind.startswith("image/"):
        return {"type": "image", "source": source}
    if kind.startswith("text/") or kind in ("application/json", "application/xml"):
        try:
            text = base64.b64decode(source["data"], validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise InvalidRequest(f"{place}: the file is not {kind} in base64 ({error}): encode it again") from error
        return {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": text}, **title}
    if source["type"] == "base64" and kind != "application/pdf":
        warn(f"a file was sent as PDF, though it says that it is {kind}: Claude reads PDF and text")
        source["media_type"] = "application/pdf"
    return {"type": "document", "source": source, **title}


def _assistant(message: Message, place: str, warn: _Warn) -> list[Block]:
    """An earlier answer: its own blocks where it has them, else its text and its calls."""
    own = message.extra.get("content_parts")
    if isinstance(own, list) and own:
        return [dict(block) for block in own if isinstance(block, Mapping)]
    calls = message.extra.get("tool_calls")
    legacy = message.extra.get("function_call")
    if not calls and isinstance(legacy, Mapping):
        calls = [{"id": legacy.get("name"), "function": legacy}]
    blocks = _content(message.content, place, warn)
    return blocks + [_call(call, f"{place}.tool_calls.{at}") for at, call in enumerate(calls or ())]


def _call(call: Any, place: str) -> Block:
    function = mapping(mapping(call).get("function"))
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or not name:
        raise InvalidRequest(f"{place} calls no function: write its name, as in tool_calls of a chat")
    try:
        given = from_json(arguments or "{}") if isinstance(arguments, str) else arguments or {}
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise InvalidRequest(
            f"{place}: the arguments {short(arguments)} are not a JSON object: Anthropic takes no other"
        )
    return {"type": "tool_use", "id": _id(call.get("id")), "name": name, "input": given}


def _result(message: Message, place: str, warn: _Warn) -> Block:
    about = message.extra.get("tool_call_id") or message.extra.get("name")
    content = _content(message.content, place, warn)
    failed = {"is_error": True} if message.extra.get("is_error") else {}
    return {"type": "tool_result", "tool_use_id": _id(about), "content": _plain(content) if content else "", **failed}


def _id(given: Any) -> str:
    return _ODD_ID.sub("_", str(given or "call"))
