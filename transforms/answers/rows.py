"""The rows of the output: answers as a superset of OpenAI's batch output, failures as the input with an error."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any

from pydantic_core import to_json

from llmdo.backends.errors import LimitReached, ModelError, Retryable, ServiceAway
from llmdo.backends.media.errors import MediaNotAllowed
from llmdo.backends.openai.completion_body import completion_body
from llmdo.backends.openai.vectors import PLACE, filled_in
from llmdo.backends.openai.written_vectors import vector_json
from llmdo.backends.requests import EmbedRequest
from llmdo.backends.responses import ChatResponse, EmbedResponse, Response, VectorFormat
from llmdo.backends.responses_api.response_object import as_for_responses, response_object
from llmdo.backends.usage import Usage
from llmdo.storage.output.costs import UNPAID, LaneCost
from llmdo.storage.output.receipts import IN_BATCHS_PLACE
from llmdo.transforms.elements import Line, TooLong
from llmdo.transforms.prompts.line_json import BadLine, json_object, unwrapped
from llmdo.transforms.prompts.models import ModelNotAllowed
from llmdo.transforms.prompts.parse import Prompt

# The same line may be answered later, or by a run that allows more.
_FOR_RETRY = (Retryable, ModelNotAllowed, MediaNotAllowed, ServiceAway, LimitReached)
_NOT_NUMBERS = "the reply had numbers that JSON cannot represent (NaN, infinity): they are null"


def answer_row(
    prompt: Prompt,
    line: Line,
    response: Response,
    attempts: int,
    latency_s: float,
    cost_usd: float | None = None,
    errors: Mapping[int, ModelError] = MappingProxyType({}),
    vectors: VectorFormat = "float",
    lanes: Sequence[LaneCost] = (),
) -> bytes:
    """One answer as JSON, without a line ending; ``source`` names the line's place, the latency is the last try's.

    A ``shared`` response is counted in another row, and costs nothing here. ``errors``: by index, why texts to embed
    have no vector; ``vectors``: how they are written, unless the line has an ``encoding_format`` of its own; ``lanes``:
    what it cost in its lane.
    """
    place = f"{line.file.key}:{line.start}"  # the id of a line that has none
    row: dict[str, Any] = {
        "id": place if prompt.id is None else prompt.id,
        "custom_id": place if prompt.custom_id is None else prompt.custom_id,
        "response": {
            "status_code": 200,
            "request_id": response.request_id or prompt.request.request_id,
            "body": _body(response, prompt, errors),
        },
        "error": None,
        "model": f"{prompt.provider}/{response.model}",
        "usage": _usage_fields(response.usage, cost_usd, lanes),
        "source": {"key": line.file.key, "etag": line.file.etag, **_place(line)},
        "attempts": attempts,
        "latency_ms": round(latency_s * 1000),
    }
    if response.shared:
        row["shared"] = True
    if response.lane:
        row["lane"] = response.lane
    if prompt.metadata:
        row["metadata"] = prompt.metadata
    if prompt.warnings or response.warnings:
        told = response.warnings if prompt.response_to is None else as_for_responses(response.warnings)
        row["warnings"] = (*prompt.warnings, *told)
    if response.details:
        row["details"] = response.details
    if not isinstance(response, EmbedResponse):
        return _json(row)
    request = prompt.request
    own = isinstance(request, EmbedRequest) and request.parameters.get("encoding_format")
    form: VectorFormat = "base64" if own == "base64" else vectors
    return filled_in(_json(row), (vector_json(vector, form) for vector in response.vectors))


def _body(response: Response, prompt: Prompt, errors: Mapping[int, ModelError]) -> Any:
    request_id, asked = prompt.request.request_id, prompt.response_to
    if asked is not None and isinstance(response, ChatResponse):
        return response_object(response, request_id, asked)
    return response_body(response, request_id, errors)


def _json(row: dict[str, Any]) -> bytes:
    """The row; numbers that JSON cannot represent become null, with a warning."""
    text = to_json(row)
    if b"NaN" in text or b"Infinity" in text:
        finite = to_json(row, inf_nan_mode="null")
        if finite != text:
            return to_json({**row, "warnings": (*row.get("warnings", ()), _NOT_NUMBERS)}, inf_nan_mode="null")
    return text


def failure_row(line: Line | TooLong, error: ModelError, attempts: int) -> bytes:
    """The input line with an ``error`` object, as JSON; a line that is not a JSON object is kept in ``raw``.

    ``raw`` is the text, or for bytes that are not UTF-8 ``raw_base64``; a line over the limit has ``raw: null``. If a
    line has a field of one of these names, its text is also kept in ``error.line``. An error row that was fed back
    becomes the row of its original line.
    """
    fields, text = _input_fields(line)
    error_fields = {
        "class": type(error).__name__,
        "code": error.code,
        "status": error.status,
        "message": error.message,
        "retryable": isinstance(error, _FOR_RETRY),
        "attempts": attempts,
        **_place(line),
    }
    if isinstance(line, TooLong) and line.size is not None:
        error_fields["bytes"] = line.size
    if text is not None:
        error_fields["line"] = text
    return to_json({**fields, "error": error_fields})


def _place(line: Line | TooLong) -> dict[str, int | str]:
    """Where it is in its file, and what that counts if it is not bytes."""
    place: dict[str, int | str] = {"offset": line.start, "length": line.stop - line.start}
    unit = line.file.kind.unit
    return place if unit == "byte" else {**place, "unit": unit}


# Counts of a usage that are parts of its input or output: only those that are there are written.
PARTS_OF_TOKENS = (
    *("cached_tokens", "cache_write_tokens", "cache_write_1h_tokens", "reasoning_tokens"),
    *("input_audio_tokens", "output_audio_tokens"),
)


def _usage_fields(usage: Usage, cost_usd: float | None, lanes: Sequence[LaneCost]) -> dict[str, Any]:
    """Tokens; neurons if known; the cost in US dollars, or null; and what it would have been at list price."""
    fields: dict[str, Any] = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }
    fields |= {name: count for name in PARTS_OF_TOKENS if (count := getattr(usage, name))}
    if usage.neurons is not None:
        fields["neurons"] = usage.neurons
    fields["cost_usd"] = cost_usd
    for one in lanes:
        if one.lane != UNPAID:
            fields["list_usd"] = one.list_usd
        if one.lane == IN_BATCHS_PLACE:
            fields["rescue_usd"] = one.rescue_usd
    return fields


def response_body(response: Response, request_id: str, errors: Mapping[int, ModelError] = MappingProxyType({})) -> Any:
    """The body in the format of OpenAI's API, with ``errors`` of texts, and a PLACE for each vector; a raw response as
    the provider sent it.
    """
    if isinstance(response, EmbedResponse):
        tokens = {
            "prompt_tokens": response.usage.input_tokens,
            "total_tokens": response.usage.input_tokens + response.usage.output_tokens,
        }
        data: list[dict[str, Any]] = [
            {"object": "embedding", "index": i, "embedding": PLACE} for i in range(len(response.vectors))
        ]
        for index, error in errors.items():
            data[index]["error"] = {"code": error.code, "message": error.message}
        return {"object": "list", "data": data, "model": response.model, "usage": tokens}
    return completion_body(response, request_id) if isinstance(response, ChatResponse) else response.result


def _input_fields(line: Line | TooLong) -> tuple[Mapping[str, Any], str | None]:
    """The fields to keep of a line, and its text if the fields alone would be ambiguous."""
    if isinstance(line, TooLong):
        return {"raw": None}, None
    data = line.data
    with suppress(BadLine):
        data = unwrapped(data)
    with suppress(BadLine):
        fields = json_object(data)
        alike = "error" in fields or fields.keys() in ({"raw"}, {"raw_base64"})
        return fields, data.decode() if alike else None
    try:
        return {"raw": data.decode()}, None
    except UnicodeDecodeError:
        return {"raw_base64": base64.b64encode(data).decode()}, None
