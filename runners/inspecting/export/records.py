"""A row of an output as a record: column → value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmdo.runners.inspecting.export.columns import (
    ANSWER,
    INPUT_PREFIX,
    PROPERTY_PREFIX,
    RESERVED,
    VECTOR,
    VECTORS,
    ColumnNames,
)
from llmdo.runners.inspecting.export.reading import has_large, json_text, read_value
from llmdo.runners.inspecting.export.saying import said_in
from llmdo.storage.errors import StorageError
from llmdo.storage.output.rows import ParsedRow
from llmdo.transforms.prompts.fields import metadata_of
from llmdo.transforms.prompts.line_json import BadLine, unwrapped

_BOM = b"\xef\xbb\xbf"
Record = dict[str, Any]
_NONE: Record = {}
# What only answers have.
_OF_ANSWERS = dict.fromkeys(("model", "input_tokens", "output_tokens", "cost_usd", "finish_reason"))


@dataclass(frozen=True, slots=True)
class RowSource:
    """The file that rows are of: its ``key``, its ``name`` in the table, and where to look if a row is damaged."""

    key: str
    name: str
    folder: str


class RecordMaker:
    """Makes records.

    Args:
        properties: the properties of the schema that answers match, if there is one.
        templated: whether lines were filled into a template, so that ``metadata`` is a field like the others.
        vector: makes a cell of a vector as it stands in a row.
    """

    def __init__(self, properties: Sequence[str], *, templated: bool, vector: Callable[[Any], Any]) -> None:
        names = ColumnNames(RESERVED, PROPERTY_PREFIX)
        self._properties = tuple((name, names[name]) for name in properties)
        self.property_columns = dict(self._properties)
        self._columns = ColumnNames(RESERVED.union(self.property_columns.values()), INPUT_PREFIX)
        self._spread = not templated
        self._vector = vector

    def record(self, row: ParsedRow, source: RowSource, line: bytes | None) -> Record:
        """The record of a row, with the fields of ``line``, its line of the source; by the row alone where that is
        None. Raises StorageError for a damaged row.
        """
        try:
            if row.kind == "errors":
                return self._error(row, source)
            return self._answer(row, source, line)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise StorageError(
                f"{source.folder} has a row that cannot be read, at offset {row.start}: llmdo verify says what is wrong"
            ) from None

    def _answer(self, row: ParsedRow, source: RowSource, line: bytes | None) -> Record:
        document = row.document
        if type(document["id"]) is not str and has_large(document["id"]):
            document = read_value(row.line)
        said, usage = said_in(document["response"]["body"]), document["usage"] or {}
        if line is not None:
            fields = self._own(_object(line.removeprefix(_BOM) if row.start == 0 else line), document["id"])
        else:
            fields = document.get("metadata") or {}
            if has_large(fields):
                fields = read_value(row.line)["metadata"]
        return {
            "id": document["id"],
            **self._columns.renamed(fields),
            ANSWER: said.text,
            **(self._of_properties(said.text) if self._properties else _NONE),
            **(self._of_vectors(said.vectors) if said.vectors is not None else _NONE),
            "error": None,
            "model": document["model"],
            "input_tokens": usage.get("input_tokens"),
            "output_tokens": usage.get("output_tokens"),
            "cost_usd": usage.get("cost_usd"),
            "finish_reason": said.reason,
            "source": source.name,
            "offset": row.start,
        }

    def _error(self, row: ParsedRow, source: RowSource) -> Record:
        fields = read_value(row.line)
        error = fields.pop("error")
        if isinstance(error.get("line"), str):  # the line has a field of this name itself
            fields = _object(error["line"].encode())
        elif fields.keys() in ({"raw"}, {"raw_base64"}):
            fields = {}
        own = fields.get("id", fields.get("custom_id"))
        if own is None:
            own = f"{source.key}:{row.start}"
        code = error.get("code")
        return {
            "id": own,
            **self._columns.renamed(self._own(fields, own)),
            ANSWER: None,
            **(self._of_properties(None) if self._properties else _NONE),
            "error": {
                "class": error.get("class"),
                "code": code if code is None or isinstance(code, str) else json_text(code),
                "message": error.get("message"),
            },
            **_OF_ANSWERS,
            "source": source.name,
            "offset": row.start,
        }

    def _own(self, fields: dict[str, Any], own_id: Any) -> Mapping[str, Any]:
        """A line's fields without its id, which has a column of its own."""
        if "id" not in fields or fields.get("custom_id") == own_id:
            fields.pop("custom_id", None)
        fields.pop("id", None)
        return metadata_of(fields, spread=True) if self._spread and "metadata" in fields else fields

    def _of_properties(self, text: str | None) -> Record:
        try:
            found = read_value(text) if text else None
        except ValueError:
            found = None
        found = found if isinstance(found, dict) else {}
        return {column: found.get(name) for name, column in self._properties}

    def _of_vectors(self, vectors: Sequence[Any]) -> Record:
        cells = [self._vector(vector) for vector in vectors]
        return {VECTOR: cells[0]} if len(cells) == 1 else {VECTORS: cells}


def _object(line: bytes) -> dict[str, Any]:
    """A line that was answered, or that is in an error row; the original line of an error row that was fed back."""
    try:
        found = read_value(unwrapped(line) if b'"retryable"' in line else line)
    except (ValueError, BadLine):
        return {}
    return found if isinstance(found, dict) else {}
