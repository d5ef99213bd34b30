"""Plain local files with the embedded model: no server, no account."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmdo.runners.inspecting.verify import verify

MODEL = "local/smollm2-135m-instruct"
CLOUD = ("CLOUDFLARE_", "R2_", "LLMDO_BUCKET", "LLMDO_QUEUE")


def llmdo(*arguments, cwd):
    env = {name: value for name, value in os.environ.items() if not name.startswith(CLOUD)}
    command = [sys.executable, "-m", "llmdo", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=env | {"PYTHONPATH": str(Path.cwd())}, check=False, capture_output=True, timeout=240
    )


@pytest.fixture
def folder(tmp_path):
    line = {"prompt": "Name a colour.", "max_tokens": 5}
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "a.jsonl").write_text(
        json.dumps({"id": "a-1", **line}) + "\n" + json.dumps({"text": "red", "model": "local/smollm2-135m-embed"})
    )
    (tmp_path / "in" / "sub" / "b.jsonl.gz").write_bytes(gzip.compress(json.dumps(line).encode()))
    (tmp_path / "in" / "c.jsonl").write_text("{broken\n")
    return tmp_path


@pytest.mark.fast("inputs0")
@pytest.mark.model
@pytest.mark.parametrize("inputs", [["in"], ["in/a.jsonl", "in/sub/b.jsonl.gz", "in/c.jsonl"], ["in/**/*.jsonl*"]])
def test_a_folder_files_and_a_pattern_are_answered_by_the_embedded_model(folder, inputs):
    done = llmdo("run", *inputs, "--output", "out", "--model", MODEL, "--json", cwd=folder)
    assert done.returncode == 3, done.stderr.decode()
    said = json.loads(done.stdout)
    assert (said["answered"], said["failed"]) == (3, 1)
    assert said["output_tokens"] >= 2
    rows = [
        json.loads(line)
        for path in sorted((folder / "out").rglob("shard-*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    answers = [
        row["response"]["body"]["choices"][0]["message"]["content"]
        for row in rows
        if "id" in row and row["response"]["body"]["object"] == "chat.completion"
    ]
    assert len(answers) == 2 and all(answer.strip() for answer in answers)
    result = verify(str(folder / "out"), [str(folder / place) for place in inputs])
    assert result.ok, result.differences
    again = llmdo("verify", "out", *(f"--input={place}" for place in inputs), "--json", cwd=folder)
    assert again.returncode == 0, again.stderr.decode()
    assert json.loads(again.stdout)["answered"] == 3


@pytest.mark.fast("arguments0-*", "arguments4-*")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["in/a.jsonl", "--output", "out", "--model", "local/none"], "local/none"),
        (["in/a.jsonl", "--output", "out", "--model", "gpt"], "names no provider"),
        (["absent/", "--output", "out", "--model", MODEL], "absent"),
        (["in/a.jsonl", "--output", "out"], "name a model: --model openai/gpt-4o-mini and export OPENAI_API_KEY"),
        (["--output", "out", "--model", MODEL], "name the prompts"),
    ],
)
def test_what_cannot_work_is_one_sentence_and_no_traceback(folder, arguments, says):
    done = llmdo("run", *arguments, cwd=folder)
    said = done.stderr.decode()
    assert done.returncode in (1, 2)
    assert says in said
    assert "Traceback" not in said
