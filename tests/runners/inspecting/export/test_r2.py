"""Tables in R2: whole objects, or none."""

import csv
import io
import json
import os
import signal
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmdo.runners.inspecting.export.making import Export, export
from llmdo.storage.errors import ObjectNotFound
from llmdo.storage.objects.r2_parts import PART_SIZE
from tests.integration.cloud import Cloud

csv.field_size_limit(1 << 20)
OUT, TABLE = "r2://llmdo/output/", "r2://llmdo/tables/t."


@pytest.fixture
def cloud(cloudflare):
    """An output in R2 whose table is larger than a part of an upload."""
    cloud = Cloud(cloudflare)
    words = "word " * (PART_SIZE // 5 // 40)
    lines = [{"id": n, "prompt": f"question {n}", "notes": words} for n in range(100)]
    cloud.upload("a.jsonl", b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    cloud.upload("b.jsonl", b'{"id": "r", "prompt": "one more"}\nno JSON\n')
    cloud.run()
    return cloud


def made(to, **how):
    return export(Export(OUT, to, **how), lambda done, total: None)


def body(cloud, key):
    return cloud.store.read(key)[0]


def uploads(cloud):
    return cloud.s3.list_multipart_uploads(Bucket="llmdo").get("Uploads", [])


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_a_table_in_r2_is_that_of_a_local_file(cloud, tmp_path, form):
    done = made(f"{TABLE}{form}", errors="inline")
    assert done.written == [f"{TABLE}{form}"]
    assert (done.answers, done.errors, done.joined) == (101, 1, 2)
    made(str(tmp_path / f"t.{form}"), errors="inline")
    found = body(cloud, f"tables/t.{form}")
    assert found == (tmp_path / f"t.{form}").read_bytes()
    if form == "jsonl":
        assert len(found) > 2 * PART_SIZE
        rows = [json.loads(line) for line in found.splitlines()]
    elif form == "csv":
        rows = list(csv.DictReader(io.StringIO(found.decode(), newline="")))
    else:
        rows = pq.read_table(pa.BufferReader(found)).to_pylist()
    assert [str(row["id"]) for row in rows] == [*map(str, range(100)), "r", "input/b.jsonl:34"]
    assert {row["source"] for row in rows} == {"r2://llmdo/input/a.jsonl", "r2://llmdo/input/b.jsonl"}
    assert uploads(cloud) == []


def test_a_prefix_gets_a_table_of_each_source_and_one_of_its_errors(cloud):
    made("r2://llmdo/tables/", form="csv")
    folder = "tables/llmdo/input/"
    assert cloud.keys("tables/") == [f"{folder}a.csv", f"{folder}b.csv", f"{folder}b.errors.csv"]
    made("r2://llmdo/one/", form="parquet", single=True, errors="drop")
    assert cloud.keys("one/") == ["one/answers.parquet"]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_what_goes_wrong_leaves_the_old_table_and_no_parts(cloud, form):
    cloud.store.put(f"tables/t.{form}", b"old")

    def fail(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(Export(OUT, f"{TABLE}{form}"), fail)
    assert body(cloud, f"tables/t.{form}") == b"old"
    assert uploads(cloud) == []


SHAPES = {
    "a.jsonl": '{"id": "1", "prompt": "one", "lang": "de"}\n{"id": "2", "prompt": "two\\nlines", "lang": "fr"}\n',
    "a.csv": 'id,prompt,lang\r\n1,one,de\r\n2,"two\nlines",fr\r\n',
    "a.json": '[{"id": "1", "prompt": "one", "lang": "de"},\n {"id": "2", "prompt": "two\\nlines", "lang": "fr"}]\n',
}


def table(text):
    """The same rows as a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([json.loads(line) for line in text.splitlines()]), sink)
    return sink.getvalue()


@pytest.mark.parametrize("name", [*SHAPES, "a.parquet"])
@pytest.mark.fast("a.csv", "a.parquet")
def test_files_of_every_format_are_joined(cloudflare, name):
    cloud = Cloud(cloudflare)
    cloud.upload(name, SHAPES[name].encode() if name in SHAPES else table(SHAPES["a.jsonl"]))
    cloud.run(input=("r2://llmdo/input/",))
    assert made(f"{TABLE}jsonl").joined == 1
    rows = [json.loads(line) for line in body(cloud, "tables/t.jsonl").splitlines()]
    assert [(row["id"], row["prompt"], row["lang"]) for row in rows] == [("1", "one", "de"), ("2", "two\nlines", "fr")]
    assert all(row["answer"] for row in rows)


def test_a_source_that_is_gone_is_not_joined(cloud):
    cloud.store.delete("input/a.jsonl")
    done = made(f"{TABLE}jsonl", errors="drop")
    assert done.joined == 1
    assert "the fields of r2://llmdo/input/a.jsonl are only those that its rows have" in done.notes[0]
    rows = [json.loads(line) for line in body(cloud, "tables/t.jsonl").splitlines()]
    assert [("prompt" in row, "notes" in row) for row in (rows[0], rows[-1])] == [(False, True), (True, False)]


@pytest.mark.parametrize("wait", [0.0, 0.1, 0.3, 0.6, 1.0])
@pytest.mark.fast("0.3")
def test_a_kill_leaves_the_old_table_or_the_new_one(cloud, wait):
    process = cloud.command("export", OUT, "--to", f"{TABLE}jsonl")
    deadline = time.monotonic() + 60
    while not uploads(cloud) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(wait)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=240)
    try:
        assert len(body(cloud, "tables/t.jsonl").splitlines()) == 101
    except ObjectNotFound:
        assert set(cloud.keys("tables/")) <= {"tables/t.errors.jsonl"}  # which is written first
    assert cloud.command("export", OUT, "--to", f"{TABLE}jsonl").wait(timeout=120) == 0
    assert len(body(cloud, "tables/t.jsonl").splitlines()) == 101
