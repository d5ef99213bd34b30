"""``llmdo cat``, as a shell runs it."""

import json
import subprocess
import sys

import pytest

from llmdo.storage.objects.opening import open_store
from tests.storage.output.test_rows import written


@pytest.fixture
def out(tmp_path):
    store = open_store(str(tmp_path / "out"))
    written(store, "in/a.jsonl", [("answers", [20, 40]), ("errors", [10]), ("answers", [0, 30])], prefix="")
    written(store, "in/b.jsonl", [("answers", [0])], prefix="")
    return tmp_path / "out"


def cat(*words, **how):
    command = [sys.executable, "-m", "llmdo", "cat", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **how)


def ids(ended):
    return [json.loads(line)["id"] for line in ended.stdout.splitlines()]


def test_answers_are_printed_in_the_order_of_the_source(out):
    ended = cat(out)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ids(ended) == ["l0", "l20", "l30", "l40", "l0"]


def test_errors_or_all_rows_of_the_files_that_are_named(out):
    assert ids(cat(out, "a.jsonl", "--errors")) == ["l10"]
    assert ids(cat(out, "in/a*", "--all")) == ["l0", "l10", "l20", "l30", "l40"]
    assert ids(cat(out, "r2://bucket/in/b.jsonl")) == ["l0"]


def test_what_is_not_there_is_said(out, tmp_path):
    ended = cat(out, "b.jsonl", "c.jsonl")
    assert (ended.returncode, ids(ended)) == (1, ["l0"])
    assert ended.stderr == f"llmdo: no file c.jsonl is done in {out}: llmdo status shows what is\n"
    ended = cat(tmp_path / "none")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "no file is done in" in ended.stderr
    assert cat(out, "--errors", "--all").returncode == 2


def test_whoever_reads_may_stop_early(out):
    store = open_store(str(out))
    written(store, "in/large.jsonl", [("answers", list(range(0, 200_000, 10)))], prefix="")
    shell = f"{sys.executable} -m llmdo cat {out} large.jsonl | head -n 1"
    command = ["bash", "-o", "pipefail", "-c", shell]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ids(ended) == ["l0"]
