"""``llmdo``'s command line over local files, asking a server of OpenAI's API on loopback, and what it leaves."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest

from llmdo.runners.cli.main import main
from tests.fakes.loopback import Asked, Loopback, Reply

RUN = ("run", "in.jsonl", "--output", "out", "--model", "openai/m", "--runner", "direct", "--json")
_OTHERS = ("CLOUDFLARE_", "R2_", "LLMDO_", "OPENAI_", "ANTHROPIC_", "BRAINTRUST_")


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
    """Runs a command in this process; rows hold no NaN and nothing else that is not JSON."""
    code, out, said = in_this_process(folder, url, command)
    assert out, said
    shards = [path for path in (folder / "out").rglob("*.jsonl") if path.is_file()]
    rows = [json.loads(line, parse_constant=pytest.fail) for path in shards for line in path.read_text().splitlines()]
    return Called(code, json.loads(out), said, rows)


def in_this_process(folder: Path, url: str, command: Sequence[str]) -> tuple[int, str, str]:
    """The exit code, stdout and stderr of a command in a folder, with an environment that names this one service."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(_OTHERS)}
    env |= {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "sk-test", "XDG_STATE_HOME": str(folder / "state")}
    out, err = io.StringIO(), io.StringIO()
    logs = logging.StreamHandler(err)  # the root's own one has the stderr of whoever came first
    logging.getLogger().addHandler(logs)
    try:
        with (
            patch.dict(os.environ, env, clear=True),
            contextlib.chdir(folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            main(list(command))
    finally:
        logging.getLogger().removeHandler(logs)
    return ended.value.code, out.getvalue(), err.getvalue()


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
