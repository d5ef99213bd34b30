"""The same questions as JSONL, CSV, TSV and a JSON array have the same answers; other kinds of file have one error."""

import csv
import gzip
import io
import json

import pytest
import zstandard

from llmdo.pipelines.options import check_options
from llmdo.runners.inspecting.dryrun import plan_run
from llmdo.runners.inspecting.verify import verify
from tests.integration.openai_service import MODEL, answer

ROWS = [{"id": f"r{n}", "prompt": f'say "{n}", please;\nand no more\t\u00e9{n}', "note": f"00{n}"} for n in range(25)]


def table(rows=ROWS, **dialect):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), **dialect)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


WAYS = {
    "a.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
    "a.csv": table(),
    "semicolon.csv": b"\xef\xbb\xbf" + table(delimiter=";", quoting=csv.QUOTE_ALL),
    "a.tsv": table(delimiter="\t", lineterminator="\n"),
    "mac.CSV": table(lineterminator="\r"),
    "a.csv.gz": gzip.compress(table()),
    "a.tsv.zst": zstandard.compress(table(delimiter="\t")),
    "a.json": json.dumps(ROWS).encode(),
    "pretty.json": json.dumps(ROWS, indent=2, ensure_ascii=False).encode(),
    "a.json.gz": gzip.compress(json.dumps(ROWS).encode()),
}


def rows_of(output, kind="shard"):
    return [json.loads(row) for path in output.rglob(f"{kind}-*.jsonl") for row in path.read_text().splitlines()]


def content_of(name, body):
    return {".gz": gzip.decompress, "zst": zstandard.decompress}.get(name[-3:], bytes)(body)


@pytest.mark.parametrize("name", WAYS)
def test_each_format_asks_the_same_and_every_answer_says_where_its_row_stands(service, tmp_path, name):
    file, out = tmp_path / name, tmp_path / "out"
    file.write_bytes(WAYS[name])
    summary = answer(file, output=out)
    assert (summary.exit_code, summary.counts.answered) == (0, len(ROWS))
    assert service.asked() == sorted(row["prompt"] for row in ROWS)
    found = {row["id"]: row for row in rows_of(out)}
    assert {row["id"]: row["metadata"] for row in found.values()} == {row["id"]: {"note": row["note"]} for row in ROWS}
    content = content_of(name, WAYS[name])
    for row in ROWS:
        place = found[row["id"]]["source"]
        own = content[place["offset"] : place["offset"] + place["length"]].decode("utf-8-sig")
        if "json" in name:
            assert json.loads(own) == row
        else:
            delimiter = ";" if name.startswith("semi") else "\t" if ".tsv" in name else ","
            assert list(csv.reader(io.StringIO(own, newline=""), delimiter=delimiter)) == [list(row.values())]
    (manifest,) = [json.loads(path.read_text()) for path in out.rglob("_manifest.json")]
    assert (manifest["blank"], manifest["length"]) == (0, len(content))
    result = verify(str(out), [str(file)])
    assert (result.ok, result.compared, result.notes) == (True, 1, ()), result.differences


@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.parametrize("name", WAYS)
def test_a_run_that_finds_some_shards_reads_the_same_rows_in_the_gaps(service, tmp_path, name, left):
    file, out = tmp_path / name, tmp_path / "out"
    file.write_bytes(WAYS[name])
    assert answer(file, output=out, batch_size=2).exit_code == 0

    def places():
        return sorted((row["source"]["offset"], row["source"]["length"], row["id"]) for row in rows_of(out))

    before, shards = places(), sorted(out.rglob("shard-*.jsonl"))
    assert len(shards) > 10
    for gone in (*out.rglob("_manifest.json"), *shards[left::2]):
        gone.unlink()
    service.asked()
    assert (answer(file, output=out).exit_code, service.asked()) == (0, [])  # the ledger has the answers
    assert places() == before
    result = verify(str(out), [str(file)])
    assert result.ok, result.differences


