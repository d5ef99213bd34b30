"""The formats of text that records are written in: JSON lines, and CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, Protocol

import orjson

from llmdo.runners.inspecting.export.columns import Columns
from llmdo.runners.inspecting.export.reading import json_bytes, json_text
from llmdo.runners.inspecting.export.records import Record
from llmdo.storage.objects.store import Upload


class TableFormat(Protocol):
    """Writes records as a file; learns from them what its header must hold, which may be more than it wrote."""

    columns: Columns
    guesses: bool  # whether a file is begun by what its first records show

    def learn(self, records: Sequence[Record]) -> bool:
        """Takes in what records have; returns whether a file that was begun before still holds."""

    def begin(self, upload: Upload) -> None:
        """Starts a file with all that is known."""

    def write(self, records: Sequence[Record]) -> None:
        """Adds records to the file, which were learnt."""

    def end(self) -> None:
        """Completes the bytes of the file."""

    def drop(self) -> None:
        """The file is given up."""


class JsonLines:
    """One object a line. A field that a line of the input does not have is not there, unless it was chosen."""

    guesses = False

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self._chosen = columns.chosen

    def learn(self, records: Sequence[Record]) -> bool:
        """See TableFormat: there is no header."""
        if self._chosen is not None:
            self.columns.learn(records)
        return True

    def begin(self, upload: Upload) -> None:
        """See TableFormat."""
        self._upload = upload

    def write(self, records: Sequence[Record]) -> None:
        """See TableFormat."""
        if self._chosen is not None:
            records = [{name: record.get(name) for name in self._chosen} for record in records]
        try:
            body = b"\n".join(map(orjson.dumps, records))
        except TypeError:  # a whole number of more than 64 bits
            body = b"\n".join(map(json_bytes, records))
        self._upload.write(body + b"\n")

    def end(self) -> None:
        """See TableFormat."""

    def drop(self) -> None:
        """See TableFormat."""


class Csv:
    """RFC 4180 in UTF-8, with a header. Null is an empty cell, an empty text is ``""``; what is nested is JSON."""

    guesses = True

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self._names: tuple[str, ...] = ()

    def learn(self, records: Sequence[Record]) -> bool:
        """See TableFormat."""
        return not self.columns.learn(records) or self.columns.chosen is not None

    def begin(self, upload: Upload) -> None:
        """See TableFormat."""
        self._upload, self._names = upload, self.columns.names
        upload.write((",".join(map(_text_cell, self._names)) + "\r\n").encode())

    def write(self, records: Sequence[Record]) -> None:
        """See TableFormat."""
        columns = [_cells([record.get(name) for record in records]) for name in self._names]
        lines = [",".join(cells) for cells in zip(*columns, strict=True)]
        if len(self._names) == 1:  # an empty line would be no record
            lines = [line or '""' for line in lines]
        lines.append("")
        self._upload.write("\r\n".join(lines).encode())

    def end(self) -> None:
        """See TableFormat."""

    def drop(self) -> None:
        """See TableFormat."""


def _cells(values: list[Any]) -> list[str]:
    """A column's cells."""
    kinds = set(map(type, values))
    if kinds == {int}:
        return [*map(str, values)]
    if kinds <= {str, NoneType}:
        seen: dict[str | None, str] = {None: ""}  # names repeat
        return [seen[value] if value in seen else seen.setdefault(value, _text_cell(value)) for value in values]
    return [*map(_cell, values)]


def _text_cell(text: str) -> str:
    """As RFC 4180 has it. Quoted are an empty text, too, which is not a null, and spaces at an end."""
    if not text or '"' in text or "," in text or "\n" in text or "\r" in text or text[0] <= " " or text[-1] <= " ":
        return '"' + text.replace('"', '""') + '"'
    return text


def _cell(value: Any) -> str:
    kind = type(value)
    if value is None:
        return ""
    if kind is str:
        return _text_cell(value)
    if kind is bool:
        return "true" if value else "false"
    if kind is int or kind is float:
        return repr(value)
    return _text_cell(json_text(value))


ENDINGS: Mapping[str, str] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}
CONTENT_TYPES = {"jsonl": "application/x-ndjson", "csv": "text/csv", "parquet": "application/vnd.apache.parquet"}
