"""What an export holds: the rows of files that are done, in the order of their lines, beside the input's fields."""

import gzip
import json

import pytest
import zstandard

from llmdo.pipelines.usage import UsageError
from llmdo.runners.inspecting.export.making import Export, export
from llmdo.storage.errors import StorageError
from tests.runners.inspecting.export.tables import column, made, names, rows_of
from tests.runners.inspecting.report.outputs import Output, answer, failure

FORMS = ("jsonl", "csv", "parquet")
FIXED = [
    *("id", "answer", "error", "model", "input_tokens", "output_tokens", "cost_usd", "finish_reason"),
    *("source", "offset"),
]


@pytest.fixture
def output(tmp_path):
    return Output(tmp_path)


def asked(number, **fields):
    return {"id": f"r{number}", "prompt": f"question {number}", **fields}


def simple(output, count=5, key="a.jsonl", **how):
    output.file(key, [(asked(n), answer(f"answer {n}", **{"id": f"r{n}"})) for n in range(count)], **how)


@pytest.mark.parametrize("form", FORMS)
def test_rows_come_in_the_order_of_their_lines_joined_to_their_fields(output, tmp_path, form):
    outcomes = [
        (asked(n, lang="de"), failure(**asked(n, lang="de")) if n % 3 == 1 else answer(f"a{n}", id=f"r{n}"))
        for n in range(250)
    ]
    output.file("b.jsonl", outcomes, shard=7)
    simple(output, 3)
    done = made(output, tmp_path / f"t.{form}", errors="inline")
    assert (done.files, done.answers, done.errors, done.joined) == (2, 170, 83, 2)
    rows = rows_of(tmp_path / f"t.{form}")
    assert [row["id"] for row in rows] == ["r0", "r1", "r2", *(f"r{n}" for n in range(250))]
    assert [row["source"] for row in rows] == ["a.jsonl"] * 3 + ["b.jsonl"] * 250
    assert [row["prompt"] for row in rows[3:]] == [f"question {n}" for n in range(250)]
    offsets = [int(row["offset"]) for row in rows[3:]]
    assert offsets == sorted(offsets)
    answers = [row["answer"] or None for row in rows[3:]]
    assert answers == [None if n % 3 == 1 else f"a{n}" for n in range(250)]
    assert done.written == [str(tmp_path / f"t.{form}")]
    assert done.notes == []


