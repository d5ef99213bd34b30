"""Kinds of file that hold no lines, by their first bytes: what each is, and what to do about it."""

from __future__ import annotations

from llmdo.transforms.unreadable import CorruptData

PARQUET, PARQUET_ENCRYPTED = b"PAR1", b"PARE"
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
TO_JSONL = "convert it to JSONL, one JSON object a line"
_TO_TABLE = "convert it to Parquet, CSV or JSONL"
_ANSWERS_LINES = "write a file with one line for each, which names it by its URL"
_DECRYPT = "decrypt it first"

# What a file begins with, what it is then, and what to do.
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer, not the file itself", "fetch it: git lfs pull"),
    (b"/annex/objects/", "a git-annex pointer, not the file itself", "fetch it: git annex get"),
    (b"\x1e{", "a JSON text sequence (RFC 7464)", "remove its record separators: tr -d '\\036'"),
    (GZIP, "gzip data, and its name does not end in .gz", "rename it, or unpack it: gunzip"),
    (ZSTD, "zstd data, and its name does not end in .zst", "rename it, or unpack it: unzstd"),
    (b"PK\x03\x04", "a zip archive", "unpack it: unzip"),
    (b"PK\x05\x06", "an empty zip archive", "pack it again, or name the file itself"),
    (b"BZh", "bzip2 data", "unpack it: bunzip2"),
    (b"\xfd7zXZ\0", "xz data", "unpack it: unxz"),
    (b"\x04\x22\x4d\x18", "lz4 data", "unpack it: unlz4"),
    (b"\x1f\x9d", "data of compress", "unpack it: uncompress"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it: 7z x"),
    (b"Rar!\x1a\x07", "a RAR archive", "unpack it: unrar x"),
    (PARQUET, "a Parquet file", "rename it to .parquet, or give the format parquet"),
    (PARQUET_ENCRYPTED, "an encrypted Parquet file", _DECRYPT),
    (b"ARROW1", "an Arrow file", _TO_TABLE),
    (b"\xff\xff\xff\xff", "an Arrow stream", _TO_TABLE),
    (b"FEA1", "a Feather file", _TO_TABLE),
    (b"Obj\x01", "an Avro file", _TO_TABLE),
    (b"ORC", "an ORC file", _TO_TABLE),
    (b"SQLite format 3\0", "an SQLite database", "export a table: sqlite3 -header -csv FILE 'select * from TABLE'"),
    (b"\x89HDF\r\n", "an HDF5 file", _TO_TABLE),
    (b"\x93NUMPY", "a NumPy file", _TO_TABLE),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old office document, such as .xls", "save its table as CSV, in UTF-8"),
    (b"{\\rtf", "a document in RTF", "save it as plain text, and write it into JSONL, one JSON object a line"),
    (b"%PDF-", "a PDF document", TO_JSONL),
    (b"%!PS", "a PostScript document", TO_JSONL),
    (b"\x89PNG\r\n", "an image", _ANSWERS_LINES),
    (b"GIF8", "an image", _ANSWERS_LINES),
    (b"\xff\xd8\xff", "an image", _ANSWERS_LINES),
    (b"II*\0", "an image", _ANSWERS_LINES),
    (b"MM\0*", "an image", _ANSWERS_LINES),
    (b"RIFF", "an image, a sound or a film", _ANSWERS_LINES),
    (b"ID3", "a sound", _ANSWERS_LINES),
    (b"OggS", "a sound or a film", _ANSWERS_LINES),
    (b"fLaC", "a sound", _ANSWERS_LINES),
    (b"\x1a\x45\xdf\xa3", "a film", _ANSWERS_LINES),
    (b"-----BEGIN PGP ", "encrypted or signed by PGP", _DECRYPT),
    (b"age-encryption.org/", "encrypted by age", _DECRYPT),
    (b"\xff\xfe\0\0", "UTF-32 text", "convert it: iconv -f UTF-32 -t UTF-8"),
    (b"\0\0\xfe\xff", "UTF-32 text", "convert it: iconv -f UTF-32 -t UTF-8"),
    (b"\xff\xfe", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8"),
)
# Those of them whose first bytes may also be a word in a table's header; more must follow that no text has.
_LETTERS = frozenset((b"BZh", b"PAR1", b"PARE", b"ARROW1", b"FEA1", b"ORC", b"GIF8", b"RIFF", b"ID3", b"OggS", b"fLaC"))
# The name of the first file in a zip archive (at byte 30) that an office program wrote.
_OFFICE = (b"[Content_Types].xml", b"_rels/", b"docProps/", b"xl/", b"word/", b"mimetype")
# By which of the first four bytes are NUL.
_WIDE: dict[tuple[bool, ...], str] = {
    (False, True, False, True): "UTF-16LE",
    (True, False, True, False): "UTF-16BE",
    (False, True, True, True): "UTF-32LE",
    (True, True, True, False): "UTF-32BE",
}
# Bytes that are hardly ever in text.
_CONTROL = bytes(byte for byte in range(32) if byte not in b"\t\n\v\f\r\x1b")


def no_text(head: bytes) -> CorruptData | None:
    """The error about a file that begins like this and is no text in UTF-8; None if it may be."""
    if head.startswith(b"PK\x03\x04") and head.startswith(_OFFICE, 30):
        return CorruptData("is a spreadsheet or another office document", "save its table as CSV, in UTF-8")
    if head.startswith(b"ustar", 257):
        return CorruptData("is a tar archive", "unpack it: tar -xf")
    if head[4:8] == b"ftyp":
        return CorruptData("is an image, a sound or a film", _ANSWERS_LINES)
    for magic, what, remedy in _MAGIC:
        if head.startswith(magic) and (magic not in _LETTERS or not _is_text(head)):
            return CorruptData(f"is {what}", remedy)
    # UTF-16 or UTF-32 without a BOM, by the NULs beside its first two characters.
    if name := _WIDE.get(tuple(byte == 0 for byte in head[:4])):
        return CorruptData(f"is {name} text", f"convert it: iconv -f {name} -t UTF-8")
    return None


def _is_text(head: bytes) -> bool:
    return len(head) == len(head.translate(None, _CONTROL)) and _is_utf8(head)


def _is_utf8(head: bytes) -> bool:
    """Whether it is, but for a last character that is not all there."""
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4 and error.reason == "unexpected end of data"
    return True


def is_binary(head: bytes) -> bool:
    """Whether much of it are characters that text hardly has."""
    return len(head) - len(head.translate(None, _CONTROL)) > len(head) // 20
