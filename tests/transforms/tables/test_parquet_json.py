"""The JSON form of each type, as docs/guide/inputs.md has it, whether or not the array is a part of a longer one."""

from __future__ import annotations

import json
import uuid
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdo.storage.objects.local import LocalStore
from llmdo.transforms.elements import FileVersion, Line, OpenFile
from llmdo.transforms.kinds.inside import look_inside
from llmdo.transforms.lines.reading import Reading, read_range
from llmdo.transforms.tables.parquet_json import check_columns, json_rows
from llmdo.transforms.unreadable import CorruptData

GOLDEN = Path(__file__).parents[2] / "golden"
NOON = datetime(2024, 5, 1, 12, 0, 0, 500_000)
UUID = uuid.UUID("01234567-89ab-cdef-0123-456789abcdef")
FORMS: dict[str, tuple[pa.Array, list[Any]]] = {
    "int8": (pa.array([-1, None], pa.int8()), [-1, None]),
    "uint64": (pa.array([2**64 - 1, 0], pa.uint64()), [2**64 - 1, 0]),
    "bool": (pa.array([True, None]), [True, None]),
    "null": (pa.nulls(2), [None, None]),
    "float16": (pa.array([np.float16(0.1), np.float16("nan")], pa.float16()), [0.1, None]),
    "float32": (pa.array([0.1, float("-inf")], pa.float32()), [0.1, None]),
    "float64": (pa.array([0.1, float("inf")]), [0.1, None]),
    "decimal128": (pa.array([Decimal("12.50"), Decimal("0E-2")], pa.decimal128(9, 2)), ["12.50", "0.00"]),
    "decimal256": (pa.array([Decimal("1" * 50), None], pa.decimal256(60, 0)), ["1" * 50, None]),
    "string": (pa.array(["é😀\x00\n", None]), ["é😀\x00\n", None]),
    "large_string": (pa.array(["a", ""], pa.large_string()), ["a", ""]),
    "string_view": (pa.array(["a", None], pa.string_view()), ["a", None]),
    "binary": (pa.array([b"\xff\x00", b"ab"]), ["/wA=", "YWI="]),
    "large_binary": (pa.array([b"", None], pa.large_binary()), ["", None]),
    "fixed_size_binary": (pa.array([b"abc", None], pa.binary(3)), ["YWJj", None]),
    "date32": (pa.array([date(2024, 5, 1), None]), ["2024-05-01", None]),
    "date64": (pa.array([date(2024, 5, 1), None], pa.date64()), ["2024-05-01", None]),
    "timestamp s": (pa.array([NOON, None], pa.timestamp("s")), ["2024-05-01T12:00:00", None]),
    "timestamp us": (pa.array([NOON, None]), ["2024-05-01T12:00:00.5", None]),
    "timestamp ns": (
        pa.array([1, 1714564800123456789], pa.timestamp("ns")),
        ["1970-01-01T00:00:00.000000001", "2024-05-01T12:00:00.123456789"],
    ),
    "timestamp with zone": (
        pa.array([NOON, None], pa.timestamp("ms", "Europe/Berlin")),
        ["2024-05-01T12:00:00.5Z", None],
    ),
    "time32": (pa.array([time(1, 2, 3), None], pa.time32("s")), ["01:02:03", None]),
    "time64": (pa.array([1, 0], pa.time64("ns")), ["00:00:00.000000001", "00:00:00"]),
    "duration": (pa.array([timedelta(minutes=90), timedelta(seconds=-1.5)]), ["PT5400S", "-PT1.5S"]),
    "list": (pa.array([[Decimal("1.5"), None], None]), [["1.5", None], None]),
    "large_list": (pa.array([["a"], []], pa.large_list(pa.string())), [["a"], []]),
    "list_view": (pa.array([["a", "b"], None], pa.list_view(pa.string())), [["a", "b"], None]),
    "fixed_size_list": (pa.array([[0.1, 0.2], None], pa.list_(pa.float32(), 2)), [[0.1, 0.2], None]),
    "struct": (pa.array([{"a": 1, "b": {"c": [NOON]}}, None]), [{"a": 1, "b": {"c": ["2024-05-01T12:00:00.5"]}}, None]),
    "empty struct": (pa.array([{}, None], pa.struct([])), [{}, None]),
    "map": (pa.array([[("a", 1), ("b", None)], None], pa.map_(pa.string(), pa.int32())), [{"a": 1, "b": None}, None]),
    "map of int": (pa.array([[(1, "x"), (1, "y")], []], pa.map_(pa.int32(), pa.string())), [{"1": "y"}, {}]),
    "map of date": (
        pa.array([[(date(2024, 5, 1), "x")], None], pa.map_(pa.date32(), pa.string())),
        [{"2024-05-01": "x"}, None],
    ),
    "dictionary": (pa.array(["a", None, "a"]).dictionary_encode(), ["a", None, "a"]),
    "dictionary of dates": (pa.array([date(2024, 5, 1)] * 2).dictionary_encode(), ["2024-05-01"] * 2),
    "uuid": (pa.array([UUID.bytes, None], pa.uuid()), [str(UUID), None]),
    "json": (pa.array(['{"a": 1}', None], pa.json_()), ['{"a": 1}', None]),
}


