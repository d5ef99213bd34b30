"""Turns the rows of an error shard back into lines of input, if they are to be tried again."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json, to_json

from llmdo.storage.output.intervals import Intervals
from llmdo.storage.output.manifests import ManifestShard, shard_name
from llmdo.transforms.elements import FileVersion, Line
from llmdo.transforms.prompts.line_json import BadLine, json_object


@dataclass(frozen=True, slots=True)
class ErrorLines:
    """The rows of one error shard: lines to try ``again``, and rows (start, stop, JSON) to be ``kept`` as they are."""

    again: tuple[Line, ...]
    kept: tuple[tuple[int, int, bytes], ...]


def take_back(file: FileVersion, shard: ManifestShard, body: bytes, everything: bool) -> ErrorLines:
    """Divides an error shard: rows with a retryable error are tried again, or with ``everything`` all with content.

    A Line has the offsets, and so the identity, of the row's original line. Raises ValueError for a shard that does not
    match the manifest.
    """
    again: list[Line] = []
    kept: list[tuple[int, int, bytes]] = []
    if shard_name("errors", shard.first, body) != shard.name:
        raise ValueError("it does not hold what was written under its name")
    for row in body.split(b"\n")[:-1]:
        document = from_json(row)
        error = document["error"]
        start = int(error["offset"])
        stop = start + int(error["length"])
        data = _data(row, document) if everything or error["retryable"] is True else None
        if data is None:
            kept.append((start, stop, row))
        else:
            again.append(Line(file, start, stop, data))
    tiles = [*((line.start, line.stop) for line in again), *((start, stop) for start, stop, _ in kept)]
    if Intervals(tiles) != Intervals.decode(shard.tiles):
        raise ValueError("its rows stand for other bytes than the manifest says")
    return ErrorLines(tuple(again), tuple(kept))


def _data(row: bytes, document: Mapping[str, Any]) -> bytes | None:
    """The line's content; None if it was too long to keep."""
    if isinstance(line := document["error"].get("line"), str):
        return line.encode("utf-8", "surrogatepass")
    # Rows without it that earlier versions wrote need a closer look.
    rest = {name: value for name, value in document.items() if name != "error"}
    if rest == {"raw": None}:
        return None
    # The parser takes the text out of such a row; if the line fails again, its row stays the same.
    return row if _stands_for_text(rest, document["error"]) else to_json(rest)


def _stands_for_text(rest: Mapping[str, Any], error: Mapping[str, Any]) -> bool:
    """Whether ``raw`` or ``raw_base64`` is the whole line, rather than the only field of a line that is an object.

    A line that is an object was parsed; text that is not an object cannot be, and text that is one was in an error row.
    """
    text: object = None
    if rest.keys() == {"raw"}:
        text = rest["raw"]
    elif rest.keys() == {"raw_base64"}:
        text = rest["raw_base64"]
    if not isinstance(text, str):
        return False
    if error["class"] == BadLine.__name__:
        return True
    with suppress(ValueError, BadLine):
        json_object(text.encode() if "raw" in rest else base64.b64decode(text))
        return True
    return False
