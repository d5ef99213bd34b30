"""A table whose rows would all be errors ends with one sentence."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmdo.storage.objects.opening import open_store
from llmdo.transforms.elements import FileVersion
from llmdo.transforms.kinds.inside import look_inside
from llmdo.transforms.tables.needed_columns import ANY_COLUMNS, NeededColumns
from llmdo.transforms.unreadable import CorruptData
from tests.integration.openai_service import answer, serving

ASKS = NeededColumns(asking=True)


def needs(*fields: str) -> NeededColumns:
    return NeededColumns(frozenset(fields), asking=True)


@pytest.mark.parametrize(
    ("columns", "needed"),
    [
        (("id", "text"), needs("text")),
        (("text", "lang"), needs("text", "lang")),
        (("prompt",), ASKS),
        (("id", "messages"), ASKS),
        (("custom_id", "params"), ASKS),
        (("model", "picture"), ASKS),  # the model's own input
        (("custom_id", "body"), needs("text")),  # the field may be in it
        (("id", "raw", "error"), needs("text")),
        (("anything",), NeededColumns()),
        ((), ANY_COLUMNS),
    ],
)
def test_a_table_that_can_be_asked_is_read(columns, needed):
    needed.check(columns)


@pytest.mark.parametrize(
    ("columns", "needed", "said"),
    [
        (("id", "txt"), needs("text"), "has no column text, which the template names (it has id, txt)"),
        (("id",), needs("text", "lang"), "has no columns lang, text"),
        (("Text",), needs("text"), "it has Text"),
        (("id", "review"), ASKS, "has no column prompt, messages, text or body (it has id, review)"),
        ((), ASKS, "(it has none)"),
        (tuple(f"c{at}" for at in range(20)), ASKS, "c6, c7, …)"),
        (("x" * 100,), ASKS, "x…)"),
    ],
)
def test_one_that_cannot_be_is_named_with_its_columns_and_a_remedy(columns, needed, said):
    with pytest.raises(CorruptData) as raised:
        needed.check(columns)
    assert said in str(raised.value)
    assert "--prompt" in raised.value.remedy and "{id}" not in raised.value.remedy


TABLE = [{"id": 1, "review": "good"}, {"id": 2, "review": "bad"}]


def tables() -> dict[str, bytes]:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(TABLE), sink)
    csv = b"id,review\n1,good\n2,bad\n"
    return {
        "a.csv": csv,
        "a.csv.gz": gzip.compress(csv),
        "long.csv": csv + b"3,good\n" * 10_000,
        "a.tsv": csv.replace(b",", b"\t"),
        "a.parquet": sink.getvalue().to_pybytes(),
    }


@pytest.mark.parametrize("name", tables())
def test_each_kind_of_table_is_looked_at(tmp_path, name):
    store, body = open_store(str(tmp_path)), tables()[name]
    file = FileVersion(store.url, name, store.put(name, body), len(body))
    for needed in (needs("review"), NeededColumns(), ANY_COLUMNS):
        assert look_inside(file, None, needed).key == name
    with pytest.raises(CorruptData, match=r"a?.*has no column text, which the template names \(it has id, review\)"):
        look_inside(file, None, needs("text"))
    assert look_inside(file, None, needs("text"), checked=False).key == name  # it was begun before


def test_lines_are_not_looked_at(tmp_path):
    body = json.dumps(TABLE[0]).encode() + b"\n"
    for name in ("a.jsonl", "a.json"):
        (tmp_path / name).write_bytes(body)
        store = open_store(str(tmp_path))
        info = store.stat(name)
        look_inside(FileVersion(store.url, name, info.etag, info.size), None, needs("text"))


@pytest.mark.parametrize("options", [{"prompt": "Sum up: {text}"}, {}])
def test_a_run_ends_such_a_file_without_a_call_and_answers_the_others(tmp_path, monkeypatch, options):
    for name, body in tables().items():
        (tmp_path / name).write_bytes(body)
    (tmp_path / "good.csv").write_bytes(b"prompt,text\nask,this one\n")
    with serving() as service:
        monkeypatch.setenv("OPENAI_BASE_URL", service.url)
        summary = answer(*sorted(tmp_path.iterdir()), output=tmp_path / "out", **options)
        assert len(service.asked()) == 1
    assert (summary.exit_code, summary.counts.files_done, summary.counts.files_stale) == (3, 1, 5)
    assert all("has no column" in one.reason for one in summary.settled if one.status == "stale")
