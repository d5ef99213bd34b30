"""What the body of a refusal says: the service's words, its codes, and the waits that it names.

Bodies: OpenAI's ``{"error": {"message", "type", "code"}}``; the error as a string, a list (Gemini) or JSON in a string
(OpenRouter's ``metadata.raw``); ``{"object": "error", …}``; FastAPI's ``{"detail": [{"loc", "msg"}]}``; problem+json's
``title`` and ``detail``; Cloudflare's ``errors``; AWS's ``Message`` and ``__type``; a stream's event; text, HTML, XML.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pydantic_core

from llmdo.backends.http.reply_json import excerpt, mapping

_READ = 4_000  # characters of the words that are kept, and searched for known sentences
_PART = 1_000  # of one sentence
_SHORT = 200  # of a code
_STATUS = re.compile(r"[45]\d\d", re.ASCII)
_DEPTH, _PARTS, _LISTED = 7, 40, 8
_PAGE = 100_000  # characters of a page that are read
_UNSEEN = re.compile(r"(script|style)\b", re.IGNORECASE)

# Below these stand further errors, outermost first; a string there is JSON, or the words themselves.
_INSIDE = (
    "error",
    "errors",
    "detail",
    "details",
    "metadata",
    "raw",
    "innererror",
    "violations",
    "fieldViolations",
    "provider_specific_fields",
)
_WORDS = ("title", "message", "msg", "Message", "error_msg", "errorMessage", "error_message", "error_description")
_LAST_WORDS = ("description", "reason")  # where nothing else speaks
_CODES = ("code", "internalCode", "type", "error_type", "__type", "status", "reason", "quotaId", "error_code")
_STATUSES = ("code", "status", "statusCode", "status_code", "raw_status_code", "httpCode")
_WAITS = ("retryDelay", "retry_after", "retryAfter", "retry_after_seconds", "estimated_time")


@dataclass(frozen=True, slots=True)
class Body:
    """A refusal's body.

    Attributes:
        words: the service's own, on one line; of a body that has none, its beginning.
        codes: strings and numbers, the most precise one first.
        status: the HTTP status that the body names, or None.
        waits: how long it asks to wait, as it writes that; ``headers``: those it quotes, by names in lower case.
    """

    words: str
    codes: tuple[str, ...]
    status: int | None
    waits: tuple[str, ...]
    headers: Mapping[str, str]


def read_body(body: object) -> Body:
    """Reads parsed JSON, or the text of a body that is not JSON."""
    parts = list(islice(_parts(body, _DEPTH), _PARTS))
    texts = (text for read in (_words, _more_words) for part in parts for text in read(part))
    words = "; ".join(_unique(texts))[:_READ]
    if not words and isinstance(body, dict | list) and any(parts):
        words = excerpt(body)
    codes = (_short(part.get(key)) for part in _precise_first(parts) for key in _CODES)
    numbers = (_short(part.get(key)) for part in parts for key in _STATUSES)
    waits = (_short(part.get(key)) for part in parts for key in _WAITS)
    headers = ((name.lower(), _short(value)) for part in parts for name, value in mapping(part.get("headers")).items())
    return Body(
        words=words,
        codes=tuple(dict.fromkeys(code for code in codes if code and code != "error")),
        status=next((int(number) for number in numbers if _STATUS.fullmatch(number)), None),
        waits=tuple(wait for wait in waits if wait),
        headers={name: value for name, value in headers if value},
    )


def is_envelope(body: object) -> bool:
    """Whether a reply has the shape of Cloudflare's refusals."""
    return isinstance(body, dict) and body.get("success") is False


def page_text(page: str) -> str:
    """The words of an HTML page, or of any text, on one line; of a long one, those of its beginning."""
    # By hand: a regular expression searches for the end of each tag again, even if no tag has one.
    page = page[:_PAGE]
    lower, words, at = page.lower(), [], 0
    while (opened := page.find("<", at)) >= 0 and (closed := page.find(">", opened)) >= 0:
        words.append(page[at:opened])
        at = closed + 1
        unseen = _UNSEEN.match(page, opened + 1)
        if unseen:
            ended = lower.find(f"</{unseen[1].lower()}>", at)
            at = ended if ended >= 0 else len(page)
    return one_line(" ".join([*words, page[at:]]))


