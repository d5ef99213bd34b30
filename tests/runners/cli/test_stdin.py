"""Prompts from a pipe: kept by their content, so that a run goes on, and what cannot be read is one sentence."""

import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from llmdo.pipelines.usage import UsageError
from llmdo.runners.cli.answer.stdin import with_stdin
from llmdo.runners.inspecting.verify import verify
from tests.integration.openai_service import MODEL, answer, serving

LINES = b'{"prompt": "a"}\n{"prompt": "b"}\n'


class Terminal(io.BytesIO):
    def isatty(self):
        return True


def test_without_a_dash_nothing_is_read(tmp_path):
    assert with_stdin(["a.jsonl"], str(tmp_path), Terminal()) == ["a.jsonl"]


def test_a_terminal_is_not_waited_for(tmp_path):
    with pytest.raises(UsageError, match="is a terminal here: pipe a file into it"):
        with_stdin(["-"], str(tmp_path), Terminal())


def test_equal_content_is_one_file_for_this_user_alone_in_the_output(tmp_path):
    first, again, other = (with_stdin(["-"], str(tmp_path), io.BytesIO(body)) for body in (LINES, LINES, LINES * 2))
    assert first == again != other
    (path,) = first
    assert path.startswith(f"{tmp_path}/_stdin/") and Path(path).read_bytes() == LINES
    assert [one.stat().st_mode & 0o077 for one in (Path(path), Path(path).parent)] == [0, 0]
    assert sorted(path.name for path in (tmp_path / "_stdin").rglob("*") if path.is_file()) == ["stdin.jsonl"] * 2


def test_for_an_output_in_r2_it_is_in_the_state_folder_and_for_a_dry_run_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (path,) = with_stdin(["-"], "r2://bucket/out/", io.BytesIO(LINES))
    assert path.startswith(f"{tmp_path}/state/llmdo/_stdin/")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (path,) = with_stdin(["-"], str(tmp_path / "out"), io.BytesIO(LINES), keep=False)
    assert not (tmp_path / "out").exists() and Path(path).read_bytes() == LINES


def test_a_place_where_nothing_can_be_kept_is_one_sentence(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UsageError, match="standard input cannot be kept"):
        with_stdin(["-"], str(tmp_path / "out"), io.BytesIO(LINES))


@pytest.mark.parametrize(("pack", "ending"), [(gzip.compress, ".gz"), (zstandard.compress, ".zst")])
def test_what_is_piped_in_compressed_is_read_so(tmp_path, pack, ending):
    (path,) = with_stdin(["-"], str(tmp_path), io.BytesIO(pack(LINES)))
    assert Path(path).name == f"stdin.jsonl{ending}"
    with serving() as service, pytest.MonkeyPatch.context() as environment:
        environment.setenv("OPENAI_BASE_URL", service.url)
        environment.setenv("OPENAI_API_KEY", "sk-loopback-only")
        assert answer(path, output=tmp_path / "out").exit_code == 0
        assert service.asked() == ["a", "b"]


def test_the_command_answers_what_is_piped_in_once(tmp_path):
    with serving() as service:
        env = os.environ | {"OPENAI_BASE_URL": service.url, "OPENAI_API_KEY": "sk-loopback-only"}
        command = [sys.executable, "-m", "llmdo", "run", "-", "--output", str(tmp_path / "out"), "--model", MODEL]
        for asked in (["a", "b"], []):
            done = subprocess.run([*command, "--json"], input=LINES, env=env, capture_output=True, check=False)
            assert done.returncode == 0, done.stderr.decode()
            said = json.loads(done.stdout)
            assert (said["files_done"], service.asked()) == (1, asked)
    (spool,) = (tmp_path / "out/_stdin").rglob("stdin.jsonl")
    result = verify(str(tmp_path / "out"), [str(spool)])
    assert (result.ok, result.compared, result.answered) == (True, 1, 2), result.differences


@pytest.mark.parametrize(
    ("body", "form", "name"),
    [
        (b"PAR1...PAR1", None, "stdin.parquet"),
        (b"a,b", "csv", "stdin.csv"),
        (gzip.compress(b"a", mtime=0), "tsv", "stdin.tsv.gz"),
    ],
)
def test_a_table_that_is_piped_in_is_named_as_one(tmp_path, body, form, name):
    (path,) = with_stdin(["-"], str(tmp_path), io.BytesIO(body), form=form)
    assert Path(path).name == name
