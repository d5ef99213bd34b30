"""Bodies that go to the user as they came, of OpenAI's Responses and older completions: whether they are answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmdo.backends.errors import BadReply, ContentFiltered, ModelError, unusable_vector
from llmdo.backends.finish_reasons import FAILURES, finish_error, finish_of, finish_warning
from llmdo.backends.http.reply_json import mapping
from llmdo.backends.openai.messages import as_text
from llmdo.backends.openai.shapes import failed_choice, first_choice, no_choice, read_usage
from llmdo.backends.openai.vectors import read_vector

# Statuses of a response that is still being made: it was asked for in the background.
_UNFINISHED = frozenset({"in_progress", "queued"})


def raw_warnings(body: Any, model: str) -> tuple[str, ...]:
    """What is not as asked about a ``response`` or a ``text_completion``; nothing about any other body.

    Raises ContentFiltered, Retryable where the answer failed, and BadReply.
    """
    fields = mapping(body)
    choice, reason = first_choice(fields), None
    if choice is not None:
        reason = choice.get("finish_reason")
        ended = failed_choice(choice, model)
    elif is_response(fields):
        reason = response_reason(fields)
        ended = failed_response(fields, model)
    else:
        ended = no_choice(fields, model)
    if ended is not None:
        raise ended
    if finish_of(reason) == "length":
        return (f"the answer is cut off at {read_usage(body).output_tokens} tokens: raise its limit",)
    odd = finish_warning(reason)
    return (odd,) if odd else ()


def without_bad_vectors(body: Any, model: str, warn: Callable[[str], None]) -> Any:
    """A list of embeddings in which a vector that holds NaN or infinity is null, with an ``error`` beside it.

    ``warn`` gets a sentence that names its place. Raises BadReply where no vector is left. Any other body is as it was.
    """
    rows = mapping(body).get("data")
    listed = rows if isinstance(rows, list) else []
    bad = [number for number, row in enumerate(listed) if read_vector(mapping(row).get("embedding")) == ()]
    if not bad:
        return body
    error = unusable_vector(model, read_usage(body))
    if len(bad) == len(listed):
        raise error
    said = {"embedding": None, "error": {"code": None, "message": error.message}}
    for number in bad:
        warn(f"text {number} has no vector: {error.message}")
    return {**body, "data": [{**row, **said} if number in bad else row for number, row in enumerate(listed)]}


def is_response(body: Any) -> bool:
    """Whether a body is one of the Responses API."""
    return mapping(body).get("object") == "response"


def response_reason(body: Any) -> Any:
    """Why a response ended: the reason that it is incomplete for, else its status."""
    fields = mapping(body)
    return mapping(fields.get("incomplete_details")).get("reason") or fields.get("status")


def failed_response(body: Any, model: str) -> ModelError | None:
    """The error of a response that failed, was cancelled or filtered, or is not made yet; None for an answer.

    One that is incomplete for want of tokens is an answer that is cut off.
    """
    fields = mapping(body)
    error, status = mapping(fields.get("error")), fields.get("status")
    words = as_text(error.get("message")) or ""
    if status in _UNFINISHED:
        return BadReply(
            f"{model} has not answered yet (status {status}): omit background: llmdo does not ask again later"
        )
    code = str(error.get("code") or "")
    if "policy" in code or "safety" in code:
        text = f"{model}: the filter withheld the answer ({code}: {words}): change the prompt"
        return ContentFiltered(text, code=code)
    reason = response_reason(fields)
    if error and reason not in FAILURES:
        reason = "failed"
    return finish_error(reason, model, words)
