"""From an error shard back to lines of input: which of its rows are tried again, and what is read for them."""

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
    """The rows of one error shard: lines to answer ``again``, and rows (start, stop, JSON) that stay as they are."""

    again: tuple[Line, ...]
    kept: tuple[tuple[int, int, bytes], ...]


def take_back(file: FileVersion, shard: ManifestShard, body: bytes, everything: bool) -> ErrorLines:
    """Divides an error shard: again come the rows with a retryable error, or with ``everything`` all that have content.

    A Line has the offsets, and so the identity, of the line that the row stands for. Raises ValueError for a shard that
    is not what the manifest says.
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
    """What is read as the line; None for a line whose content was too long to keep."""
    if isinstance(line := document["error"].get("line"), str):
        return line.encode("utf-8", "surrogatepass")
    # Of rows without it, those of earlier versions need a closer look.
    rest = {name: value for name, value in document.items() if name != "error"}
    if rest == {"raw": None}:
        return None
    # Whoever reads the line takes the text out of such a row; if it fails again, the row stays what it is.
    return row if _stands_for_text(rest, document["error"]) else to_json(rest)


def _stands_for_text(rest: Mapping[str, Any], error: Mapping[str, Any]) -> bool:
    """Whether ``raw`` or ``raw_base64`` is the line itself, not the only field of a line that is an object.

    An object got as far as the model; text that is no object did not, and text that is one came in an error line.
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
