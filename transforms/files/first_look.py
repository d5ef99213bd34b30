"""Recognises a file that is not JSONL by its first bytes, for one error about it instead of one for each line."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from llmdo.storage.objects.opening import open_store
from llmdo.transforms.elements import FileVersion
from llmdo.transforms.lines.cutting import BOM, DECOMPRESSORS, GZIP_MAGIC, CorruptData

# As much as is looked at, packed and unpacked. Bytes.
HEAD_BYTES = 16 << 10
_GZIP, _ZSTD = GZIP_MAGIC, b"\x28\xb5\x2f\xfd"
_TO_JSONL = "convert it to JSONL, one JSON object a line"

# What a file begins with, what it is then, and what to do.
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer, not the file itself", "fetch it: git lfs pull"),
    (b"/annex/objects/", "a git-annex pointer, not the file itself", "fetch it: git annex get"),
    (b"\x1e{", "a JSON text sequence (RFC 7464)", "remove its record separators: tr -d '\\036'"),
    (_GZIP, "gzip data, and its name does not end in .gz", "rename it, or unpack it: gunzip"),
    (_ZSTD, "zstd data, and its name does not end in .zst", "rename it, or unpack it: unzstd"),
    (b"PK\x03\x04", "a zip archive", "unpack it: unzip"),
    (b"BZh", "bzip2 data", "unpack it: bunzip2"),
    (b"\xfd7zXZ\0", "xz data", "unpack it: unxz"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it: 7z x"),
    (b"PAR1", "a Parquet file", _TO_JSONL),
    (b"ARROW1", "an Arrow file", _TO_JSONL),
    (b"Obj\x01", "an Avro file", _TO_JSONL),
    (b"ORC", "an ORC file", _TO_JSONL),
    (b"SQLite format 3\0", "an SQLite database", _TO_JSONL),
    (b"%PDF-", "a PDF document", _TO_JSONL),
    (b"\xff\xfe\0\0", "UTF-32 text", "convert it: iconv -f UTF-32 -t UTF-8"),
    (b"\0\0\xfe\xff", "UTF-32 text", "convert it: iconv -f UTF-32 -t UTF-8"),
    (b"\xff\xfe", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8"),
)
# The name of the first file in a zip archive (at byte 30) that an office program wrote.
_OFFICE = (b"[Content_Types].xml", b"_rels/", b"docProps/", b"xl/", b"word/", b"mimetype")
# By which of the first four bytes are NUL.
_WIDE: dict[tuple[bool, ...], str] = {
    (False, True, False, True): "UTF-16LE",
    (True, False, True, False): "UTF-16BE",
    (False, True, True, True): "UTF-32LE",
    (True, True, True, False): "UTF-32BE",
}


def head_of(file: FileVersion) -> bytes:
    """The first bytes of a file as stored. Raises StorageError."""
    return b"".join(open_store(file.store_url).stream(file.key, file.etag, 0, HEAD_BYTES))


def wrong_format(file: FileVersion, head: bytes) -> str | None:
    """A sentence about a file that begins with ``head``, as stored, and is not JSONL; None if it may be."""
    name = file.place
    if file.compression:
        magic, ending = (_GZIP, ".gz") if file.compression == "gzip" else (_ZSTD, ".zst")
        # zstd's skippable frames begin with 0x184D2A5?.
        if head and not head.startswith(magic) and head[1:4] != b"\x2a\x4d\x18":
            what = _what(head, whole=len(head) == file.size)
            said = f"{what[0]}: {what[1]}" if what else f"not {file.compression} data: rename it without {ending}"
            return f"{name} is {said}"
        content, whole = _unpacked(file, head)
        if content.startswith((_GZIP, _ZSTD)):
            return f"{name} is compressed twice: unpack it once: {'gunzip' if file.compression == 'gzip' else 'unzstd'}"
        found = _what(content, whole=whole)
    else:
        found = _what(head, whole=len(head) == file.size)
    return None if found is None else f"{name} is {found[0]}: {found[1]}"


def _unpacked(file: FileVersion, head: bytes) -> tuple[bytes, bool]:
    """The content's first bytes, and whether they are all of it."""
    content = bytearray()
    with suppress(CorruptData):  # it was cut, or it is damaged, which reading it will report
        for chunk in DECOMPRESSORS[file.compression or ""]([head]):
            content += chunk
            if len(content) > HEAD_BYTES:
                return bytes(content[:HEAD_BYTES]), False
        return bytes(content), True
    return bytes(content), False


