"""Formats by names, and what positions of a file are."""

from __future__ import annotations

import pytest

from llmdo.transforms.elements import Answer, FileVersion, Line
from llmdo.transforms.files.write_shards import SLOT_BYTES, keyed, length_of_slot, slot_size
from llmdo.transforms.formats import endings, format_of, is_wanted_name
from tests.states import run_state


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("a/b.jsonl", "jsonl"),
        ("B.NDJSON.GZ", "jsonl"),
        ("a.csv.zst", "csv"),
        ("a.TSV", "tsv"),
        ("a.json", "json"),
        ("part-0.snappy.parquet", "parquet"),
        ("a.pq", "parquet"),
        ("a.txt", "jsonl"),
        ("csv", "jsonl"),
        ("dir.csv/part-0", "jsonl"),
    ],
)
def test_the_ending_says_the_format(key: str, name: str) -> None:
    assert format_of(key).name == name
    assert FileVersion("r2://b", key, "e", 1).kind.name == name
    assert FileVersion("r2://b", key, "e", 1, format="csv").kind.name == "csv"


def test_what_spark_and_delta_keep_beside_tables_is_no_input() -> None:
    names = ["_delta_log/00.json", "t/_temporary/0/part.parquet", "_SUCCESS.csv", "_x/a.jsonl", "t/part.parquet"]
    assert [is_wanted_name(name) for name in names] == [False, False, False, True, True]
    assert [is_wanted_name(name, "parquet") for name in ("a.parquet", "a.csv", "a.jsonl")] == [True, False, False]
    assert endings("parquet") == ".parquet, .pq"
    assert endings("csv") == ".csv (.gz, .zst)"


def test_a_table_has_rows_for_positions_and_slots_of_its_own_size() -> None:
    file = FileVersion("r2://b", "a.parquet", "e", 1 << 30, end=2_000_000)
    assert (file.divisible, file.length, file.positions(1 << 20), file.positions(1)) == (True, 2_000_000, 8192, 1)
    assert FileVersion("r2://b", "a.parquet", "e", 1 << 30).length is None
    size = slot_size(file)
    assert size == SLOT_BYTES // 128
    last = Answer(file, 1_999_999, 2_000_000, b"")
    assert [key.rpartition("|")[2] for key, _ in keyed(last)] == [str(1_999_999 // size)]
    assert length_of_slot(last, 3, -1) == 2_000_000 - 3 * size


def test_progress_is_in_bytes_whatever_positions_are() -> None:
    state = run_state()
    file = FileVersion("r2://b", "a.parquet", "e", 100, end=1000)
    state.open(file)
    for _ in range(1000):
        state.add_done(file, 1)
    assert (state.counts.bytes_done, state.done_of(file.id)) == (100, 1000)
    assert Line(file, 0, 1, b"{}").file.stored(1000) == 100
