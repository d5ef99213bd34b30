"""The whole command, with lines whose JSON schemas would keep a process busy for years."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from llmdo.runners.inspecting.verify import verify
from tests.fakes.loopback import Loopback, Reply

MODEL = "workers-ai/@cf/meta/llama-3.1-8b-instruct"
LETTERS = json.dumps("a" * 60 + "!")
EMAIL = r"^([a-zA-Z0-9])(([\-.]|[_]+)?([a-zA-Z0-9]+))*(@){1}[a-z0-9]+[.]{1}(([a-z]{2,3})|([a-z]{2,3}[.]{1}[a-z]{2,3}))$"
DOUBLING = {f"a{n}": {"anyOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(40)}
HOSTILE = [
    {"pattern": "^(a+)+$"},
    {"pattern": EMAIL},
    {"$defs": {**DOUBLING, "a40": {"type": "null"}}, "$ref": "#/$defs/a0"},
]
LOOK_AROUND = {"pattern": r"^(?=.*\d)x"}


def by(schema):
    wanted = {"type": "json_schema", "json_schema": schema}
    return {"prompt": "hostile", "response_format": wanted}


class Service:
    """Answers calls of Workers AI's REST API: letters where JSON is asked for, after ``wait`` is set."""

    def __init__(self):
        self.calls = 0
        self.wait = threading.Event()
        self.wait.set()
        self._server = Loopback(self._answer)
        self.url = f"{self._server.origin}/client/v4"
        self.close = self._server.close

    def _answer(self, asked):
        if asked.method == "GET":
            return Reply({"success": True, "result": []})
        self.calls += 1
        self.wait.wait(60)
        return Reply({"success": True, "result": {"response": LETTERS if "response_format" in asked.body else "fine"}})


@pytest.fixture
def service():
    service = Service()
    yield service
    service.wait.set()
    service.close()


def started(folder, service):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("CLOUDFLARE_", "R2_", "LLMDO_"))}
    env |= {
        "PYTHONPATH": str(Path.cwd()),
        "CLOUDFLARE_BASE_URL": service.url,
        "CLOUDFLARE_ACCOUNT_ID": "0" * 32,
        "CLOUDFLARE_API_TOKEN": "a-token-of-this-test",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    command = [sys.executable, "-m", "llmdo", "run", "in.jsonl", "--output", "out", "--model", MODEL, "--json"]
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def written(folder, *lines):
    (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_hostile_lines_end_as_errors_and_the_others_are_answered(tmp_path, service):
    ordinary = [{"prompt": f"ordinary {n}"} for n in range(20)]
    written(tmp_path, *ordinary, *map(by, [*HOSTILE, LOOK_AROUND]), *ordinary)
    run = started(tmp_path, service)
    out, err = run.communicate(timeout=120)
    assert run.returncode == 3, err.decode()
    said = json.loads(out)
    assert (said["answered"], said["failed"]) == (40, 4)
    assert (
        service.calls == 40 + 2 + 2 + 1
    )  # patterns are asked about twice, what takes too long once, and the last never
    rows = [
        json.loads(row) for path in (tmp_path / "out").rglob("errors-*.jsonl") for row in path.read_text().splitlines()
    ]
    messages = sorted(row["error"]["message"] for row in rows)
    assert [any(part in message for message in messages) for part in
            ("must match '^(a+)+$'", "must match '^([a-zA-Z0-9])", "takes over 0.25 s", "write it without look-around")
            ] == [True] * 4, messages  # fmt: skip
    assert verify(str(tmp_path / "out"), [str(tmp_path / "in.jsonl")]).ok


def test_sigterm_is_heard_while_hostile_answers_are_checked(tmp_path, service):
    service.wait.clear()
    written(tmp_path, *[by(HOSTILE[2]) | {"id": n} for n in range(12)], {"prompt": "ordinary"})
    run = started(tmp_path, service)
    until = time.monotonic() + 60
    while service.calls < 13:
        assert time.monotonic() < until and run.poll() is None
        time.sleep(0.05)
    service.wait.set()  # now all are checked, one after the other: three seconds of work
    run.send_signal(signal.SIGTERM)
    out, err = run.communicate(timeout=240)
    assert run.returncode in (1, 3), err.decode()
    said = json.loads(out)
    assert (said["answered"], said["failed"]) == (1, 12)