def forms(array: pa.Array) -> list[Any]:
    batch = pa.record_batch([array], names=["x"])
    check_columns(batch.schema)
    return [json.loads(row, parse_constant=pytest.fail)["x"] for row in json_rows(batch)]


@pytest.mark.parametrize("name", FORMS)
def test_each_type_has_its_form(name: str) -> None:
    array, wanted = FORMS[name]
    assert forms(array) == wanted
    longer = pa.chunked_array([array, array, array]).combine_chunks()
    longer = longer if isinstance(longer, pa.Array) else longer.chunk(0)
    for start in range(len(longer)):
        assert forms(longer.slice(start, 2)) == (wanted * 3)[start : start + 2]


def test_the_golden_file_of_all_types_has_the_golden_lines() -> None:
    path = GOLDEN / "types.parquet"
    info = LocalStore(GOLDEN).stat(path.name)
    file = look_inside(FileVersion(str(GOLDEN), path.name, info.etag, info.size))
    tiles = [tile for some in read_range(OpenFile(file, ((0, 2),)), 0, 2, Reading()) for tile in some]
    wanted = (GOLDEN / "types.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(tile.data) for tile in tiles if isinstance(tile, Line)] == list(map(json.loads, wanted))
    assert [(tile.start, tile.stop) for tile in tiles] == [(0, 1), (1, 2)]


def test_text_that_is_not_utf8_stays_as_it_is_and_spoils_only_its_row() -> None:
    offsets = pa.py_buffer(np.array([0, 2, 4], dtype=np.int32).tobytes())
    array = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"a\xffok")])
    batch = pa.record_batch([array, pa.array([1, 2])], names=["t", "n"])
    assert list(json_rows(batch)) == [b'{"t":"a\xff","n":1}', b'{"t":"ok","n":2}']


def test_columns_come_in_their_order_and_rows_without_any_are_objects() -> None:
    batch = pa.record_batch([pa.array([1]), pa.array(["x"])], names=["b", "a"])
    assert list(json_rows(batch)) == [b'{"b":1,"a":"x"}']
    nothing = pa.RecordBatch.from_struct_array(pa.array([{}, {}], pa.struct([])))
    assert list(json_rows(nothing)) == [b"{}", b"{}"]


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (pa.schema([("a", pa.int8()), ("b", pa.int8()), ("a", pa.string())]), "has several columns named 'a'"),
        (
            pa.schema([("s", pa.struct([("x", pa.int8()), ("x", pa.int8())]))]),
            "has in 's' several columns named 'x'",
        ),
        (
            pa.schema([("l", pa.list_(pa.month_day_nano_interval()))]),
            "has a column 'l.item' of type month_day_nano_interval, which has no JSON form",
        ),
    ],
)
def test_a_table_that_has_no_json_form_is_refused(schema: pa.Schema, said: str) -> None:
    with pytest.raises(CorruptData) as caught:
        check_columns(schema)
    assert str(caught.value) == said
    assert caught.value.remedy


@given(st.lists(st.floats(width=32), max_size=20), st.lists(st.floats(), max_size=20))
def test_floats_are_read_back_as_the_same(small: list[float], large: list[float]) -> None:
    def same(values: list[float], kind: pa.DataType) -> bool:
        written = forms(pa.array(values, kind))
        finite = [value if np.isfinite(value) else None for value in values]
        return pa.array(written, kind).equals(pa.array(finite, kind))

    assert same(small, pa.float32())
    assert same(large, pa.float64())


def test_columns_of_requests_have_no_empty_fields_and_may_be_json_in_text() -> None:
    messages = pa.array([[{"role": "user", "content": [{"text": "x", "url": None}], "name": None}], None])
    texts = pa.array(['[{"role": "user"}]', "[broken"])
    (first, second) = json_rows(pa.record_batch([messages, texts, messages], names=["messages", "body", "other"]))
    kept = [{"role": "user", "content": [{"text": "x"}]}]
    whole = [{"role": "user", "content": [{"text": "x", "url": None}], "name": None}]
    assert json.loads(first) == {"messages": kept, "body": [{"role": "user"}], "other": whole}
    assert json.loads(second) == {"messages": None, "body": "[broken", "other": None}
