"""An HTTP call and its reply, and the services' envelopes.

REST (Queues, Workers AI): ``{"success", "errors": [{"code", "message"}], "messages", "result"}``, with a status of
success or failure. OpenAI: ``{"error": {"message", "type", "param", "code"}}``. S3:
``<Error><Code/><Message/></Error>`` without xmlns and RequestId, as R2 writes it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar
from urllib.parse import parse_qsl, unquote
from xml.sax.saxutils import escape

from aiohttp import StreamReader
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from llmdo.storage.field_problems import first_problem

JSON = "application/json"
XML = "application/xml"
EVENT_STREAM = "text/event-stream"

_Body = TypeVar("_Body", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class HttpCall:
    """One request as it came in.

    Attributes:
        path: percent-encoded: signatures, and the 7000 of an encoded model name, depend on it.
        query: percent-encoded, without the question mark.
        headers: case-insensitive.
        stream: the body while it comes in, in place of ``body``; only of calls that upload a file.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes = b""
    stream: StreamReader | None = None

    def parameter(self, name: str, default: str = "") -> str:
        """The first value of a query parameter."""
        return next((v for k, v in parse_qsl(self.query, keep_blank_values=True) if k == name), default)

    @property
    def target(self) -> str:
        """Path and query, decoded, for people and for the match of a fault."""
        return unquote(f"{self.path}?{self.query}" if self.query else self.path)


@dataclass(slots=True)
class HttpReply:
    """A body, or pieces that are sent as they come, in chunks unless the headers have their length.

    A fault may change ``ending``.
    """

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    pieces: AsyncGenerator[bytes, None] | None = None
    ending: Literal["whole", "drop", "truncate"] = "whole"


class Refused(Exception):
    """A REST call is refused, with this status and Cloudflare's error code."""

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class S3Refused(Exception):
    """An S3 call is refused; ``reply`` is what goes back."""

    def __init__(self, status: int, code: str, message: str, **fields: str) -> None:
        super().__init__(message)
        self.reply = s3_failure(status, code, message, **fields)


class OpenAIRefused(Exception):
    """A call of OpenAI's API is refused; ``reply`` is what goes back."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.reply = openai_failure(status, message, code=code, param=param)


class AnthropicRefused(Exception):
    """A call of Anthropic's API is refused; ``reply`` is what goes back."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.reply = anthropic_failure(status, message)


def json_reply(value: Any, status: int = 200) -> HttpReply:
    """A bare JSON body."""
    return HttpReply(status, to_json(value), {"Content-Type": JSON})


def success(result: Any, **extra: Any) -> HttpReply:
    """Cloudflare's envelope around a result, with ``extra`` beside it, such as ``result_info``."""
    return json_reply({"result": result, "success": True, "errors": [], "messages": [], **extra})


def failure(status: int, code: int, message: str) -> HttpReply:
    """Cloudflare's envelope around one error."""
    errors = [{"code": code, "message": message}]
    return json_reply({"result": None, "success": False, "errors": errors, "messages": []}, status)


def openai_failure(
    status: int,
    message: str,
    kind: str = "invalid_request_error",
    code: str | None = None,
    param: str | None = None,
) -> HttpReply:
    """An error as OpenAI's API writes it."""
    return json_reply({"error": {"message": message, "type": kind, "param": param, "code": code}}, status)


# Types of Anthropic's errors by status: platform.claude.com/docs/en/api/errors.
ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def anthropic_failure(status: int, message: str, kind: str = "") -> HttpReply:
    """An error as Anthropic's API writes it."""
    error = {"type": kind or ANTHROPIC_TYPES.get(status, "api_error"), "message": message}
    return json_reply({"type": "error", "error": error, "request_id": None}, status)


def s3_failure(status: int, code: str, message: str, **fields: str) -> HttpReply:
    """An error as R2's S3 API writes it (its wording is quoted in workers-sdk's S3 emulator)."""
    more = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in fields.items())
    text = (
        f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{escape(message)}</Message>'
        f"{more}</Error>"
    )
    return HttpReply(status, text.encode(), {"Content-Type": XML})


def body_as(call: HttpCall, model: type[_Body]) -> _Body:
    """The validated body; an empty one counts as {}. Raises Refused with 10208 (not JSON) or 10207 (wrong fields)."""
    try:
        return model.model_validate_json(call.body or b"{}")
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            raise Refused(400, 10208, f"Request body is not valid JSON: {first['msg']}") from error
        raise Refused(400, 10207, f"Request body is invalid: {first_problem(error)}") from error


def page_of(items: list[Any], call: HttpCall) -> dict[str, Any]:
    """The page that ``page`` and ``per_page`` ask for: ``result`` and ``result_info``. Raises Refused."""
    try:
        page, per_page = int(call.parameter("page", "1")), int(call.parameter("per_page", "100"))
    except ValueError as error:
        raise Refused(400, 10207, "page and per_page are numbers") from error
    page, per_page = max(page, 1), min(max(per_page, 1), 100)
    shown = items[(page - 1) * per_page : page * per_page]
    pages = -(-len(items) // per_page)
    counts = {"count": len(shown), "total_count": len(items), "total_pages": pages}
    return {"result": shown, "result_info": {"page": page, "per_page": per_page, **counts}}


def timestamp(ms: int) -> str:
    """Milliseconds since 1970 as Cloudflare writes times: ``2026-05-24T19:36:44.379Z``."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def no_route(call: HttpCall) -> Refused:
    """The refusal of a path, or a method on it, that does not exist."""
    return Refused(400, 7000, f"No route for that URI: {call.method} {call.path}")
