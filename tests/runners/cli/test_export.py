"""``llmdo export``, as a shell runs it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.runners.inspecting.export.tables import column, names
from tests.runners.inspecting.report.outputs import Output, answer, failure


@pytest.fixture
def out(tmp_path):
    output = Output(tmp_path)
    output.file(
        "a.jsonl",
        [({"id": n, "text": f"t{n}"}, failure(id=n) if n == 2 else answer(f"a{n}", id=n)) for n in range(5)],
    )
    return tmp_path / "out"


def command(*words):
    return [sys.executable, "-m", "llmdo", "export", *map(str, words)]


def export(*words, **how):
    return subprocess.run(command(*words), capture_output=True, text=True, check=False, timeout=120, **how)


def test_a_table_is_written_and_a_line_says_what_is_in_it(out, tmp_path):
    ended = export(out, "--to", "t.csv", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"{tmp_path}/t.csv and {tmp_path}/t.errors.csv: 4 answers, 1 error line of 1 file\n"
    assert column(tmp_path / "t.csv", "text") == ["t0", "t1", "t3", "t4"]


def test_programs_get_a_summary(out, tmp_path):
    ended = export(out, "--to", tmp_path / "t.parquet", "--errors", "inline", "--json")
    assert ended.returncode == 0
    said = json.loads(ended.stdout)
    assert said == {
        **{"exit_code": 0, "format": "parquet", "written": [str(tmp_path / "t.parquet")], "files": 1, "answers": 4},
        **{"errors": 1, "joined": 1, "notes": [], "missing": []},
    }
    assert column(tmp_path / "t.parquet", "id") == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--to", "t.csv", "b.jsonl"], 1, "no file b.jsonl is done in"),
        (["--to", "t.xlsx"], 2, "ends in none of .jsonl"),
        (["--to", "t.csv", "--columns", ","], 2, "--columns names none"),
        (["--to", "t.csv", "--schema", "none.json"], 2, "--schema none.json cannot be read"),
        (["--to", "t.csv", "--errors", "beside"], 2, "separate"),
        ([], 2, "--to"),
    ],
)
def test_what_cannot_be_exported_is_said(out, tmp_path, words, code, says):
    ended = export(out, *words, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (code, "")
    assert says in ended.stderr
    assert names(tmp_path) == ["in", "out"]


def test_a_schema_makes_columns_of_the_answers_properties(tmp_path):
    output = Output(tmp_path, {"schema": {"type": "object", "properties": {"score": {"type": "number"}}}})
    output.file("a.jsonl", [({"id": 1}, answer('{"score": 3, "why": "so"}', id=1))])
    assert export(output.place, "--to", tmp_path / "t.parquet").returncode == 0
    assert column(tmp_path / "t.parquet", "score") == [3.0]
    (tmp_path / "s.json").write_text('{"properties": {"why": {"type": "string"}}}')
    assert export(output.place, "--to", tmp_path / "u.jsonl", "--schema", tmp_path / "s.json").returncode == 0
    assert column(tmp_path / "u.jsonl", "why") == ["so"]
    assert export(output.place, "--to", tmp_path / "v.csv", "--no-schema").returncode == 0
    assert b"score," not in (tmp_path / "v.csv").read_bytes()


@pytest.fixture
def large(tmp_path):
    output = Output(tmp_path)
    row = answer("an answer", id="r")
    output.file("a.jsonl", [({"id": "r", "text": f"t{n}"}, row) for n in range(60_000)], shard=2_000)
    return output


def until_begun(process, folder):
    """Waits until the export has begun to write."""
    deadline = time.monotonic() + 60
    while not any(path.name.startswith(".llmdo-draft-") for path in folder.iterdir()):
        assert process.poll() is None, "it ended before it wrote"
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "SIGKILL"])
@pytest.mark.fast("SIGKILL-jsonl", "SIGINT-parquet", "SIGTERM-csv")
def test_one_that_is_ended_leaves_the_old_table_or_the_new_one(large, tmp_path, form, how):
    (tmp_path / f"t.{form}").write_text("old")
    process = subprocess.Popen(command(large.place, "--to", tmp_path / f"t.{form}"), stderr=subprocess.PIPE)
    until_begun(process, tmp_path)
    os.kill(process.pid, signal.Signals[how])
    said = process.communicate(timeout=240)[1].decode()
    assert process.returncode != 0
    assert "Traceback" not in said
    assert (tmp_path / f"t.{form}").read_text() == "old"
    if how != "SIGKILL":
        assert names(tmp_path) == ["in", "out", f"t.{form}"]
    assert export(large.place, "--to", tmp_path / f"t.{form}").returncode == 0
    assert len(column(tmp_path / f"t.{form}", "id")) == 60_000
    assert names(tmp_path) == ["in", "out", f"t.{form}"]
