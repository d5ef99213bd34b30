"""The same rows as JSONL, CSV, TSV, JSON array and Parquet: the same answers and ids, whatever runs them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import time
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmdo.runners.inspecting.verify import verify
from tests.integration.cloud import MODEL, OUTPUT
from tests.integration.parity import comparable

pytestmark = pytest.mark.timeout(600)

ROWS: list[Any] = [
    {"id": f"r{n}", "prompt": f'question {n}, "quoted";\nsecond line\té', "note": f"{n:05}", "custom_id": f"c{n}"}
    for n in range(150)
]
# Rows in the middle that cannot be answered: one with a field too many, and one whose prompt is blank.
WRONG, BLANK = 60, 90


def table(**dialect: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, **dialect)
    writer.writerow(list(ROWS[0]))
    for number, row in enumerate(ROWS):
        if number == WRONG:
            writer.writerow(["too", "many", "fields", "in", "it"])
        if number == BLANK:
            text.write("\r\n")
            writer.writerow(["blank", " ", "", ""])
        writer.writerow(list(row.values()))
    return text.getvalue().encode()


def columns() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), file, row_group_size=40)
    return file.getvalue()


BODIES = {
    "a.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
    "a.csv": table(),
    "packed.csv.gz": gzip.compress(b"\xef\xbb\xbf" + table(delimiter=";")),
    "a.tsv": table(delimiter="\t", lineterminator="\n"),
    "a.json": json.dumps([*ROWS[:WRONG], 7, *ROWS[WRONG:BLANK], {"prompt": " "}, *ROWS[BLANK:]]).encode(),
    "pretty.json": json.dumps(ROWS, indent=2).encode(),
    "a.parquet": columns(),
}
WITH_ERRORS = ("a.csv", "packed.csv.gz", "a.tsv", "a.json")
LISTED = ("--input", "r2://llmdo/input/")
WAYS = {
    "direct": ("run", "--runner", "direct", *LISTED),
    "processes": ("run", "--processes", "2", *LISTED),
    "prism": ("run", "--runner", "prism", *LISTED),
    "flink": ("run", "--runner", "flink", *LISTED),
    "stream-prism": ("stream", "--runner", "prism", "--queue", "llmdo-input", "--batch-seconds", "1"),
    "queue-direct": ("run", "--runner", "direct", "--queue", "llmdo-input"),
}
MARKS = {"prism": pytest.mark.prism, "flink": pytest.mark.flink}


def without_place(row):
    """What rows of all formats have in common."""
    return {key: value for key, value in comparable(row).items() if key != "source"}


@pytest.mark.fast("direct", "prism")
@pytest.mark.parametrize("way", [pytest.param(way, marks=MARKS.get(way.rpartition("-")[2], ())) for way in WAYS])
def test_each_format_has_the_answers_of_jsonl(cloud, way):
    for name, body in BODIES.items():
        cloud.upload(name, body)
    given = ("--output", OUTPUT, "--model", MODEL, "--batch-size", "20", "--json")
    process = cloud.command(*WAYS[way], *given)
    try:
        if WAYS[way][0] == "stream":
            deadline = time.monotonic() + 400
            while sum(key.endswith("/_manifest.json") for key in cloud.keys("output/llmdo/")) < len(BODIES):
                assert process.poll() is None, process.communicate()[1].decode()[-3000:]
                assert time.monotonic() < deadline
                time.sleep(0.2)
            process.terminate()
        out, err = process.communicate(timeout=400)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == (0 if WAYS[way][0] == "stream" else 3), err.decode()[-3000:]
    assert json.loads(out)["files_done"] == len(BODIES)
    expected = None
    for name in BODIES:
        rows = cloud.rows(name)
        answers = [without_place(row) for row in rows if row["error"] is None]
        assert [row["id"] for row in answers] == [row["id"] for row in ROWS]
        assert [row["metadata"] for row in answers] == [{"note": row["note"]} for row in ROWS]
        expected = expected or answers
        assert answers == expected
        errors = [row for row in rows if row["error"] is not None]
        assert len(errors) == (2 if name in WITH_ERRORS else 0)
    result = verify(OUTPUT, ["r2://llmdo/input/"])
    assert (result.ok, result.compared, result.blank) == (True, len(BODIES), 3), result.differences
