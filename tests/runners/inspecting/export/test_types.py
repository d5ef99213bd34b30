"""Values are the same in a table as in the input and the answers, whatever they are and wherever they change."""

import base64
import json
import struct

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmdo.runners.ending import Ending
from llmdo.runners.inspecting.export.columns import Columns
from llmdo.runners.inspecting.export.parquet import Parquet
from llmdo.runners.inspecting.export.types import type_of_schema
from llmdo.runners.inspecting.export.writing import TableFile
from tests.runners.inspecting.export.tables import column, made, rows_of
from tests.runners.inspecting.report.outputs import Output, answer, failure


class Memory:
    """An upload into memory."""

    def __init__(self, done):
        self.done, self.body = done, bytearray()

    def write(self, data):
        self.body += data

    def finish(self):
        self.done.append(bytes(self.body))

    def abort(self):
        self.body = None


def table_of(batches, kinds=None):
    """A Parquet table of batches of values of one column, x, and how many passes it took."""
    done, passes = [], 0
    file = TableFile(Parquet(Columns((), ("x",)), kinds or {}), lambda: Memory(done), Ending(), needed=True)
    while True:
        passes += 1
        for batch in batches:
            file.add([{"x": value} for value in batch])
        if file.is_right():
            break
        assert passes < 4
        file.again()
    file.finish()
    return pq.read_table(pa.BufferReader(done[0])), passes


MIXED = {
    "whole numbers": ([[1, None, 2]], pa.int64(), [1, None, 2]),
    "late floats": ([[1, 2], [2.5]], pa.float64(), [1.0, 2.0, 2.5]),
    "late floats after large whole numbers": ([[2**53 + 1], [2.5]], pa.string(), ["9007199254740993", "2.5"]),
    "large whole numbers after floats": ([[2.5], [2**53 + 1]], pa.string(), ["2.5", "9007199254740993"]),
    "beyond 64 bits": ([[1], [2**63], [-(2**64)]], pa.string(), ["1", str(2**63), str(-(2**64))]),
    "the ends of 64 bits": ([[2**63 - 1, -(2**63)]], pa.int64(), [2**63 - 1, -(2**63)]),
    "only null": ([[None], [None]], pa.string(), [None, None]),
    "late values": ([[None] * 3, ["a"]], pa.string(), [None, None, None, "a"]),
    "truth beside numbers": ([[True], [1]], pa.string(), ["true", "1"]),
    "text beside numbers": ([["a"], [1], ['"']], pa.string(), ['"a"', "1", '"\\""']),
    "lists": ([[[1]], [[2.5], []]], pa.list_(pa.float64()), [[1.0], [2.5], []]),
    "empty lists": ([[[]], [[None]]], pa.list_(pa.string()), [[], [None]]),
    "lists of different kinds": ([[[1]], [["a"]]], pa.string(), ["[1]", '["a"]']),
    "lists with large numbers": ([[[2**70]]], pa.string(), [f"[{2**70}]"]),
    "late fields": (
        [[{"a": 1}], [{"b": {"c": "x"}}]],
        pa.struct([("a", pa.int64()), ("b", pa.struct([("c", pa.string())]))]),
        [{"a": 1, "b": None}, {"a": None, "b": {"c": "x"}}],
    ),
    "objects that become texts": ([[{"a": 1}], ["x"]], pa.string(), ['{"a":1}', '"x"']),
    "empty objects": ([[{}], [None]], pa.string(), ["{}", None]),
    "empty objects before others": ([[{}], [{"a": 1}]], pa.struct([("a", pa.int64())]), [{"a": None}, {"a": 1}]),
    "large numbers within, late floats": (
        [[{"a": 2**60 + 1}], [{"a": 0.5}]],
        pa.string(),
        [f'{{"a":{2**60 + 1}}}', '{"a":0.5}'],
    ),
    "a dictionary": (
        [[{f"k{n}": n} for n in range(300)]],
        pa.string(),
        [f'{{"k{n}":{n}}}' for n in range(300)],
    ),
}


@pytest.fixture(params=["looked at before", "a surprise"])
def at_once(request, monkeypatch):
    """Whether the batches are looked at before a file is begun, or the first alone."""
    if request.param == "a surprise":
        monkeypatch.setattr("llmdo.runners.inspecting.export.writing._LOOKED_AT", 1)


@pytest.mark.parametrize("case", MIXED)
def test_a_columns_type_holds_all_that_comes_early_or_late(case, at_once):
    batches, kind, values = MIXED[case]
    table, _ = table_of(batches)
    assert table.schema.field("x").type == kind
    assert table.column("x").to_pylist() == values


