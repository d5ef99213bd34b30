"""Reads a source and the rows of its output the plain way, to compare what the pipeline made with what it was given.

Deliberately shares no code with transforms/lines/cutting.py and transforms/answers/rows.py, nor their mistakes.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import zstandard

from llmdo.storage.output.manifests import ShardKind, paid_usage

_BOM = b"\xef\xbb\xbf"
# The content of longer lines is not compared: they exceed any sensible --max-line-bytes. Bytes.
LONGEST_COMPARED = 64 << 20
_PIECE = 1 << 20  # bytes read at once
_ERROR_FIELDS = {"class", "code", "status", "message", "retryable", "attempts", "offset", "length"}
# What source_lines raises for damaged compressed data.
DAMAGED = (EOFError, OSError, zlib.error, zstandard.ZstdError)

# What other batch APIs call a custom_id, and the field that holds the request beside it.
_FOREIGN_IDS = (("key", "request"), ("recordId", "modelInput"))


@dataclass(frozen=True, slots=True)
class SourceLine:
    """The bytes [start, stop) of a source; ``data`` has no line ending, no BOM; None from LONGEST_COMPARED on.

    What stands ``between`` lines, such as a table's header, needs no row.
    """

    start: int
    stop: int
    data: bytes | None
    between: bool = False


@dataclass(frozen=True, slots=True)
class ShardRow:
    """The comparable parts of a shard's row: its place, ids of an answer, the whole row of a failure.

    ``key`` and ``etag`` are those that the row itself names; an error row names none.
    """

    shard: str
    start: int
    stop: int
    document: dict[str, Any]
    kind: ShardKind
    key: str | None = None
    etag: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0


class UnreadableRow(ValueError):
    """A row that is neither an answer nor a failure; the message continues a sentence."""


def source_lines(chunks: Iterable[bytes], key: str) -> Iterator[SourceLine]:
    """Every line of a source, blank ones too; a few pieces are in memory. Raises DAMAGED."""
    held: list[bytes] = []
    at, kept, size = 0, True, 0  # the unfinished line: where it begins, whether it is kept in ``held``, its bytes
    with unpacked(chunks, key) as file:
        while piece := file.read(_PIECE):
            *ends, rest = piece.split(b"\n")
            for end in ends:
                stop = at + size + len(end) + 1
                yield SourceLine(at, stop, _data(at, b"".join((*held, end))) if kept else None)
                at, kept, held, size = stop, True, [], 0
            size += len(rest)
            kept = kept and size < LONGEST_COMPARED
            held = [*held, rest] if kept else []
    if size:
        yield SourceLine(at, at + size, _data(at, b"".join(held)) if kept else None)


def is_blank(line: SourceLine) -> bool:
    """Whether a line holds nothing to answer."""
    return line.data is not None and not line.data.strip(b" \t\r")


def parse_row(data: bytes, kind: ShardKind, shard: str) -> ShardRow:
    """Reads one row of a shard. Raises UnreadableRow."""
    document = _object(data)
    if document is None:
        raise UnreadableRow("is not a JSON object")
    place = document.get("source" if kind == "answers" else "error")
    try:
        start, length = place["offset"], place["length"]  # type: ignore[index]  # anything but a mapping raises TypeError
    except (TypeError, KeyError):
        raise UnreadableRow("does not say which bytes it stands for") from None
    if not (isinstance(start, int) and isinstance(length, int) and start >= 0 and length > 0):
        raise UnreadableRow(f"stands for {length!r} bytes at {start!r}, which cannot be")
    if kind == "errors":
        return ShardRow(shard, start, start + length, document, kind)
    if document.get("error") is not None or not isinstance(document.get("response"), dict):
        raise UnreadableRow("is not an answer, but is in a shard of answers")
    usage = paid_usage(document) or {}
    return ShardRow(
        shard,
        start,
        start + length,
        {"id": document.get("id"), "custom_id": document.get("custom_id")},
        kind,
        str(place.get("key")),  # type: ignore[union-attr]  # as above
        str(place.get("etag")),  # type: ignore[union-attr]  # as above
        int(usage.get("input_tokens", 0)),
        int(usage.get("output_tokens", 0)),
    )


def differs(row: ShardRow, line: SourceLine, key: str) -> Iterator[str]:
    """How a row differs from its source line; both begin at the same byte."""
    if row.stop != line.stop:
        yield f"the row has {row.stop - row.start} bytes, and the line {line.stop - line.start}"
    if is_blank(line):
        yield "the line is blank, and needs no row"
    elif line.data is None:
        return
    elif row.kind == "answers":
        for name, allowed in _ids(line.data, f"{key}:{line.start}").items():
            if not any(_names(row.document[name], value, text=name == "custom_id") for value in allowed):
                yield f"the answer's {name} is {row.document[name]!r}, and the line's is {allowed[0]!r}"
    elif not _same(row.document, line.data):
        yield "the error row is not the input line with an error added"


def _ids(data: bytes, default: str) -> dict[str, list[Any]]:
    """The values that a row's ids may have; the first is the one that is written today."""
    document = _object(_without_error(data)) or {}
    given = {name: document[name] for name in ("id", "custom_id") if document.get(name) is not None}
    # What Gemini and Bedrock call a custom_id; with a template it is a field like any other.
    foreign = [document.get(name) for name, holder in _FOREIGN_IDS if isinstance(document.get(holder), dict)]
    others = [value for value in (*given.values(), *foreign) if value is not None]
    if not given or None in (document.get(name, default) for name in ("id", "custom_id")):
        others.append(default)
    return {name: [given[name]] if name in given else others for name in ("id", "custom_id")}