def test_rows_that_cannot_be_read_are_errors_of_their_own_in_dry_runs_and_runs(service, tmp_path):
    file, out = tmp_path / "a.csv", tmp_path / "out"
    file.write_bytes(b'id,prompt\n1,a\n\n2\n3,b,c\n4,"open\n5,d\n6,\xff\n7,"e" f\n  \n8,g\n')
    plan = plan_run(check_options(files=(str(file),), output=str(out), model=MODEL))
    assert (plan.lines, plan.broken, plan.blank) == (8, 5, 2)
    summary = answer(file, output=out)
    assert (summary.exit_code, summary.counts.answered, summary.counts.failed) == (3, 3, 5)
    assert service.asked() == ["a", "d", "g"]
    errors = {row["error"]["offset"]: row for row in rows_of(out, "errors")}
    assert [errors[at].get("raw") for at in sorted(errors)] == ["2", "3,b,c", '4,"open', None, '7,"e" f']
    assert {row["error"]["class"] for row in errors.values()} == {"BadLine"}
    said = [errors[at]["error"]["message"] for at in sorted(errors)]
    words = ("has 1 field", "has 3 fields", "byte 25 is not closed", "is not UTF-8", "goes on behind its closing quote")
    assert all(word in message for word, message in zip(words, said, strict=True)), said
    assert not any(row["error"]["retryable"] for row in errors.values())
    result = verify(str(out), [str(file)])
    assert (result.ok, result.blank) == (True, 2), result.differences
    assert verify(str(out)).ok


def test_a_template_takes_columns_and_a_format_is_named_where_the_ending_says_none(service, tmp_path):
    file, out = tmp_path / "export.txt", tmp_path / "out"
    file.write_bytes(b"Name;age\nAda;036\nBob;\n")
    summary = answer(file, output=out, format="csv", prompt="Is {Name} {age}?")
    assert (summary.exit_code, service.asked()) == (0, ["Is Ada 036?", "Is Bob ?"])
    assert all("metadata" not in row for row in rows_of(out))
    assert verify(str(out), [str(file)]).ok
    (tmp_path / "in").mkdir()
    for name in ("a.csv", "b.TSV.gz", "c.txt", "d.json"):
        (tmp_path / "in" / name).write_bytes(gzip.compress(b"prompt\nb\n") if "gz" in name else b"prompt\na\n")
    (tmp_path / "in" / "d.json").write_bytes(b'[{"prompt": "d"}]')
    assert answer(tmp_path / "in", output=tmp_path / "all").counts.files_done == 3
    assert service.asked() == ["a", "b", "d"]
    assert answer(tmp_path / "in", output=tmp_path / "some", format="csv").counts.files_done == 1
    assert service.asked() == ["a"]


def test_a_column_of_messages_beside_prompts_is_used_where_it_is_filled(service, tmp_path):
    file, out = tmp_path / "a.csv", tmp_path / "out"
    file.write_text(
        'prompt,messages\nplain,\n,"[{""role"": ""user"", ""content"": ""Hi""}]"\n,oops\n', encoding="utf-8"
    )
    assert answer(file, output=out).exit_code == 3
    assert service.asked() == ["Hi", "plain"]
    (error,) = rows_of(out, "errors")
    assert "'messages'" in error["error"]["message"] and error["messages"] == "oops"
    assert verify(str(out), [str(file)]).ok


@pytest.mark.parametrize("name", ["a.csv", "a.json"])
def test_rows_that_were_too_long_are_answered_with_a_higher_limit_and_no_other(service, tmp_path, name):
    file, out = tmp_path / name, tmp_path / "out"
    rows = [{"id": "short", "prompt": "a"}, {"id": "long", "prompt": "x\n" * 1000}, {"id": "last", "prompt": "b"}]
    file.write_bytes(table(rows) if name == "a.csv" else json.dumps(rows).encode())
    assert answer(file, output=out, max_line_bytes=500).exit_code == 3
    assert service.asked() == ["a", "b"]
    assert rows_of(out, "errors")[0]["error"]["class"] == "LineTooLong"
    assert verify(str(out), [str(file)]).ok
    assert answer(file, output=out, max_line_bytes=5000).exit_code == 0
    assert service.asked() == ["x\n" * 1000]
    assert {row["id"] for row in rows_of(out)} == {"short", "long", "last"}
    assert verify(str(out), [str(file)]).ok