def test_a_second_pass_is_only_made_where_the_first_rows_were_no_guide():
    assert table_of([[1]] * 20 + [[2]])[1] == 1
    assert table_of([[1.5]] * 20 + [[2]])[1] == 1
    assert table_of([[{"a": 1, "b": 2}]] * 20 + [[{"b": 1}]])[1] == 1
    assert table_of([[1]] * 10 + [[2.5]])[1] == 1
    assert table_of([[1]] * 20 + [[2.5]])[1] == 2
    assert table_of([[1]] * 20 + [[2.5], ["x"], [{}]])[1] == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def without_nulls(value):
    if isinstance(value, dict):
        return {name: without_nulls(one) for name, one in value.items() if one is not None}
    return [without_nulls(one) for one in value] if isinstance(value, list) else value


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(JSON, min_size=1, max_size=4), min_size=1, max_size=5), st.booleans())
def test_whatever_the_values_are_they_are_read_back(batches, late):
    if late:
        batches = batches[:1] * 16 + batches[1:]
    table, passes = table_of(batches)
    assert passes <= 3
    wanted = [value for batch in batches for value in batch]
    found = table.column("x").to_pylist()
    if (table.schema.field("x").metadata or {}).get(b"llmdo") == b"json":
        assert [None if text is None else json.loads(text) for text in found] == wanted
    else:
        assert [without_nulls(one) for one in found] == [without_nulls(one) for one in wanted]


SCHEMA = {
    "type": "object",
    "properties": {
        "score": {"type": "number"},
        "count": {"type": "integer"},
        "label": {"enum": ["good", "bad"]},
        "why": {"type": ["string", "null"]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "place": {"$ref": "#/$defs/place"},
        "maybe": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
        "any": {},
        "model": {"type": "string"},
    },
    "$defs": {"place": {"type": "object", "properties": {"city": {"type": "string"}, "lat": {"type": "number"}}}},
}


def test_a_schema_says_what_type_a_property_has():
    kinds = {name: type_of_schema(one, SCHEMA) for name, one in SCHEMA["properties"].items()}
    assert kinds == {
        **{"score": pa.float64(), "count": pa.int64(), "label": pa.string(), "why": pa.string()},
        **{"tags": pa.list_(pa.string()), "maybe": pa.bool_(), "any": pa.null(), "model": pa.string()},
        "place": pa.struct([("city", pa.string()), ("lat", pa.float64())]),
    }
    looped = {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}}
    assert pa.types.is_list(type_of_schema(looped, looped))


def schema_answers(tmp_path):
    output = Output(tmp_path, {"schema": SCHEMA})
    said = [
        {"score": 3, "count": 2.0, "label": "good", "tags": [], "place": {"city": "Köln"}, "model": "m"},
        {"score": 2.5, "count": 7, "label": "bad", "why": "so", "tags": ["a"], "any": {"x": 1}, "maybe": True},
    ]
    texts = [*map(json.dumps, said), "no JSON", "[1]"]
    outcomes = [({"id": n, "label": "mine"}, answer(text, id=n)) for n, text in enumerate(texts)]
    output.file("a.jsonl", [*outcomes, ({"id": 4}, failure(id=4))])
    return output


def test_answers_in_json_have_a_typed_column_for_each_property(tmp_path):
    made(schema_answers(tmp_path), tmp_path / "t.parquet", errors="inline")
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.schema.field("count").type == pa.int64()
    assert table.schema.field("score").type == pa.float64()
    assert table.column("score").to_pylist() == [3.0, 2.5, None, None, None]
    assert table.column("count").to_pylist() == [2, 7, None, None, None]
    assert table.column("label").to_pylist() == ["good", "bad", None, None, None]
    assert table.column("input_label").to_pylist() == ["mine"] * 4 + [None]
    assert table.column("place").to_pylist()[0] == {"city": "Köln", "lat": None}
    assert table.column("answer_model").to_pylist()[0] == "m"
    assert table.column("answer").to_pylist()[2:] == ["no JSON", "[1]", None]
    assert table.column_names.index("answer") < table.column_names.index("score") < table.column_names.index("error")


def test_in_csv_nested_properties_are_json(tmp_path):
    made(schema_answers(tmp_path), tmp_path / "t.csv")
    first, second, *_ = rows_of(tmp_path / "t.csv")
    assert (json.loads(first["place"]), first["tags"], first["maybe"]) == ({"city": "Köln"}, "[]", "")
    assert (second["maybe"], second["score"], second["any"]) == ("true", "2.5", '{"x":1}')


TEXTS = [
    *("", " ", 'say "yes", no', "a\nb", "a\r\nb", "\ufeff", "Köln 東京 🎉", "\x00", "=1+1", "00123", "null", "NaN"),
    *("a,b", "\u2028", "'", "\\", "\t"),
]


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_texts_come_back_as_they_were(tmp_path, form):
    output = Output(tmp_path)
    output.file("a.jsonl", [({"id": n, "text": text}, answer(text, id=n)) for n, text in enumerate(TEXTS)])
    made(output, tmp_path / f"t.{form}")
    assert column(tmp_path / f"t.{form}", "text") == TEXTS
    assert column(tmp_path / f"t.{form}", "answer") == TEXTS


