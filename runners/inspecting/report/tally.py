"""Adds up rows of an output: by model, and errors by class."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmdo.backends.openai.raw import is_response, read_response
from llmdo.runners.inspecting.report.texts import visible
from llmdo.storage.output.manifests import paid_usage

OTHER_MODELS, OTHER_ERRORS = "other models", "other errors"
_MODELS, _CLASSES, _EXAMPLES = 30, 100, 2
_NAME, _MESSAGE = 200, 600  # characters


@dataclass(slots=True)
class ModelTally:
    """The answers of one model that were read.

    Attributes:
        unpriced: answers without a known cost.
        reused: answers from the ledger, or from an equal line's call; they have no latency of their own.
        latencies: of the others, in milliseconds.
    """

    answers: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    unpriced: int = 0
    reused: int = 0
    warned: int = 0
    latencies: array[float] = field(default_factory=lambda: array("d"))
    inputs: array[float] = field(default_factory=lambda: array("d"))
    outputs: array[float] = field(default_factory=lambda: array("d"))
    reasons: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class ErrorExample:
    """An error line; ``place`` is file and byte."""

    place: str
    message: str


@dataclass(slots=True)
class ErrorTally:
    """The error lines of one kind that were read."""

    lines: int = 0
    retryable: int = 0
    examples: list[ErrorExample] = field(default_factory=list)


@dataclass(slots=True)
class Tally:
    """All rows that were read. ``unreadable``: rows that are not what llmdo writes."""

    models: dict[str, ModelTally] = field(default_factory=dict)
    errors: dict[tuple[str, str], ErrorTally] = field(default_factory=dict)
    unreadable: int = 0

    def add_answer(self, row: Mapping[str, Any]) -> None:
        """Raises KeyError, TypeError, ValueError and AttributeError for a row that is not an answer."""
        usage = row["usage"] or {}
        paid = paid_usage(row)
        latency, attempts = float(row["latency_ms"]), int(row["attempts"])
        model = self._model(str(row["model"]))
        model.answers += 1
        if paid is not None:
            model.input_tokens += int(paid.get("input_tokens") or 0)
            model.output_tokens += int(paid.get("output_tokens") or 0)
            model.cost_usd += float(paid.get("cost_usd") or 0.0)
            model.unpriced += paid.get("cost_usd") is None
        model.inputs.append(float(usage.get("input_tokens") or 0))
        model.outputs.append(float(usage.get("output_tokens") or 0))
        model.warned += bool(row.get("warnings"))
        if attempts and paid is not None:
            model.latencies.append(latency)
        else:
            model.reused += 1
        if reason := finish_reason(row):
            model.reasons[reason if len(model.reasons) < _CLASSES else "other"] += 1

    def add_error(self, row: Mapping[str, Any], file: str) -> None:
        """Raises the same for a row that is not an error line."""
        error = row["error"]
        code = error.get("code") or error.get("status")
        kind = visible(str(error["class"]))[:_NAME], "" if code is None else visible(str(code))[:_NAME]
        if kind not in self.errors and len(self.errors) >= _CLASSES:
            kind = OTHER_ERRORS, ""
        found = self.errors.setdefault(kind, ErrorTally())
        found.lines += 1
        found.retryable += bool(error.get("retryable"))
        message = visible(str(error.get("message") or ""))[:_MESSAGE]
        if len(found.examples) < _EXAMPLES and message not in {one.message for one in found.examples}:
            found.examples.append(ErrorExample(f"{file}, byte {int(error['offset']):,}", message))

    @property
    def answers(self) -> int:
        """How many answers were read."""
        return sum(model.answers for model in self.models.values())

    @property
    def error_lines(self) -> int:
        """How many error lines were read."""
        return sum(error.lines for error in self.errors.values())

    def _model(self, name: str) -> ModelTally:
        name = visible(name)[:_NAME]
        if name not in self.models and len(self.models) >= _MODELS:
            name = OTHER_MODELS
        return self.models.setdefault(name, ModelTally())


def finish_reason(row: Mapping[str, Any]) -> str:
    """Why an answer ended, or ""."""
    body = row["response"].get("body")
    if is_response(body):
        return visible(str(read_response(body).finish_reason or ""))[:40]
    choices = body.get("choices") if isinstance(body, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    return visible(str(first.get("finish_reason") or ""))[:40] if isinstance(first, dict) else ""
