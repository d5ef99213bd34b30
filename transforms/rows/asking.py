"""The calls about rows: what is asked for a row, and the row that comes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.typehints import typehints
from apache_beam.typehints.row_type import RowTypeConstraint
from apache_beam.typehints.schemas import named_fields_from_element_type
from pydantic_core import to_json

from llmdo.backends.engine.engine import Engine
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import ModelError, ModelUnusable, Retryable
from llmdo.backends.requests import EmbedRequest
from llmdo.backends.responses import ChatResponse, EmbedResponse, Response
from llmdo.transforms.prompts.line_json import BadLine
from llmdo.transforms.prompts.parse import Defaults, Prompt, parse_prompt
from llmdo.transforms.rows.columns import Column, answer_values, nullable

WITHOUT_ANSWER = "failures"
_TEXT = "text"  # the field that a row has that is a text


@dataclass(frozen=True, slots=True)
class Asking:
    """What decides what is asked and which columns come of it; see AskModel.

    Attributes:
        error: the column that says why there is no answer; "": such rows leave by another way.
        added: all columns that a row gets.
    """

    defaults: Defaults
    calls: CallSettings
    embed: str
    key: str
    into: str
    error: str
    columns: tuple[Column, ...]
    added: tuple[str, ...]


def fields_of_rows(element_type: Any) -> list[tuple[str, Any]] | None:
    """The fields of rows of a type; None for one whose rows are dicts, or of any kind."""
    if element_type is str:
        return [(_TEXT, str)]
    try:
        return list(named_fields_from_element_type(element_type))
    except TypeError:
        return None


def are_dicts(element_type: Any) -> bool:
    """Whether all rows of a type are dicts. Beam has an Any of its own where nobody says what a step gives."""
    dicts = typehints.Dict[typehints.Any, typehints.Any]
    return element_type not in (Any, typehints.Any) and typehints.is_consistent_with(element_type, dicts)


def check_free(added: Iterable[str], taken: Iterable[str]) -> None:
    """Raises ValueError where rows have a field of a name that they are to get."""
    both = set(added).intersection(taken)
    if both:
        raise ValueError(f"the rows have a field {min(both)!r} already: name another column with into=")


def fields_of_row(row: Any) -> dict[str, Any]:
    """A row's fields. Raises BadLine for what is none."""
    if isinstance(row, str):
        return {_TEXT: row}
    if isinstance(row, Mapping):
        return dict(row)
    if hasattr(row, "_asdict"):
        return dict(row._asdict())
    if hasattr(row, "__dataclass_fields__"):
        return {name: getattr(row, name) for name in row.__dataclass_fields__}
    raise BadLine(f"a {type(row).__name__} is no row: give a beam.Row, a NamedTuple, a dict or a text")


def prompt_of(asking: Asking, fields: Mapping[str, Any], engine: Engine) -> Prompt:
    """What is asked about a row. Raises LineError, and for the step's own provider any ModelError."""
    defaults, document = asking.defaults, fields
    if asking.embed:
        if asking.embed not in fields:
            raise BadLine(f"the row has no {asking.embed!r} to embed: name another field with embed=")
        document = {_TEXT: fields[asking.embed]}
    elif defaults.prompt:  # other fields may be what JSON cannot hold
        document = {name: fields[name] for name in defaults.fields if name in fields}
    elif fields.keys() == {_TEXT} and engine.max_texts(*defaults.model.split("/", 1)) == 1:
        document = {"prompt": fields[_TEXT]}
    named = ""
    if asking.key:
        if fields.get(asking.key) is None:
            raise BadLine(f"the row has no {asking.key!r}, which names it in the ledger: add it, or leave out key=")
        named = str(fields[asking.key])
    try:
        line = to_json(document, fallback=str)
    except Exception as error:  # an object that is not JSON may raise anything
        raise BadLine(f"the row cannot be written as JSON: {error}") from error
    prompt = parse_prompt(line, named, defaults, engine.max_texts)
    if asking.embed and not isinstance(prompt.request, EmbedRequest):
        raise ModelUnusable(f"{defaults.model} embeds nothing: name a model for embeddings")
    return prompt


def answer_columns(asking: Asking, response: Response) -> dict[str, Any]:
    """The columns of an answer. Raises BadReply for one that they cannot hold."""
    if isinstance(response, EmbedResponse):
        return {asking.into: [float(number) for number in response.vectors[0]]}
    if isinstance(response, ChatResponse):
        text = response.text
        if text is None and response.tool_calls:
            text = to_json(response.tool_calls).decode()
    else:
        text = response.result if isinstance(response.result, str) else to_json(response.result).decode()
    return {asking.into: text, **answer_values(text, asking.columns)}


def failure_type(row: Any) -> RowTypeConstraint:
    """The type of failures of rows of a type."""
    return RowTypeConstraint.from_fields(
        [("row", row), ("error_class", str), ("code", nullable(str)), ("message", str), ("retryable", bool)]
    )


def failure_of(row: Any, error: ModelError) -> beam.Row:
    """What is known of a row without an answer."""
    code = error.code if error.code is not None else error.status
    return beam.Row(
        row=row,
        error_class=type(error).__name__,
        code=None if code is None else str(code),
        message=error.message,
        retryable=isinstance(error, Retryable),
    )
