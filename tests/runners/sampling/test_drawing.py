"""Each line is as likely to be drawn as any other, whatever its length, its file and the file's format."""

import csv
import gzip
import io
import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from llmdo.pipelines.options import check_options
from llmdo.runners.sampling import drawing
from llmdo.runners.sampling.drawing import draw
from llmdo.storage.objects.local import LocalStore


@pytest.fixture(autouse=True)
def account(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-called")


def rows(count, word=8, first=0):
    return [{"id": first + i, "prompt": "x" * (word + 7 * (i % 13))} for i in range(count)]


def jsonl(some):
    return b"".join(json.dumps(row).encode() + b"\n" for row in some)


def table(some):
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(some), out, row_group_size=16)
    return out.getvalue()


def as_csv(some):
    out = io.StringIO()
    writer = csv.DictWriter(out, ["id", "prompt"])
    writer.writeheader()
    writer.writerows(some)
    return out.getvalue().encode()


FORMATS = {
    "a.jsonl": jsonl,
    "a.jsonl.gz": lambda some: gzip.compress(jsonl(some)),
    "a.jsonl.zst": lambda some: zstandard.compress(jsonl(some)),
    "a.csv": as_csv,
    "a.json": lambda some: json.dumps(some).encode(),
    "a.parquet": table,
}


def options(folder, **given):
    made = {"files": (str(folder / "in"),), "output": str(folder / "out"), "model": "openai/gpt-4o-mini", **given}
    return check_options(**made)


def write(folder, name, data):
    path = folder / "in" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def small_blocks(monkeypatch, block=512, read=4096):
    monkeypatch.setattr(drawing, "BLOCK_BYTES", block)
    monkeypatch.setattr(drawing, "READ_BYTES", read)
    monkeypatch.setattr(drawing, "READ_BLOCKS", 4)


def ids(drawn):
    return [json.loads(line.data)["id"] for line in drawn.lines]


@pytest.mark.parametrize("name", FORMATS)
def test_lines_of_every_format_are_drawn_and_counted(tmp_path, name):
    write(tmp_path, name, FORMATS[name](rows(200)))
    drawn = draw(options(tmp_path), 20)
    assert (len(drawn.lines), drawn.count, drawn.error, drawn.broken) == (20, 200, 0, 0)
    assert len({line.start for line in drawn.lines}) == 20
    assert draw(options(tmp_path), 500).count == 200
    assert len(draw(options(tmp_path), 500).lines) == 200


def test_the_same_input_gives_the_same_lines_and_another_one_others(tmp_path):
    write(tmp_path, "a.jsonl", jsonl(rows(200)))
    first = ids(draw(options(tmp_path), 20))
    assert ids(draw(options(tmp_path), 20)) == first
    write(tmp_path, "b.jsonl", jsonl(rows(200, first=200)))
    assert ids(draw(options(tmp_path), 20)) != first


@pytest.mark.parametrize("blocks", [False, True], ids=["all is read", "blocks are read"])
def test_each_line_is_as_likely_whatever_its_length_and_its_file(tmp_path, monkeypatch, blocks):
    if blocks:
        small_blocks(monkeypatch)
    short, long = rows(150, word=8), rows(60, word=900, first=150)
    mixed = [row for i in range(60) for row in (long[i], *short[2 * i : 2 * i + 2])] + short[120:]
    found, draws = Counter(), 120
    for trial in range(draws):
        folder = tmp_path / str(trial)
        write(folder, f"{trial}-mixed.jsonl", jsonl(mixed))
        write(folder, f"{trial}-tiny.jsonl", jsonl(rows(1, first=210)))
        write(folder, f"{trial}-packed.jsonl.gz", gzip.compress(jsonl(rows(39, word=20, first=211))))
        found.update(ids(draw(options(folder), 25)))
    drawn_in_all = sum(found.values())
    assert drawn_in_all == pytest.approx(25 * draws, rel=0.05)
    # Of 250 lines 60 are long, 39 are in the packed file: within four standard errors.
    for part, some in ((60 / 250, range(150, 210)), (39 / 250, range(211, 250)), (150 / 250, range(150))):
        seen = sum(found[i] for i in some) / drawn_in_all
        assert seen == pytest.approx(part, abs=4 * (part * (1 - part) / drawn_in_all) ** 0.5), (part, seen)
    assert all(found[i] for i in range(250) if i != 210)


def test_a_large_file_is_not_read_whole_and_its_lines_are_counted_within_the_error(tmp_path, monkeypatch):
    small_blocks(monkeypatch, block=1024, read=32 << 10)
    read, stream = [], LocalStore.stream

    def watched(self, key, etag, start=0, stop=None):
        for chunk in stream(self, key, etag, start, stop):
            read.append(len(chunk))
            yield chunk

    write(tmp_path, "a.jsonl", data := jsonl(rows(80_000)))
    monkeypatch.setattr(LocalStore, "stream", watched)
    drawn = draw(options(tmp_path), 20)
    assert sum(read) < len(data) / 2
    assert 0 < drawn.error < 0.2
    assert drawn.count == pytest.approx(80_000, rel=4 * drawn.error)
    assert drawn.length == pytest.approx(len(data) - 80_000, rel=4 * drawn.error)
    assert len(drawn.lines) == 20


def test_what_is_empty_blank_broken_or_too_long_is_not_drawn(tmp_path):
    write(tmp_path, "a.jsonl", b"\n\n" + jsonl(rows(5)) + b"x" * 5000 + b"\n")
    write(tmp_path, "b.jsonl", b"")
    write(tmp_path, "c.jsonl.gz", gzip.compress(jsonl(rows(50)))[:-9])
    drawn = draw(options(tmp_path, max_line_bytes=1000), 3)
    assert drawn.broken == 1 and len(drawn.unreadable) == 1 and "c.jsonl.gz" in drawn.unreadable[0]
    assert draw(options(tmp_path / "none", files=(str(tmp_path / "in" / "b.jsonl"),)), 3).lines == []


def test_a_single_line_is_drawn(tmp_path):
    write(tmp_path, "a.jsonl", jsonl(rows(1)))
    drawn = draw(options(tmp_path), 20)
    assert (ids(drawn), drawn.count) == ([0], 1)