def test_a_row_of_json_has_its_columns_in_order(output, tmp_path):
    output.file("a.jsonl", [(asked(1, tags=["x"]), answer("yes", id="r1", tokens=(3, 4), usd=0.5))])
    made(output, tmp_path / "t.jsonl")
    (row,) = rows_of(tmp_path / "t.jsonl")
    assert list(row) == ["id", "prompt", "tags", *FIXED[1:]]
    assert row == {
        **{"id": "r1", "prompt": "question 1", "tags": ["x"], "answer": "yes", "error": None, "model": "openai/m"},
        **{"input_tokens": 3, "output_tokens": 4, "cost_usd": 0.5, "finish_reason": "stop"},
        **{"source": "a.jsonl", "offset": 0},
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", ["separate", "inline", "drop"])
def test_error_lines_are_apart_or_between_or_left_out(output, tmp_path, form, how):
    outcomes = [
        (asked(0), answer("zero", id="r0")),
        (asked(1), failure("RateLimited", 3040, "too many", **asked(1))),
        (b"not JSON", failure("BadLine", None, "not valid JSON", raw="not JSON")),
    ]
    output.file("a.jsonl", outcomes)
    done = made(output, tmp_path / f"t.{form}", errors=how)
    rows = rows_of(tmp_path / f"t.{form}")
    assert [row["id"] for row in rows] == ["r0", *(["r1", "a.jsonl:74"] if how == "inline" else [])]
    assert done.errors == (0 if how == "drop" else 2)
    beside = tmp_path / f"t.errors.{form}"
    assert beside.exists() == (how == "separate")
    assert done.written == [str(tmp_path / f"t.{form}"), *([str(beside)] if how == "separate" else [])]
    if how == "separate":
        failed = rows_of(beside)
        assert [(row["id"], row.get("prompt")) for row in failed] in (
            [("r1", "question 1"), ("a.jsonl:74", None)],
            [("r1", "question 1"), ("a.jsonl:74", "")],
        )
        first = json.loads(failed[0]["error"]) if form == "csv" else failed[0]["error"]
        assert first == {"class": "RateLimited", "code": "3040", "message": "too many"}
        assert not failed[0]["answer"]
        if form != "jsonl":
            assert list(failed[0]) == list(rows[0])


def test_an_earlier_table_of_errors_does_not_stay_when_there_are_none_any_more(output, tmp_path):
    (tmp_path / "t.errors.jsonl").write_text("old\n")
    simple(output)
    assert len(made(output, tmp_path / "t.jsonl").written) == 2
    assert (tmp_path / "t.errors.jsonl").read_text() == ""
    assert len(made(output, tmp_path / "u.jsonl").written) == 1


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_file_is_an_empty_table_and_one_row_is_one(output, tmp_path, form):
    output.file("empty.jsonl", [])
    done = made(output, tmp_path / f"t.{form}")
    assert (done.answers, done.notes, rows_of(tmp_path / f"t.{form}")) == (0, [], [])
    if form == "csv":
        assert (tmp_path / "t.csv").read_bytes() == ",".join(FIXED).encode() + b"\r\n"
    simple(output, 1)
    made(output, tmp_path / f"t.{form}")
    assert column(tmp_path / f"t.{form}", "id") == ["r0"]


@pytest.mark.parametrize("form", FORMS)
def test_a_repeated_export_writes_the_same_bytes(output, tmp_path, form):
    simple(output, 300)
    bodies = []
    for _ in range(2):
        made(output, tmp_path / f"t.{form}")
        bodies.append((tmp_path / f"t.{form}").read_bytes())
    assert bodies[0] == bodies[1]


def test_an_output_without_a_file_that_is_done_writes_nothing(output, tmp_path):
    done = made(output, tmp_path / "t.jsonl")
    assert "no file is done in" in done.missing[0]
    simple(output)
    done = made(output, tmp_path / "t.jsonl", "a.jsonl", "b.jsonl")
    assert done.missing == [f"no file b.jsonl is done in {output.place}: llmdo status shows what is"]
    assert not (tmp_path / "t.jsonl").exists()


def test_files_in_work_are_not_there_yet_and_that_is_said(output, tmp_path):
    simple(output)
    output.store.put("_open/" + "0" * 64 + ".json", b"{}")
    done = made(output, tmp_path / "t.jsonl")
    assert done.answers == 5
    assert done.notes == ["some files are still in work, and their rows are not there yet: llmdo status shows which"]


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
def test_compressed_sources_are_joined_too(output, tmp_path, ending, pack):
    simple(output, 2000, key=f"a.jsonl{ending}", pack=pack)
    assert made(output, tmp_path / "t.jsonl").joined == 1
    assert column(tmp_path / "t.jsonl", "prompt") == [f"question {n}" for n in range(2000)]


@pytest.mark.parametrize("how", ["changed", "gone", "not asked for"])
def test_without_the_source_the_fields_are_those_that_the_rows_have(output, tmp_path, how):
    outcomes = [(asked(n, lang="de"), answer("x", id=f"r{n}", metadata={"lang": "de"})) for n in range(3)]
    output.file("a.jsonl", outcomes)
    source = tmp_path / "in" / "a.jsonl"
    if how == "changed":
        source.write_bytes(source.read_bytes() + b"\n")
    if how == "gone":
        source.unlink()
    done = made(output, tmp_path / "t.jsonl", join=how != "not asked for")
    assert done.joined == 0
    assert list(rows_of(tmp_path / "t.jsonl")[0]) == ["id", "lang", *FIXED[1:]]
    if how == "not asked for":
        assert done.notes == []
    else:
        assert (
            "the fields of a.jsonl are only those that its rows have, since the source cannot be read" in done.notes[0]
        )


def test_a_source_that_changes_while_it_is_read_is_not_joined_in_part(output, tmp_path, monkeypatch):
    simple(output, 60_000)
    source, seen = tmp_path / "in" / "a.jsonl", []

    def change(done, total):
        if not seen:
            seen.append(done)
            source.write_bytes(b"{}\n" * 1_000_000)

    done = export(Export(output.place, str(tmp_path / "t.jsonl")), change)
    assert (done.joined, done.answers) == (0, 60_000)
    assert "changed since it was listed" in done.notes[0]
    rows = rows_of(tmp_path / "t.jsonl")
    assert len(rows) == 60_000
    assert not any("prompt" in row for row in rows)


def test_an_output_whose_shards_are_replaced_meanwhile_is_read_again(output, tmp_path):
    """As ``llmdo retry`` does it."""
    simple(output, 3_000, shard=1_000)
    (manifest,) = (tmp_path / "out" / "a.jsonl").glob("*/_manifest.json")
    last = sorted(manifest.parent.glob("shard-*"))[-1]
    new = last.with_name(last.name[:-22] + "0" * 16 + ".jsonl")

    def replace(done, total):
        if last.exists():
            last.rename(new)
            manifest.write_text(manifest.read_text().replace(last.name, new.name))

    done = export(Export(output.place, str(tmp_path / "t.jsonl")), replace)
    assert done.answers == 3_000
    assert column(tmp_path / "t.jsonl", "id") == [f"r{n}" for n in range(3_000)]
    new.unlink()
    with pytest.raises(StorageError, match=new.name):
        made(output, tmp_path / "t.jsonl")


def test_fields_with_names_of_columns_get_a_prefix(output, tmp_path):
    line = {"id": "r", "custom_id": "c", "answer": "mine", "model": 7, "input_model": 8, "tokens": 9, "offset": None}
    output.file("a.jsonl", [(line, answer("theirs", id="r"))])
    made(output, tmp_path / "t.jsonl")
    (row,) = rows_of(tmp_path / "t.jsonl")
    assert (row["id"], row["custom_id"], row["answer"], row["model"]) == ("r", "c", "theirs", "openai/m")
    assert (row["input_answer"], row["input_model"], row["input_input_model"], row["tokens"]) == ("mine", 7, 8, 9)
    assert row["input_offset"] is None


@pytest.mark.parametrize("templated", [False, True])
def test_metadata_of_a_line_is_spread_as_in_rows(tmp_path, templated):
    output = Output(tmp_path, {"prompt": "{text}"} if templated else {})
    output.file("a.jsonl", [({"id": 1, "text": "t", "metadata": {"lang": "de"}}, answer("x", id=1))])
    made(output, tmp_path / "t.jsonl")
    (row,) = rows_of(tmp_path / "t.jsonl")
    assert row.get("metadata") == ({"lang": "de"} if templated else None)
    assert row.get("lang") == (None if templated else "de")


@pytest.mark.parametrize("form", FORMS)
def test_columns_are_chosen_and_ordered(output, tmp_path, form):
    output.file("a.jsonl", [(asked(1, lang="de"), answer("x", id="r1"))])
    done = made(output, tmp_path / f"t.{form}", columns=("answer", "lang", "nothing"))
    (row,) = rows_of(tmp_path / f"t.{form}")
    assert list(row.items()) == [("answer", "x"), ("lang", "de"), ("nothing", "" if form == "csv" else None)]
    assert done.notes == ["no row has nothing: check --columns"]
    (tmp_path / "in" / "a.jsonl").unlink()  # not needed for these
    assert made(output, tmp_path / f"t.{form}", columns=("offset", "answer")).notes == []


def test_a_folder_gets_a_table_of_each_source(output, tmp_path):
    for key in ("a.jsonl", "b.jsonl.gz", "c"):
        simple(output, 2, key=key, pack=gzip.compress if key.endswith(".gz") else bytes)
    made(output, f"{tmp_path}/tables/", form="csv")
    assert names(tmp_path / "tables") == ["a.csv", "b.csv", "c.csv"]
    made(output, f"{tmp_path}/one/", form="parquet", single=True)
    assert len(rows_of(tmp_path / "one" / "answers.parquet")) == 6
    made(output, f"{tmp_path}/plain/", "a.jsonl")
    assert names(tmp_path / "plain") == ["a.jsonl"]


def test_sources_of_one_name_get_tables_of_their_own(tmp_path):
    output = Output(tmp_path)
    simple(output, 2)
    simple(output, 3, key="a.jsonl.gz", pack=gzip.compress)
    made(output, f"{tmp_path}/tables/")
    found = names(tmp_path / "tables")
    assert len(found) == 2 and all(name.startswith("a-") for name in found)
    assert sorted(len(rows_of(tmp_path / "tables" / name)) for name in found) == [2, 3]


def test_of_a_file_that_has_grown_the_last_version_counts(output, tmp_path):
    simple(output, 2)
    simple(output, 3)
    manifests = sorted((tmp_path / "out" / "a.jsonl").glob("*/_manifest.json"), key=lambda one: one.stat().st_size)
    small = next(one for one in manifests if json.loads(one.read_text())["answered"] == 2)
    small.write_text(small.read_text().replace("2026-11-30T10", "2026-11-30T09"))
    done = made(output, tmp_path / "t.jsonl")
    assert (done.files, done.answers) == (1, 3)
    assert done.notes == [
        "1 earlier version of files that have changed since is left out: --all-versions takes them, too"
    ]
    assert made(output, tmp_path / "t.jsonl", every_version=True).answers == 5


def test_what_was_asked_and_what_was_answered_are_never_replaced(output, tmp_path):
    simple(output)
    before = (tmp_path / "in" / "a.jsonl").read_bytes()
    with pytest.raises(UsageError, match="a source of the answers"):
        made(output, tmp_path / "in" / "a.jsonl")
    with pytest.raises(UsageError, match="a source of the answers"):
        made(output, f"{tmp_path}/in/")
    with pytest.raises(UsageError, match="within the output itself"):
        made(output, f"{output.place}/tables/")
    with pytest.raises(UsageError, match="within the output itself"):
        made(output, f"{output.place}/errors-of-today.jsonl")
    assert (tmp_path / "in" / "a.jsonl").read_bytes() == before
    made(output, f"{output.place}/answers.jsonl")
    assert made(output, tmp_path / "t.jsonl").answers == 5


@pytest.mark.parametrize(
    ("to", "how", "says"),
    [
        ("t.txt", {}, "ends in none of"),
        ("t", {"form": "csv"}, "ends in none of"),
        ("t.csv", {"form": "jsonl"}, "leave out --format"),
        ("s3://bucket/t.csv", {}, "s3:// is not known here"),
    ],
)
def test_a_target_that_cannot_be_is_refused(output, tmp_path, to, how, says):
    simple(output)
    with pytest.raises(UsageError, match=says):
        made(output, to if "://" in to else tmp_path / to, **how)


def test_a_damaged_row_ends_the_export_and_leaves_what_was_there(output, tmp_path):
    simple(output)
    (tmp_path / "t.jsonl").write_text("old\n")
    (shard,) = (tmp_path / "out" / "a.jsonl").glob("*/shard-*")
    shard.write_bytes(shard.read_bytes().replace(b'"response"', b'"reply"'))
    with pytest.raises(StorageError, match="has a row that cannot be read"):
        made(output, tmp_path / "t.jsonl")
    assert (tmp_path / "t.jsonl").read_text() == "old\n"
    assert names(tmp_path) == ["in", "out", "t.jsonl"]
