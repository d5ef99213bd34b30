"""What bytes are, whatever their name says."""

from __future__ import annotations

import io
import random
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdo.backends.media.kinds import Kind, media_kind
from tests.fakes.media import pdf, png, wav


def box(brand: bytes) -> bytes:
    return b"\x00\x00\x00\x18ftyp" + brand + b"\x00\x00\x00\x00mif1" + bytes(40)


def office(name: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<x/>")
        archive.writestr(name, "<x/>")
    return made.getvalue()


BODIES = {
    "image/png": png(),
    "image/jpeg": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00",
    "image/gif": b"GIF89a\x01\x00\x01\x00",
    "image/webp": b"RIFF\x24\x00\x00\x00WEBPVP8 ",
    "image/bmp": b"BM\x9a\x00\x00\x00\x00\x00\x00\x00\x36\x00\x00\x00" + bytes(40),
    "image/tiff": b"II*\x00\x08\x00\x00\x00",
    "image/heic": box(b"heic"),
    "image/avif": box(b"avif"),
    "audio/wav": wav(),
    "audio/mpeg": b"\xff\xfb\x90\x64" + bytes(400),
    "audio/flac": b"fLaC\x00\x00\x00\x22",
    "audio/ogg": b"OggS\x00\x02",
    "audio/mp4": box(b"M4A "),
    "audio/aac": b"\xff\xf1\x50\x80" + bytes(40),
    "video/mp4": box(b"isom"),
    "video/quicktime": box(b"qt  "),
    "video/webm": b"\x1aE\xdf\xa3\x01\x00",
    "application/pdf": pdf(),
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": office("word/document.xml"),
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": office("xl/workbook.xml"),
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": office("ppt/presentation.xml"),
}


@pytest.mark.parametrize("mime", BODIES)
@pytest.mark.parametrize("name", ["", "wrong.png", "wrong.txt"])
def test_the_first_bytes_decide(mime, name):
    assert media_kind(BODIES[mime], name) == Kind(mime)


@pytest.mark.parametrize(
    ("body", "name", "mime"),
    [
        (b"ID3\x04\x00\x00", "", "audio/mpeg"),
        ("ein Text, größer".encode(), "", "text/plain"),
        (b"a,b\n1,2\n", "table.csv", "text/csv"),
        (b"# Title", "page.md", "text/markdown"),
        (b'{"a": 1}', "a.json", "application/json"),
        (b"plain", "said.png", "text/plain"),
    ],
)
def test_text_is_told_by_its_name(body, name, mime):
    assert media_kind(body, name) == Kind(mime)


@pytest.mark.parametrize(
    "body", [b"", b"\x00\x01\x02", b"\xff\xff\xff\xff", b"RIFF\x00\x00\x00\x00AVI ", office("a/b")]
)
def test_what_is_unknown_has_no_kind(body):
    assert media_kind(body) is None


@given(st.binary(max_size=64))
def test_any_bytes_have_a_kind_or_none(body):
    found = media_kind(body, "x")
    assert found is None or "/" in found.mime


def test_what_each_serves_as():
    assert Kind("image/png").serves_as("image")
    assert Kind("video/mp4").serves_as("audio")
    assert Kind("audio/wav").serves_as("file")
    assert not Kind("application/pdf").serves_as("image")
    assert not Kind("image/png").serves_as("audio")
    assert [Kind(f"audio/{kind}").format for kind in ("wav", "mpeg", "mp4", "flac")] == ["wav", "mp3", "m4a", "flac"]


def test_noise_is_rarely_taken_for_a_sound():
    rng = random.Random(1)
    assert sum(media_kind(rng.randbytes(64)) is not None for _ in range(10_000)) < 30
