"""The lines of a batch's input file, checked before any is answered.

Codes: developers.openai.com/api/docs/guides/batch, and the same API at Azure (learn.microsoft.com/azure/ai-foundry,
"batch error codes").
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

from llmdo.local.ai.catalogue import LocalModel
from llmdo.local.ai.inputs import prompts_of
from llmdo.local.openai.files import StoredFile

MAX_INPUT_BYTES = 200_000_000
MAX_LINES = 50_000
MAX_EMBEDDING_INPUTS = 50_000
_MOST_ERRORS = 100
PAUSE_EVERY = 100  # lines, after which other calls get their turn
_NEEDED = ("custom_id", "method", "url", "body")


@dataclass(slots=True)
class CheckedInput:
    """What is known of an input file: without ``errors``, it can be answered. Tokens are words of its prompts."""

    errors: list[dict[str, Any]] = field(default_factory=list)
    lines: int = 0
    model: str = ""
    tokens: int = 0
    inputs: int = 0
    ids: set[int] = field(default_factory=set)

    def refuse(self, code: str, message: str, line: int | None = None, param: str | None = None) -> None:
        """Notes one error."""
        if len(self.errors) < _MOST_ERRORS:
            self.errors.append({"code": code, "line": line, "message": message, "param": param})


async def checked_input(file: StoredFile, endpoint: str, models: Mapping[str, LocalModel]) -> CheckedInput:
    """Checks a whole file, a line at a time. Raises OSError."""
    found = CheckedInput()
    if file.size > MAX_INPUT_BYTES:
        found.refuse("file_too_large", f"The batch input file is larger than {MAX_INPUT_BYTES} bytes.")
        return found
    with file.path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if number % PAUSE_EVERY == 0:
                await asyncio.sleep(0)
            if number > MAX_LINES:
                found.refuse("too_many_tasks", f"The batch input file has more than {MAX_LINES} requests.")
                break
            _check_line(found, number, line, endpoint, models)
    found.ids.clear()
    if not found.lines and not found.errors:
        message = "The batch input file is empty. Please ensure that the batch contains at least one request."
        found.refuse("empty_file", message)
    if found.inputs > MAX_EMBEDDING_INPUTS:
        found.refuse("too_many_tasks", f"The batch has more than {MAX_EMBEDDING_INPUTS} embedding inputs.")
    return found


def _check_line(found: CheckedInput, number: int, line: bytes, endpoint: str, models: Mapping[str, LocalModel]) -> None:
    found.lines = number
    try:
        request = from_json(line)
    except ValueError:
        request = None
    if not isinstance(request, dict):
        found.refuse("invalid_json_line", "This line is not parseable as valid JSON.", number)
        return
    for name in _NEEDED:
        if not request.get(name):
            found.refuse("missing_required_parameter", f"Missing required parameter: '{name}'.", number, name)
            return
    if request["method"] != "POST":
        found.refuse("invalid_method", "The method of a request must be POST.", number, "method")
    if request["url"] != endpoint:
        message = "The URL provided for this request does not match the batch endpoint."
        found.refuse("url_mismatch", message, number, "url")
    if not isinstance(request["custom_id"], str) or not isinstance(request["body"], dict):
        found.refuse("invalid_type", "'custom_id' must be a string, and 'body' an object.", number)
        return
    identity = hash(request["custom_id"])
    if identity in found.ids:
        message = "The custom_id for this request is a duplicate of another request."
        found.refuse("duplicate_custom_id", message, number, "custom_id")
    found.ids.add(identity)
    _check_body(found, number, request["body"], models)


def _check_body(found: CheckedInput, number: int, body: dict[str, Any], models: Mapping[str, LocalModel]) -> None:
    model = str(body.get("model") or "")
    found.model = found.model or model
    if model not in models:
        message = f"The provided model '{model}' is not supported by the Batch API."
        found.refuse("model_not_found", message, number, "body.model")
    elif model != found.model:
        message = f"The provided model '{model}' does not match the first one, '{found.model}'."
        found.refuse("model_mismatch", message, number, "body.model")
    prompts = prompts_of(body)
    found.tokens += sum(len(prompt.split()) for prompt in prompts)
    if "input" in body and "messages" not in body:
        found.inputs += len(prompts)
