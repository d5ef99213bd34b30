"""Tells by its bytes what a picture, a sound or a document is; names and headers may say anything."""

from __future__ import annotations

import mimetypes
from dataclasses import dataclass
from typing import Literal

Medium = Literal["image", "audio", "video", "file"]
# What an MP4 container says of itself in its first box, and what that makes it (ISO/IEC 14496-12, 23008-12).
_BRANDS: tuple[tuple[tuple[bytes, ...], str], ...] = (
    ((b"avif", b"avis"), "image/avif"),
    ((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "image/heic"),
    ((b"M4A ", b"M4B ", b"M4P "), "audio/mp4"),
    ((b"qt  ",), "video/quicktime"),
)
# Where bytes stand, which ones, and what they begin.
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF87a", "image/gif"),
    (0, b"GIF89a", "image/gif"),
    (0, b"II*\x00", "image/tiff"),
    (0, b"MM\x00*", "image/tiff"),
    (0, b"fLaC", "audio/flac"),
    (0, b"OggS", "audio/ogg"),
    (0, b"ID3", "audio/mpeg"),
    (0, b"\x1aE\xdf\xa3", "video/webm"),
    (0, b"%PDF-", "application/pdf"),
)
_RIFF = {b"WAVE": "audio/wav", b"WEBP": "image/webp"}
# How OpenAI's API and servers like it call the formats of sounds.
_FORMATS = {"audio/wav": "wav", "audio/mpeg": "mp3", "audio/mp4": "m4a", "video/quicktime": "mov"}
# A file of Office is an archive in which this one is.
_OFFICE = {
    b"word/document.xml": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    b"xl/workbook.xml": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    b"ppt/presentation.xml": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
}


@dataclass(frozen=True, slots=True)
class Kind:
    """A media type, such as ``image/png``."""

    mime: str

    @property
    def format(self) -> str:
        """The short name of a sound's format, such as ``mp3``."""
        return _FORMATS.get(self.mime, self.mime.partition("/")[2])

    def serves_as(self, medium: str) -> bool:
        """Whether it can be used so: a document may be anything, and a video has a sound."""
        own = self.mime.partition("/")[0]
        return medium in ("file", own) or (medium == "audio" and own == "video")


def media_kind(data: bytes, name: str = "") -> Kind | None:
    """What some bytes are; None if that is unknown. Text has no mark of its own: its ``name`` says which it is."""
    mime = _by_magic(data) or _office(data) or _text(data, name)
    return Kind(mime) if mime else None


def _by_magic(data: bytes) -> str | None:
    for at, magic, mime in _MAGIC:
        if data.startswith(magic, at):
            return mime
    if data[:4] == b"RIFF":
        return _RIFF.get(data[8:12])
    if data[:2] == b"BM" and data[6:10] == b"\0\0\0\0" and len(data) > 26:
        return "image/bmp"
    if data[4:8] == b"ftyp":
        return next((mime for brands, mime in _BRANDS if data[8:12] in brands), "video/mp4")
    return _by_frame(data)


def _by_frame(data: bytes) -> str | None:
    """The header of a frame: 11 bits that are set, then version and layer; layer 0 is AAC's."""
    if len(data) < 4 or data[0] != 0xFF or data[1] & 0xE0 != 0xE0:
        return None
    version, layer = data[1] >> 3 & 3, data[1] >> 1 & 3
    if layer == 0:
        return "audio/aac" if data[1] & 0xF0 == 0xF0 else None
    usable = version != 1 and data[2] >> 4 != 0xF and data[2] >> 2 & 3 != 3
    return "audio/mpeg" if usable else None


def _office(data: bytes) -> str | None:
    if not data.startswith(b"PK\x03\x04"):
        return None
    return next((mime for name, mime in _OFFICE.items() if name in data), None)


def _text(data: bytes, name: str) -> str | None:
    if not data or b"\0" in data:
        return None
    try:
        data.decode()
    except UnicodeDecodeError:
        return None
    named = mimetypes.guess_type(name)[0] or ""
    return named if named.startswith("text/") or named == "application/json" else "text/plain"