def _what(head: bytes, *, whole: bool) -> tuple[str, str] | None:
    """What it is, and what to do."""
    head = head.removeprefix(BOM)
    if head.startswith(b"PK\x03\x04") and head.startswith(_OFFICE, 30):
        return "a spreadsheet or another office document", _TO_JSONL
    if head.startswith(b"ustar", 257):
        return "a tar archive", "unpack it: tar -xf"
    named = next(((what, remedy) for magic, what, remedy in _MAGIC if head.startswith(magic)), None)
    return named or _binary(head) or _text(head.lstrip(b" \t\r\n"), whole=whole)


def _binary(head: bytes) -> tuple[str, str] | None:
    """Text in UTF-16 or UTF-32 without a BOM, by the NULs beside its first two characters; other NULs."""
    nuls = tuple(byte == 0 for byte in head[:4])
    if name := _WIDE.get(nuls):
        return f"{name} text", f"convert it: iconv -f {name} -t UTF-8"
    # A broken line among others has an error of its own.
    objects = any(line.lstrip(b" \t\r").startswith(b"{") for line in head.split(b"\n"))
    return ("binary data", _TO_JSONL) if 0 in head and not objects else None


def _text(text: bytes, *, whole: bool) -> tuple[str, str] | None:
    lines = [line for line in text.replace(b"\r\n", b"\n").split(b"\n") if line.strip()]
    match text[:1]:
        case b"":
            return None
        case b"<":
            return "XML or HTML", _TO_JSONL
        case b"[":
            return _array(lines, whole=whole)
        case b"{":
            return _object(lines)
        case b'"' if all(line.startswith(b'"{""') for line in lines):
            return "JSONL in a table's quotes", "save it as plain text, not as CSV"
        case _:
            return _table(lines if whole else lines[:-1])


def _array(lines: list[bytes], *, whole: bool) -> tuple[str, str] | None:
    first, remedy = _parsed(lines[0]), "write one element a line: jq -c '.[]'"
    if isinstance(first, list):  # a list in each line is reported by the lines' own errors
        objects = bool(first) and all(isinstance(one, dict) for one in first)
        return ("a JSON array", remedy) if objects and len(lines) == 1 and whole else None
    return "a JSON array", remedy


def _object(lines: list[bytes]) -> tuple[str, str] | None:
    """A document over several lines: its first line opens what a later one closes, and the second is indented."""
    if len(lines) < 2 or _parsed(lines[0]) is not None or lines[1][:1] not in {b" ", b"\t", b'"', b"}"}:
        return None
    opened = lines[0].strip()
    if opened != b"{" and not opened.endswith((b"{", b"[", b",", b":")):
        return None
    return "JSON that goes over several lines", "write one object a line: jq -c ."


def _table(lines: list[bytes]) -> tuple[str, str] | None:
    """A header and rows with as many delimiters or more, and no line that could be an object."""
    if len(lines) < 2 or any(line.lstrip().startswith(b"{") for line in lines):
        return None
    for delimiter, name in ((b"\t", "TSV"), (b",", "CSV"), (b";", "CSV")):
        columns = lines[0].count(delimiter)
        if columns and all(line.count(delimiter) >= columns for line in lines[1:4]):
            return f"{name}, a table", _TO_JSONL
    return None


def _parsed(line: bytes) -> Any:
    with suppress(ValueError, RecursionError):
        return json.loads(line)
    return None
