"""Exports of one output in each format, byte by byte, or for Parquet by its types and values."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.runners.inspecting.export.tables import made
from tests.runners.inspecting.report.outputs import Output, answer, failure

GOLDEN = Path(__file__).parents[3] / "golden" / "exports"
SCHEMA = {
    "type": "object",
    "properties": {
        "praise": {"type": "boolean"},
        "stars": {"type": "integer"},
        "why": {"type": "array", "items": {"type": "string"}},
    },
}


def vector(*numbers):
    return {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": list(numbers)}]}


@pytest.fixture
def output(tmp_path):
    output = Output(tmp_path, {"schema": SCHEMA})
    said = json.dumps({"praise": True, "stars": 5, "why": ['warm, "kind"', "ä\nö"]}, ensure_ascii=False)
    outcomes = [
        ({"id": "a", "text": 'Good, "very" good', "tags": ["x", "y"], "price": 1}, answer(said, id="a")),
        ({"id": 2, "text": "two\nlines", "model": "mine", "price": 2.5}, answer("no JSON", id=2, usd=None)),
        ({"custom_id": "c", "text": "", "nested": {"deep": [None, 3]}}, answer(None, id="c", tokens=(7, 0))),
        ({"id": "d", "text": "late"}, failure("RateLimited", 3040, "too many", id="d", text="late")),
        (b"{broken", failure("BadLine", None, "not valid JSON", raw="{broken")),
    ]
    output.file("reviews.jsonl", outcomes)
    output.file("vectors.jsonl", [({"id": "v", "text": "one"}, answer(vector(0.25, -1.5), id="v"))])
    return output


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_text_is_as_the_golden_files_say(output, tmp_path, form):
    made(output, tmp_path / f"t.{form}")
    for name in (f"t.{form}", f"t.errors.{form}"):
        assert (tmp_path / name).read_bytes() == (GOLDEN / name).read_bytes(), name


def test_parquet_has_the_types_and_values_that_the_golden_file_says(output, tmp_path):
    made(output, tmp_path / "t.parquet", errors="inline")
    table = pq.ParquetFile(tmp_path / "t.parquet").read()
    said = {
        "columns": {field.name: str(field.type) for field in table.schema},
        "rows": table.to_pylist(),
    }
    assert said == json.loads((GOLDEN / "t.parquet.json").read_text(encoding="utf-8"))