def _names(written: Any, value: Any, *, text: bool) -> bool:
    """Whether an id is that of the line, or its ``text``; in rows of earlier versions a custom_id may be a number."""
    if written == value and isinstance(written, bool) == isinstance(value, bool):
        return True
    with suppress(ValueError):
        return text and not isinstance(value, str) and isinstance(written, str) and json.loads(written) == value
    return False


def _same(row: dict[str, Any], data: bytes) -> bool:
    """An error row is the line's object with ``error``, or its text, or its bytes, or nothing when it was too long."""
    rest = {name: value for name, value in row.items() if name != "error"}
    data = _without_error(data)
    if isinstance(line := row["error"].get("line"), str):
        return line.encode(errors="surrogatepass") == data
    if rest == {"raw": None} and row["error"].get("class"):
        return True
    # What follows may also be the only field of a line that is an object.
    if rest.keys() == {"raw"} and isinstance(rest["raw"], str) and rest["raw"].encode(errors="surrogatepass") == data:
        return True
    if rest == {"raw_base64": base64.b64encode(data).decode()}:
        return True
    document = _object(data)
    return document is not None and rest == {name: value for name, value in document.items() if name != "error"}


def _without_error(data: bytes) -> bytes:
    """The original line of an error row that was fed back; any other line as it is."""
    document = _object(data) or {}
    former = document.get("error")
    if not (isinstance(former, dict) and former.keys() >= _ERROR_FIELDS):
        return data
    rest = {name: value for name, value in document.items() if name != "error"}
    if isinstance(former.get("line"), str):
        return _without_error(former["line"].encode(errors="surrogatepass"))
    if rest.keys() == {"raw"} and isinstance(rest["raw"], str):
        return _without_error(rest["raw"].encode(errors="surrogatepass"))
    with suppress(ValueError):
        if rest.keys() == {"raw_base64"} and isinstance(rest["raw_base64"], str):
            return _without_error(base64.b64decode(rest["raw_base64"], validate=True))
    return json.dumps(rest).encode()


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _data(start: int, line: bytes) -> bytes:
    if start == 0:
        line = line.removeprefix(_BOM)
    return line.removesuffix(b"\r")


def unpacked(chunks: Iterable[bytes], key: str) -> BinaryIO:
    """The content of a source as a file."""
    raw = io.BufferedReader(_Chunks(chunks), _PIECE)
    if key.lower().endswith(".gz"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if key.lower().endswith(".zst"):
        return cast(BinaryIO, zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True))
    return raw


class _Chunks(io.RawIOBase):
    """A stream of chunks as a file."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size
