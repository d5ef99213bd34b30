"""Reads files of prompts as rows, for pipelines of others: every format and packing that ``llmdo run`` takes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import apache_beam as beam
from apache_beam.pvalue import PBegin, PCollection
from apache_beam.typehints.row_type import RowTypeConstraint

from llmdo.storage.output.manifests import FormatName
from llmdo.transforms.elements import Blank, FileVersion, Line, OpenFile
from llmdo.transforms.files.listing import list_inputs
from llmdo.transforms.files.source import Listing
from llmdo.transforms.kinds.inside import look_inside
from llmdo.transforms.lines.reading import NO_END, Reading, read_range, unread
from llmdo.transforms.prompts.line_json import BadLine, json_object
from llmdo.transforms.rows.columns import Column, property_columns, typed_values

# Rows whose fields say what the others have, where nobody says it.
_LOOKED_AT = 100
_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number"}


@dataclass(eq=False)  # not frozen: Beam writes hints and labels into its transforms
class ReadPrompts(beam.PTransform):
    """Files → rows with a Beam schema: ``pipeline | ReadPrompts("r2://bucket/tickets/")``.

    Files are named as for ``llmdo run``: files, folders, patterns, ``r2://BUCKET/PREFIX/``; JSONL, CSV, TSV, arrays of
    JSON and Parquet, packed or not. They are listed when the pipeline is made; each is read by one worker. A line that
    is no JSON object, or that has a value of another type, fails the pipeline with its place.

    Args:
        path: a place, or several.
        format: of all files, whatever their endings: jsonl, csv, tsv, json, parquet.
        fields: name → string, integer, number or boolean, or a JSON schema; by default all fields of the first 100
            rows. A field that a row does not have is null.

    ``expand`` raises StorageError, and ValueError where there is no file, or no row to learn the fields from.
    """

    path: str | Sequence[str]
    format: FormatName | Literal[""] = ""
    fields: Mapping[str, Any] | None = None

    def expand(self, pipeline: PBegin) -> PCollection[Any]:
        """Begin → rows."""
        paths = (self.path,) if isinstance(self.path, str) else tuple(self.path)
        files = [notice.file for notice in list_inputs(Listing(paths, self.format), None)]
        if not files:
            raise ValueError(f"there is no file in {', '.join(paths)}: name files, folders, patterns or r2:// prefixes")
        columns = property_columns({"properties": self._schemas(files)}, ())
        kind = RowTypeConstraint.from_fields([(one.column, one.kind) for one in columns])
        return (
            pipeline
            | "Name files" >> beam.Create(files, reshuffle=True)
            | "Read" >> beam.FlatMap(_rows_of, columns).with_output_types(kind)
        )

    def _schemas(self, files: Sequence[FileVersion]) -> Mapping[str, Any]:
        if self.fields is not None:
            return {name: {"type": one} if isinstance(one, str) else one for name, one in self.fields.items()}
        first = itertools.islice(itertools.chain.from_iterable(map(_objects_of, files)), _LOOKED_AT)
        found: dict[str, Any] = {}
        for row, _ in first:
            for name, value in row.items():
                found[name] = _wider(found.get(name), value)
        if not found:
            raise ValueError("the files have no row to learn the fields from: name them with fields=")
        return {name: schema or {"type": "string"} for name, schema in found.items()}


def _wider(known: Mapping[str, Any] | None, value: Any) -> Mapping[str, Any] | None:
    """A schema for what was known and for one more value; {"enum": []} for values of several kinds, None for nulls."""
    if value is None:
        return known
    if isinstance(value, list):
        items = known.get("items") if known else None
        for one in value:
            items = _wider(items, one)
        found: Mapping[str, Any] = {"type": "array", "items": items or {"type": "string"}}
    else:
        kind = _TYPES.get(type(value))
        found = {"type": kind} if kind else {"enum": []}
    if known is None or known.get("type") == found.get("type"):
        return found
    both = {known.get("type"), found.get("type")}
    return {"type": "number"} if both == {"integer", "number"} else {"enum": []}


def _objects_of(file: FileVersion) -> Iterator[tuple[Mapping[str, Any], str]]:
    """A file's rows and their places. Raises StorageError, and BadLine for what is no row."""
    reading = Reading(max_line_bytes=NO_END)
    whole = OpenFile(look_inside(file, None), gaps=((0, None),))
    if unread(whole, reading) is not None:
        return
    for tile in itertools.chain.from_iterable(read_range(whole, 0, NO_END, reading)):
        if isinstance(tile, Blank):
            continue
        place = f"{file.place}:{tile.start}"
        if not isinstance(tile, Line) or tile.problem:
            raise BadLine(f"{place}: {tile.problem if isinstance(tile, Line) else 'the line is too long'}")
        try:
            yield json_object(tile.data), place
        except BadLine as error:
            raise BadLine(f"{place}: {error.message}") from None


def _rows_of(file: FileVersion, columns: Sequence[Column]) -> Iterator[beam.Row]:
    for row, place in _objects_of(file):
        try:
            yield beam.Row(**typed_values(row, columns))
        except ValueError as error:
            raise BadLine(f"{place}: {error}: name the types with fields=") from None
