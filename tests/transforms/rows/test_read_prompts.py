"""Files of every format as rows of a pipeline."""

from __future__ import annotations

import gzip
import json

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.typehints.schemas import named_fields_from_element_type

from llmdo.transforms.rows.read_prompts import ReadPrompts

ROWS = [{"id": 1, "text": "a"}, {"id": 2, "text": "b"}, {"id": 3, "text": None}]


def written(folder):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "a.jsonl").write_text(lines)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    (folder / "c.json").write_text(json.dumps(ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "d.parquet")


@pytest.mark.parametrize("name", ["a.jsonl", "b.jsonl.gz", "c.json", "d.parquet"])
def test_every_format_is_the_same_rows(tmp_path, name):
    written(tmp_path)
    with TestPipeline(runner="FnApiRunner") as pipeline:
        rows = pipeline | ReadPrompts(str(tmp_path / name))
        assert [field for field, _ in named_fields_from_element_type(rows.element_type)] == ["id", "text"]
        assert_that(rows | beam.Reshuffle() | beam.Map(lambda row: row._asdict()), equal_to(ROWS))


def test_a_folder_is_all_its_files_and_named_fields_are_not_looked_for(tmp_path):
    written(tmp_path)
    with TestPipeline(runner="FnApiRunner") as pipeline:
        rows = pipeline | ReadPrompts(str(tmp_path), fields={"text": "string", "more": "number"})
        found = rows | beam.Map(lambda row: (row.text, row.more))
        assert_that(found, equal_to([("a", None), ("b", None), (None, None)] * 4))


def test_a_format_counts_more_than_a_files_ending_and_nulls_do_not_change_a_type(tmp_path):
    (tmp_path / "a.txt").write_text('{"n": 1, "x": null}\n\n{"n": null, "x": null}\n')
    with TestPipeline(runner="FnApiRunner") as pipeline:
        rows = pipeline | ReadPrompts([str(tmp_path / "a.txt")], format="jsonl")
        kinds = dict(named_fields_from_element_type(rows.element_type))
        assert "int" in str(kinds["n"]) and kinds["x"] == str | None
        assert_that(rows | beam.Map(lambda row: (row.n, row.x)), equal_to([(1, None), (None, None)]))


def test_an_empty_place_and_an_empty_file_are_said_when_the_pipeline_is_made(tmp_path):
    pipeline = beam.Pipeline(runner="FnApiRunner")
    with pytest.raises(ValueError, match="there is no file in"):
        _ = pipeline | "1" >> ReadPrompts(str(tmp_path))
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(ValueError, match="no row to learn the fields from"):
        _ = pipeline | "2" >> ReadPrompts(str(tmp_path))
    with TestPipeline(runner="FnApiRunner") as pipeline:
        assert_that(pipeline | ReadPrompts(str(tmp_path), fields={"text": "string"}), equal_to([]))


@pytest.mark.parametrize(
    ("line", "why"), [("{broken", "a.jsonl:12: "), ('{"id": "x"}', "a.jsonl:12: 'id' is 'x', and its column is")]
)
def test_a_line_that_is_no_such_row_names_its_place(tmp_path, line, why):
    (tmp_path / "a.jsonl").write_text('{"id": 100}\n' + line + "\n")
    with pytest.raises(Exception, match=why), TestPipeline(runner="FnApiRunner") as pipeline:
        _ = pipeline | ReadPrompts(str(tmp_path), fields={"id": "integer"})


def test_values_of_several_kinds_are_json_and_whole_numbers_beside_others_are_floats(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1, "b": 1, "c": [1], "d": null}\n{"a": "x", "b": 1.5, "c": [2]}\n')
    with TestPipeline(runner="FnApiRunner") as pipeline:
        rows = pipeline | ReadPrompts(str(tmp_path))
        found = rows | beam.Reshuffle() | beam.Map(lambda row: (row.a, row.b, list(row.c), row.d))
        assert_that(found, equal_to([("1", 1.0, [1], None), ("x", 1.5, [2], None)]))