def test_elements_that_are_no_objects_are_errors_of_their_own(service, tmp_path):
    file, out = tmp_path / "a.json", tmp_path / "out"
    file.write_bytes(b'[{"prompt": "a"}, 7, "text", {"prompt": "b",}, [1], {"prompt": "c"}]')
    assert answer(file, output=out).exit_code == 3
    assert service.asked() == ["a", "c"]
    assert [row["raw"] for row in sorted(rows_of(out, "errors"), key=lambda row: row["error"]["offset"])] == [
        "7",
        '"text"',
        '{"prompt": "b",}',
        "[1]",
    ]
    assert verify(str(out), [str(file)]).ok and verify(str(out)).ok


def test_one_object_is_one_line(service, tmp_path):
    (tmp_path / "a.json").write_text('{\n  "prompt": "alone"\n}\n')
    (tmp_path / "b.json").write_text('{"prompt": "first"}\n{"prompt": "second"}\n')
    assert answer(tmp_path / "a.json", tmp_path / "b.json", output=tmp_path / "out").exit_code == 0
    assert service.asked() == ["alone", "first", "second"]
    assert verify(str(tmp_path / "out"), [str(tmp_path / "a.json"), str(tmp_path / "b.json")]).ok


@pytest.mark.parametrize("name", ["a.csv", "a.json"])
def test_a_file_with_nothing_in_it_is_done(service, tmp_path, name):
    for number, body in enumerate((b"", b"\n", b"id,prompt\n" if name == "a.csv" else b" [ ]\n")):
        file, out = tmp_path / str(number) / name, tmp_path / f"out{number}"
        file.parent.mkdir()
        file.write_bytes(body)
        summary = answer(file, output=out)
        assert (summary.exit_code, summary.counts.files_done, service.asked()) == (0, 1, [])
        assert verify(str(out), [str(file)]).ok


WRONG = {
    "header.csv": (b"id,,prompt\n1,2,3\n", "column 2 has no name"),
    "twice.csv": (b"id,prompt,prompt\n1,2,3\n", "'prompt' is in it twice"),
    "none.csv": (b"1,Why?\n2,Why not?\n", "'1' is a value, not a name"),
    "lines.csv": (WAYS["a.jsonl"], "is JSONL: rename it to .jsonl"),
    "array.csv": (WAYS["a.json"], "is a JSON array: rename it to .json"),
    "sheet.csv": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 500, "save its table as CSV"),
    "wide.csv": (table().decode().encode("utf-16"), "iconv -f UTF-16"),
    "table.json": (WAYS["a.csv"], "is CSV, a table: rename it to .csv"),
    "table.jsonl": (WAYS["a.tsv"], "is TSV, a table: rename it to .tsv"),
    "array.jsonl": (WAYS["pretty.json"], "is a JSON array: rename it to .json"),
    "within.json": (json.dumps({"data": ROWS}).encode(), "jq -c '.data[]'"),
    "torn.json": (json.dumps(ROWS).encode()[:-9], "ends in the middle of its array: upload it again"),
    "behind.json": (json.dumps(ROWS).encode() + b"x", "behind the ] of its array"),
    "open.csv": (b'id,prompt\n1,"a\n' + b"2,b\n" * 300_000, "quote at byte 12 that is not closed within 1,048,576"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_cannot_be_read_is_one_sentence_and_no_thousand_errors(service, tmp_path, name):
    file, out = tmp_path / name, tmp_path / "out"
    file.write_bytes(WRONG[name][0])
    summary = answer(file, output=out)
    assert summary.exit_code == 3
    assert WRONG[name][1] in json.dumps(summary.as_json(), ensure_ascii=False)
    assert not rows_of(out, "errors") and not list(out.rglob("_manifest.json"))
    if name not in ("torn.json", "behind.json"):
        assert service.asked() == []
    plan = plan_run(check_options(files=(str(file),), output=str(out), model=MODEL))
    assert plan.unreadable == 1 and WRONG[name][1] in plan.problems[-1]
