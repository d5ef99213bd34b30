"""What the first bytes of tables, arrays and all other kinds of file show, and what they leave to the lines."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdo.transforms.elements import FileVersion
from llmdo.transforms.kinds.first_look import HEAD_BYTES, format_by_content, wrong_format
from llmdo.transforms.kinds.looks import json_or_lines, wrong_kind
from llmdo.transforms.tables.csv_rows import cut_rows
from llmdo.transforms.tables.json_elements import cut_elements
from llmdo.transforms.unreadable import CorruptData

ROWS = [{"id": n, "prompt": f"p{n}, so"} for n in range(3)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CSV = b'id,prompt\n1,"a\nb"\n2,c\n'
ARRAY = json.dumps(ROWS).encode()


def said(body, name):
    file = FileVersion("/in", name, "e", len(body))
    return wrong_format(file, body[:HEAD_BYTES])


ALWAYS = {
    "an image": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is an image: "),
    "a photograph": (b"\xff\xd8\xff\xe0\0\x10JFIF\0", "is an image: "),
    "a GIF": (b"GIF89a\x01\0\x01\0\x80", "is an image: "),
    "a film": (b"\0\0\0\x20ftypisom\0\0\x02\0", "is an image, a sound or a film: "),
    "a sound": (b"RIFF\x24\0\0\0WAVEfmt ", "is an image, a sound or a film: "),
    "an old spreadsheet": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "save its table as CSV"),
    "a new spreadsheet": (b"PK\x03\x04" + bytes(26) + b"[Content_Types].xml", "save its table as CSV"),
    "an empty archive": (b"PK\x05\x06" + bytes(18), "is an empty zip archive"),
    "RAR": (b"Rar!\x1a\x07\x01\0", "unrar x"),
    "7-Zip": (b"7z\xbc\xaf\x27\x1c\0\x04", "7z x"),
    "lz4": (b"\x04\x22\x4d\x18\x64\x40", "unlz4"),
    "Avro": (b"Obj\x01\x04\x14avro.codec", "is an Avro file"),
    "ORC": (b"ORC\x11\0\0\n\x06", "is an ORC file"),
    "Arrow": (b"ARROW1\0\0\xff\xff\xff\xff", "is an Arrow file"),
    "an Arrow stream": (b"\xff\xff\xff\xff\x78\0\0\0", "is an Arrow stream"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
    "RTF": (b"{\\rtf1\\ansi hello}", "is a document in RTF"),
    "PGP": (b"-----BEGIN PGP MESSAGE-----\n\nhQE", "decrypt it first"),
    "PDF": (b"%PDF-1.7\n", "is a PDF document"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1f\nsize 9\n", "git lfs pull"),
    "UTF-16": (CSV.decode().encode("utf-16"), "iconv -f UTF-16"),
    "UTF-16 without BOM": (JSONL.decode().encode("utf-16-le"), "iconv -f UTF-16LE"),
    "UTF-32": (ARRAY.decode().encode("utf-32"), "iconv -f UTF-32"),
    "HTML": (b"<!DOCTYPE html>\n<html><body>502 Bad Gateway</body></html>", "is XML or HTML"),
    "an error of S3": (b"<?xml version='1.0'?>\n<Error><Code>NoSuchKey</Code></Error>", "is XML or HTML"),
    "SQLite": (b"SQLite format 3\0\x10\0", "sqlite3 -header -csv"),
}


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.json", "a.parquet"])
@pytest.mark.parametrize("kind", ALWAYS)
def test_some_files_hold_no_lines_whatever_they_are_called(kind, name):
    body, words = ALWAYS[kind]
    sentence = said(body, name)
    if name == "a.parquet" and "HTML" in words:
        words = "is not a Parquet file"
    assert sentence.startswith(f"/in/{name} ") and words in sentence and "\n" not in sentence


WRONG = [
    (JSONL, "a.csv", "is JSONL: rename it to .jsonl, or give the format jsonl"),
    (JSONL * 1000, "a.tsv", "is JSONL"),
    (b'{"prompt": "alone"}', "a.csv", "is JSONL"),
    (b'"{""prompt"": 1}"\n"{""prompt"": 2}"\n', "a.csv", "is JSONL in a table's quotes"),
    (ARRAY, "a.csv", "is a JSON array: rename it to .json"),
    (json.dumps(ROWS, indent=1).encode(), "a.tsv", "is a JSON array"),
    (json.dumps(ROWS[0], indent=1).encode(), "a.csv", "is JSON that goes over several lines: "),
    (bytes(range(32)) * 20, "a.csv", "is binary data"),
    (b"id,id\n1,2\n", "a.csv", "'id' is in it twice: give each column a name of its own"),
    (b"1,why?\n2,what?\n", "a.csv", "'1' is a value, not a name: put a first row"),
    (b"Why is it so?\nAnd what else?\n", "a.csv", "is a value, not a name"),
    (b"a\t\tb\n", "a.tsv", "column 2 has no name"),
    (CSV, "a.json", "is CSV, a table: rename it to .csv, or give the format csv"),
    (CSV.replace(b",", b"\t"), "a.jsonl", "is TSV, a table: rename it to .tsv"),
    (b"[1, 2, 3]", "a.json", "is a JSON array without objects"),
    (b'["a", "b"]\n', "a.json", "jq '[.[] | {prompt: .}]'"),
    (json.dumps({"data": ROWS}).encode(), "a.json", "rows are within 'data': write them one a line: jq -c '.data[]'"),
    (json.dumps({"requests": ROWS}, indent=2).encode(), "a.json", "jq -c '.requests[]'"),
    (b'{\n "a": 1\n}\n{\n "a": 2\n}\n', "a.json", "has something behind its object"),
    (b'[{"a": 1} {"b": 2}]', "a.json", "a comma or ] is missing"),
    (JSONL, "a.parquet", "is not a Parquet file"),
    (b"PAR1\x15\x04\x15\x20PAR1", "a.csv", "is a Parquet file: rename it to .parquet, or give the format parquet"),
    (ARRAY, "a.jsonl", "is a JSON array: rename it to .json"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "name", "words"), WRONG)
def test_a_file_of_another_format_is_one_sentence_with_what_to_do(body, name, words):
    file = FileVersion("/in", name, "e", len(body))
    if file.kind.ambiguous:
        file = FileVersion("/in", name, "e", len(body), format=format_by_content(file, body))
    sentence = wrong_format(file, body[:HEAD_BYTES])
    assert sentence is not None and sentence.startswith(f"/in/{name} ")
    assert words in sentence and "\n" not in sentence


RIGHT = [
    (CSV, "a.csv"),
    (b"", "a.csv"),
    (b"\n\n", "a.tsv"),
    (b"id,prompt", "a.csv"),
    (b"ORC,prompt\n1,a\n", "a.csv"),
    (b"RIFF;ID3\r\n1;2\r\n", "a.csv"),
    (b"BZh\n", "a.csv"),
    (b'id,prompt\n{"a": 1},b\n', "a.csv"),
    (b'prompt\n"{""a"": 1}"\n', "a.csv"),
    (b"id,prompt\n1,<html>\n\xff,\0\n", "a.csv"),
    (b"<name>,<text>\nid,b\n".replace(b"<text>", b"text"), "a.csv"),
    (b"id,prompt\n" + b"1," + b"x" * 50_000 + b"\n", "a.csv"),
    (b'id,"' + b"x" * 50_000 + b'"\n', "a.csv"),
    (ARRAY, "a.json"),
    (b"[]", "a.json"),
    (b'[7, {"prompt": "a"}, null]', "a.json"),
    (json.dumps(ROWS * 2000, indent=4).encode(), "a.json"),
    (b'[{"prompt": "' + b"x" * 50_000 + b'"}]', "a.json"),
    (b'{\n"prompt": "a"\n}', "a.json"),
    (json.dumps({"messages": [{"role": "user", "content": "a"}]}, indent=1).encode(), "a.json"),
    (JSONL, "a.json"),
    (b'{"data": [{"a": 1}],\n"prompt": "b"}', "a.json"),
    (b'<broken\n{"prompt": "a"}\n', "a.jsonl"),
    (b'[broken\n{"prompt": "a"}\n', "a.jsonl"),
    (b'{"messages": [{"role": "user"}]}', "a.jsonl"),
    (b'{"prompt": "a\0b"}\n', "a.jsonl"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "name"), RIGHT)
def test_a_good_file_with_an_odd_line_is_left_to_its_lines(body, name):
    file = FileVersion("/in", name, "e", len(body))
    if file.kind.ambiguous:
        file = FileVersion("/in", name, "e", len(body), format=format_by_content(file, body))
    assert wrong_format(file, body[:HEAD_BYTES]) is None


@pytest.mark.parametrize(
    ("body", "form"),
    [
        (ARRAY, "json"),
        (b"\xef\xbb\xbf \n[\n", "json"),
        (b"[", "json"),
        (b'["a"]\n["b"]\n', "jsonl"),
        (JSONL, "jsonl"),
        (b'{\n  "a": 1\n}', "json"),
        (b'{"data": [{"a": 1}]}', "json"),
        (b'{"messages": [{"a": 1}]}', "jsonl"),
        (b'{"data": [{"a": 1}]}\n{"data": [{"a": 2}]}\n', "jsonl"),
        (b'{"data": [{"a": 1}], "prompt": "b"}', "jsonl"),
        (b"", "jsonl"),
        (b"hello", "jsonl"),
    ],
)
def test_a_file_named_json_may_be_an_array_an_object_or_lines(body, form):
    assert json_or_lines(body) == form


pieces = st.lists(st.sampled_from([*(bytes([byte]) for byte in b'",\n\ra{}[]:1\0 '), b"\xff"]))


@given(pieces.map(b"".join), st.integers(0, 40), st.sampled_from(["csv", "json"]))
def test_no_error_is_said_of_a_file_that_can_be_read_to_its_end_and_has_objects(content, cut, form):
    content = {"csv": b"a,b\n", "json": b'[{"a":1},'}[form] + content
    cutter = {"csv": cut_rows, "json": cut_elements}[form]
    try:
        list(cutter(FileVersion("/in", f"a.{form}", "e", 1), [content], [(0, None)], 1000))
    except CorruptData:
        return
    head = content[: len(content) - cut] if len(content) > cut + 10 else content
    error = wrong_kind(form, head, whole=head == content)
    assert error is None or "binary" in str(error)