def test_null_and_empty_text_differ_in_csv(tmp_path):
    output = Output(tmp_path)
    output.file("a.jsonl", [({"id": n, "text": text}, answer("x", id=n)) for n, text in enumerate(["", None, "a"])])
    made(output, tmp_path / "t.csv", columns=("id", "text"))
    assert (tmp_path / "t.csv").read_bytes() == b'id,text\r\n0,""\r\n1,\r\n2,a\r\n'
    made(output, tmp_path / "u.csv", columns=("text",))
    assert (tmp_path / "u.csv").read_bytes() == b'text\r\n""\r\n""\r\na\r\n'


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_numbers_keep_their_digits(tmp_path, form):
    output = Output(tmp_path)
    lines = [
        b'{"id": 18446744073709551617, "n": 123456789012345678901234567890, "m": {"deep": [-98765432109876543210]}}'
    ]
    row = answer("x", id=18446744073709551617)
    output.file("a.jsonl", [(line, row) for line in lines])
    for join in (True, False):
        made(output, tmp_path / f"t.{form}", join=join)
        ((found),) = rows_of(tmp_path / f"t.{form}")
        assert int(found["id"]) == 18446744073709551617
        if join:
            assert int(found["n"]) == 123456789012345678901234567890
            deep = found["m"] if form == "jsonl" else json.loads(found["m"])
            assert deep == {"deep": [-98765432109876543210]}


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_half_of_a_surrogate_pair_is_replaced(tmp_path, form):
    output = Output(tmp_path)
    output.file("a.jsonl", [(b'{"id": 1, "te\\udc00xt": "a\\ud800b \\ud83c\\udf89"}', answer("x", id=1))])
    made(output, tmp_path / f"t.{form}")
    (row,) = rows_of(tmp_path / f"t.{form}")
    assert row["te\ufffdxt"] == "a\ufffdb 🎉"


def test_ids_of_different_kinds_are_plain_texts_in_parquet(tmp_path):
    output = Output(tmp_path)
    output.file("a.jsonl", [({"id": one}, answer("x", id=one)) for one in (1, "r2", 3.5)])
    made(output, tmp_path / "t.parquet")
    assert column(tmp_path / "t.parquet", "id") == ["1", "r2", "3.5"]
    made(output, tmp_path / "t.jsonl")
    assert column(tmp_path / "t.jsonl", "id") == [1, "r2", 3.5]


def vectors(*several):
    items = [{"object": "embedding", "index": n, "embedding": one} for n, one in enumerate(several)]
    return {"object": "list", "data": items}


def packed(*numbers):
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def embedded(tmp_path, *bodies):
    output = Output(tmp_path)
    output.file("a.jsonl", [({"id": n, "text": "t"}, answer(body, id=n)) for n, body in enumerate(bodies)])
    return output


def test_vectors_are_lists_of_fixed_size(tmp_path):
    output = embedded(tmp_path, vectors([0.5, 1, -2.25]), vectors(packed(0.1, 0.2, 0.3)))
    made(output, tmp_path / "t.parquet")
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 3)
    found = table.column("embedding").to_pylist()
    assert found[0] == [0.5, 1.0, -2.25]
    assert found[1] == pytest.approx([0.1, 0.2, 0.3])
    made(output, tmp_path / "t.jsonl")
    assert column(tmp_path / "t.jsonl", "embedding") == [[0.5, 1, -2.25], [0.1, 0.2, 0.3]]
    made(output, tmp_path / "t.csv")
    assert column(tmp_path / "t.csv", "embedding") == ["[0.5,1,-2.25]", "[0.1,0.2,0.3]"]


def test_vectors_of_several_dimensions_and_several_of_a_row(tmp_path):
    output = embedded(
        *(tmp_path, vectors([1, 2]), vectors([1, 2, 3])),
        *(vectors([1, 2], [3, 4]), vectors(), vectors([5, 6], [7, 8])),
    )
    made(output, tmp_path / "t.parquet")
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.schema.field("embedding").type == pa.list_(pa.float32())
    assert table.column("embedding").to_pylist() == [[1, 2], [1, 2, 3], None, None, None]
    assert table.schema.field("embeddings").type == pa.list_(pa.list_(pa.float32(), 2))
    assert table.column("embeddings").to_pylist() == [None, None, [[1, 2], [3, 4]], [], [[5, 6], [7, 8]]]


def test_vectors_that_are_missing_are_null(tmp_path):
    """pyarrow cannot read a null list of fixed size."""
    output = embedded(tmp_path, vectors([1, 2]), vectors(None), vectors([1, 2], None), vectors([3, 4]))
    made(output, tmp_path / "t.parquet")
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.column("embedding").to_pylist() == [[1, 2], None, None, [3, 4]]
    assert table.column("embeddings").to_pylist() == [None, None, [[1, 2], None], None]
