"""Looks at the first bytes of a file, for one error about a wrong one instead of one for each of its lines."""

from __future__ import annotations

from contextlib import suppress

from llmdo.storage.objects.opening import open_store
from llmdo.storage.output.manifests import FormatName
from llmdo.transforms.elements import FileVersion
from llmdo.transforms.kinds.looks import json_or_lines, wrong_kind
from llmdo.transforms.kinds.magic import GZIP, ZSTD, no_text
from llmdo.transforms.lines.cutting import DECOMPRESSORS
from llmdo.transforms.unreadable import CorruptData

# As much as is looked at, packed and unpacked. Bytes.
HEAD_BYTES = 16 << 10


def head_of(file: FileVersion) -> bytes:
    """The first bytes of a file as stored. Raises StorageError."""
    return b"".join(open_store(file.store_url).stream(file.key, file.etag, 0, HEAD_BYTES))


def format_by_content(file: FileVersion, head: bytes) -> FormatName:
    """The format of a file whose name may mean several, by its first bytes as stored: ``.json`` is also lines."""
    return json_or_lines(unpacked_head(file, head)[0])


def wrong_format(file: FileVersion, head: bytes) -> str | None:
    """A sentence about a file that begins with ``head``, as stored, and is not of its format; None if it may be."""
    found = _wrong(file, head)
    return None if found is None else str(found.about(file.place))


def _wrong(file: FileVersion, head: bytes) -> CorruptData | None:
    if file.compression:
        magic, ending = (GZIP, ".gz") if file.compression == "gzip" else (ZSTD, ".zst")
        # zstd's skippable frames begin with 0x184D2A5?.
        if head and not head.startswith(magic) and head[1:4] != b"\x2a\x4d\x18":
            plain = CorruptData(f"is not {file.compression} data", f"rename it without {ending}")
            return no_text(head) or plain
    content, whole = unpacked_head(file, head)
    if file.compression and content.startswith((GZIP, ZSTD)):
        tool = "gunzip" if file.compression == "gzip" else "unzstd"
        return CorruptData("is compressed twice", f"unpack it once: {tool}")
    return wrong_kind(file.kind.name, content, whole=whole)


def unpacked_head(file: FileVersion, head: bytes) -> tuple[bytes, bool]:
    """The first bytes of a file's content by those that are stored, and whether they are all of it."""
    if not file.compression:
        return head, len(head) == file.size
    content = bytearray()
    with suppress(CorruptData):  # it was cut, or it is damaged, which reading it will report
        for chunk in DECOMPRESSORS[file.compression]([head]):
            content += chunk
            if len(content) > HEAD_BYTES:
                return bytes(content[:HEAD_BYTES]), False
        return bytes(content), True
    return bytes(content), False
