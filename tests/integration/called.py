"""``llmdo`` as a process over local files that asks a server of OpenAI's API on loopback, and what it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.fakes.loopback import Asked, Loopback, Reply

RUN = ("run", "in.jsonl", "--output", "out", "--model", "openai/m", "--runner", "direct", "--json")
_OTHERS = ("CLOUDFLARE_", "R2_", "LLMDO_", "OPENAI_", "BRAINTRUST_")


class Called(NamedTuple):
    """The exit code and the summary, what stands on stderr, and the rows of all shards."""

    code: int
    summary: dict[str, Any]
    said: str
    rows: list[dict[str, Any]]


def write_lines(folder: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Into in.jsonl."""
    (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def called(folder: Path, url: str, command: Sequence[str] = RUN) -> Called:
    """Ends within 2 minutes; rows hold no NaN and nothing else that is not JSON."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(_OTHERS)}
    env |= {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "sk-test", "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [sys.executable, "-m", "llmdo", *command],
        cwd=folder,
        env=env | {"XDG_STATE_HOME": str(folder / "state")},
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout, done.stderr
    shards = [path for path in (folder / "out").rglob("*.jsonl") if path.is_file()]
    rows = [json.loads(line, parse_constant=pytest.fail) for path in shards for line in path.read_text().splitlines()]
    return Called(done.returncode, json.loads(done.stdout), done.stderr, rows)


Refusal = tuple[int, Any, Mapping[str, str]]  # status, body, headers


class Echo:
    """OpenAI's chats on loopback. ``refuse(prompt, calls of it so far)`` gives a refusal, or None for an answer."""

    def __init__(self, refuse: Callable[[str, int], Refusal | None], port: int = 0) -> None:
        self.calls: Counter[str] = Counter()
        self._refuse = refuse
        self._lock = threading.Lock()
        self._server = Loopback(self._reply, port)
        self.url = f"{self._server.origin}/v1"
        self.close = self._server.close

    def _reply(self, asked: Asked) -> Reply:
        if asked.method == "GET":
            return Reply({"object": "list", "data": [{"id": "m"}]})
        prompt = asked.body["messages"][-1]["content"]
        with self._lock:
            self.calls[prompt] += 1
            refused = self._refuse(prompt, self.calls[prompt])
        if refused:
            status, body, headers = refused
            return Reply(body, status, headers)
        message = {"role": "assistant", "content": f"echo: {prompt}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return Reply({"model": asked.body["model"], "choices": [choice]})