def quoted(content: bytes) -> str:
    """The beginning of a reply that is not JSON, for the end of an error's sentence; "" without words."""
    words = page_text(content[:_PAGE].decode("utf-8", "replace"))[:_SHORT]
    return f"; it says {words!r}" if words else ""


def one_line(text: str) -> str:
    """The words of a text with one blank between them; of a long one, those of its beginning."""
    return " ".join(text[:_PAGE].split())


def _parts(value: object, depth: int) -> Iterator[Mapping[str, Any]]:
    """The objects that describe the error, outermost first; bare text as ``{"message": text}``."""
    if isinstance(value, str) and value.strip():
        parsed = _json_in(value)
        if parsed is None:
            yield {"message": page_text(value)}
        elif depth:
            yield from _parts(parsed, depth - 1)
    elif isinstance(value, list) and depth:
        for item in value[:_LISTED]:
            yield from _parts(item, depth - 1)
    elif isinstance(value, dict):
        yield value
        if depth:
            for key in _INSIDE:
                yield from _parts(value.get(key), depth - 1)
            message = value.get("message")
            if isinstance(message, dict | list) or (isinstance(message, str) and _json_in(message) is not None):
                yield from _parts(message, depth - 1)


def _json_in(text: str) -> Any:
    """The object or list that a text is, also as the data of a stream's event; None for anything else."""
    text = text[:_PAGE].strip()
    if text.startswith(("data:", "event:")):
        text = next((line for line in text.splitlines() if line.startswith("data:")), "")[len("data:") :].strip()
    if not text.startswith(("{", "[")):
        return None
    try:
        return pydantic_core.from_json(text)
    except ValueError:
        return None


def _words(part: Mapping[str, Any]) -> Iterator[str]:
    found = [part[key] for key in _WORDS if _is_words(part.get(key))]
    if not found and not any(part.get(key) for key in _INSIDE):
        found = [part[key] for key in _LAST_WORDS if _is_words(part.get(key))][:1]
    place = ".".join(map(_short, part["loc"][:_LISTED])) if isinstance(part.get("loc"), list) else ""
    for text in found:
        yield f"{place}: {one_line(text[:_PART])}" if place else one_line(text[:_PART])


def _more_words(part: Mapping[str, Any]) -> Iterator[str]:
    if " " in (code := _short(part.get("code"))):
        yield one_line(code)  # xAI's codes are sentences
    if isinstance(part.get("errors"), dict) and not any(part["errors"].get(key) for key in (*_WORDS, *_INSIDE)):
        yield f"errors: {excerpt(part['errors'])}"
    reasons = part.get("reasons")
    if isinstance(reasons, list) and reasons:
        yield f"reasons: {', '.join(map(_short, reasons[:_LISTED]))}"[:_PART]
    for key in ("param", "failed_generation"):
        if _is_words(part.get(key)):
            yield f"{key}: {one_line(part[key][:_PART])}"


def _unique(texts: Iterable[str]) -> Iterator[str]:
    """The texts that say something new: not part of an earlier one, and not a parameter that it names."""
    said = ""
    for text in texts:
        if text and text not in said and text.removeprefix("param: ") not in said:
            said += f"{text}; "
            yield text


def _precise_first(parts: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Azure says in ``innererror``, and Cloudflare in ``errors``, what stands outside by a more general name."""
    errors = parts[0].get("errors") if parts else None
    listed = errors[:_LISTED] if isinstance(errors, list) else []
    return [mapping(part) for part in (*(part.get("innererror") for part in parts), *listed, *parts)]


def _is_words(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and _json_in(value) is None


def _short(value: object) -> str:
    """A string or a number as text; empty for anything else, and for what is too long to be one of ours."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    return value[:_SHORT] if isinstance(value, str) else str(value) if abs(value) < 1e15 else ""
