"""The first bytes of files that are not JSONL, and of those that are."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile

import pytest
import zstandard

from llmdo.transforms.elements import FileVersion
from llmdo.transforms.kinds.first_look import HEAD_BYTES, wrong_format

ROWS = [{"id": n, "prompt": f"p{n}"} for n in range(3)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)


def zipped(name="a.jsonl"):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(name, JSONL)
    return archive.getvalue()


def tarred():
    archive, member = io.BytesIO(), tarfile.TarInfo("a.jsonl")
    member.size = len(JSONL)
    with tarfile.open(fileobj=archive, mode="w") as file:
        file.addfile(member, io.BytesIO(JSONL.encode()))
    return archive.getvalue()


def said(body, name="a.jsonl"):
    return wrong_format(FileVersion("/in", name, "e", len(body)), body[:HEAD_BYTES])


WRONG = {
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1f\nsize 9\n", "git lfs pull"),
    "UTF-16 with BOM": (JSONL.encode("utf-16"), "iconv -f UTF-16"),
    "UTF-16 BE": (JSONL.encode("utf-16-be"), "iconv -f UTF-16BE"),
    "UTF-16 LE": (JSONL.encode("utf-16-le"), "iconv -f UTF-16LE"),
    "UTF-32 with BOM": (JSONL.encode("utf-32"), "iconv -f UTF-32"),
    "UTF-32 BE": (JSONL.encode("utf-32-be"), "iconv -f UTF-32BE"),
    "gzip": (gzip.compress(JSONL.encode()), "gunzip"),
    "zstd": (zstandard.compress(JSONL.encode()), "unzstd"),
    "bzip2": (bz2.compress(JSONL.encode()), "bunzip2"),
    "xz": (lzma.compress(JSONL.encode()), "unxz"),
    "zip": (zipped(), "unzip"),
    "Parquet": (b"PAR1\x15\x04\x15\x20PAR1", "Parquet"),
    "git-annex": (b"/annex/objects/MD5E-s9--1f.jsonl\n", "git annex get"),
    "tar": (tarred(), "tar -xf"),
    "spreadsheet": (zipped("[Content_Types].xml"), "spreadsheet"),
    "spreadsheet of another program": (zipped("docProps/app.xml"), "spreadsheet"),
    "JSON text sequence": (b"".join(b"\x1e" + json.dumps(row).encode() + b"\n" for row in ROWS), "tr -d '\\036'"),
    "lines as cells": (b'"{""id"": 1, ""prompt"": ""a""}"\r\n"{""id"": 2}"\r\n', "plain text"),
    "one line as a cell, after a BOM": (b'\xef\xbb\xbf"{""prompt"": ""a""}"', "plain text"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3\n", "PDF"),
    "SQLite": (b"SQLite format 3\0\x10\0\x01\x01", "SQLite"),
    "binary": (b"\x80\x04\x95" + b"abc\0defgh" * 30, "binary"),
    "XML": (b'<?xml version="1.0"?>\n<rows/>\n', "XML or HTML"),
    "HTML after a BOM": (b"\xef\xbb\xbf\n <!doctype html>\n", "XML or HTML"),
    "an array in one line": (json.dumps(ROWS).encode(), "jq -c '.[]'"),
    "an array in one line, and a newline": (json.dumps(ROWS).encode() + b"\n", "jq -c '.[]'"),
    "an array over lines": (json.dumps(ROWS, indent=1).encode(), "jq -c '.[]'"),
    "an array of one line each": (b"[" + b",\n".join(json.dumps(row).encode() for row in ROWS) + b"]\n", "jq -c '.[]'"),
    "a long array in one line": (json.dumps(ROWS * 1000).encode(), "jq -c '.[]'"),
    "an object over lines": (json.dumps({"rows": ROWS}, indent=2).encode(), "jq -c ."),
    "objects over lines": (b"\n".join(json.dumps(row, indent="\t").encode() for row in ROWS), "jq -c ."),
    "objects over lines, CRLF": (json.dumps(ROWS[0], indent=4).replace("\n", "\r\n").encode(), "jq -c ."),
    "CSV": (b"id,prompt\n1,hello\n2,\"hello, you\"\n", "CSV"),
    "CSV with quotes": (b'"id";"prompt"\r\n"1";"hello"\r\n', "CSV"),
    "TSV": (b"id\tprompt\n1\thello\n", "TSV"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_format_is_named_in_one_sentence_with_what_to_do(kind):
    body, remedy = WRONG[kind]
    sentence = said(body)
    assert sentence is not None
    assert sentence.startswith("/in/a.jsonl is ") and remedy in sentence and "\n" not in sentence


@pytest.mark.parametrize("kind", sorted(WRONG.keys() - {"gzip", "zstd"}))
@pytest.mark.parametrize("packed", ["gz", "zst"])
def test_it_is_named_within_compressed_files_too(kind, packed):
    body, remedy = WRONG[kind]
    sentence = said({"gz": gzip.compress, "zst": zstandard.compress}[packed](body), f"a.jsonl.{packed}")
    assert sentence is not None and remedy in sentence


def test_a_name_that_promises_what_the_bytes_are_not_is_told():
    assert said(JSONL.encode(), "a.jsonl.gz") == "/in/a.jsonl.gz is not gzip data: rename it without .gz"
    assert "zstd data" in said(zstandard.compress(JSONL.encode()), "a.jsonl.gz")
    assert "git lfs pull" in said(WRONG["LFS"][0], "a.jsonl.zst")


@pytest.mark.parametrize("outer", [gzip.compress, zstandard.compress])
@pytest.mark.parametrize("inner", [gzip.compress, zstandard.compress])
def test_a_file_that_was_compressed_twice_is_to_be_unpacked_once(outer, inner):
    name, tool = ("a.jsonl.gz", "gunzip") if outer is gzip.compress else ("a.jsonl.zst", "unzstd")
    assert said(outer(inner(JSONL.encode())), name) == f"/in/{name} is compressed twice: unpack it once: {tool}"


SKIPPABLE = b"\x50\x2a\x4d\x18\x04\0\0\0none"
RIGHT = {
    "JSONL": (JSONL.encode(), "a.jsonl"),
    "a BOM": (b"\xef\xbb\xbf" + JSONL.encode(), "a.jsonl"),
    "blank lines first": (b"\n \r\n" + JSONL.encode(), "a.jsonl"),
    "nothing": (b"", "a.jsonl"),
    "nothing packed": (gzip.compress(b""), "a.jsonl.gz"),
    "blanks": (b"\n\n", "a.jsonl"),
    "one line without its end": (b'{"prompt": "a, b"}', "a.jsonl"),
    "one line longer than the head": (json.dumps({"prompt": "x, " * 40_000}).encode(), "a.jsonl"),
    "broken lines": (b'not json\n{"prompt": 1}\n', "a.jsonl"),
    "a broken first line": (b'{"prompt": \n{"prompt": "a"}\n', "a.jsonl"),
    "a line as a cell among others": (b'"{""prompt"": 1}"\n{"prompt": "a"}\n', "a.jsonl"),
    "lists in lines": (b'["a", "b"]\n["c", "d"]\n', "a.jsonl"),
    "an array among objects": (b'[1, 2]\n{"prompt": "a"}\n', "a.jsonl"),
    "prose": (b"Dear all,\nthis is not a table\n", "a.jsonl"),
    "gzip": (gzip.compress(JSONL.encode() * 10_000), "a.jsonl.gz"),
    "damaged gzip": (gzip.compress(JSONL.encode())[:-9], "a.jsonl.gz"),
    "zstd with a skippable frame": (SKIPPABLE + zstandard.compress(JSONL.encode()), "a.jsonl.zst"),
    "NULs in lines": (b'{"prompt": "a"}\n\0\0\0\0\n{"prompt": "b\0"}\n', "a.jsonl"),
    "a line of NULs first": (b'\0\0\0\0\0\n{"prompt": "b"}\n', "a.jsonl"),
    "control characters": (b'{"prompt": "a\x01b"}\n', "a.jsonl"),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_what_may_be_jsonl_is_left_to_its_lines(kind):
    assert said(*RIGHT[kind]) is None
