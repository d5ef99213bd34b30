"""A server in a process of its own, and llmdo as its user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

_ROOT = Path(__file__).parents[2]
_STARTS_S = 180.0


@dataclass
class Server:
    """A server that runs, or ran: ``start`` brings it back at the same port."""

    command: Sequence[str | Path]
    port: int
    ready: str
    log: Path
    env: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Without a path."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when it answers at ``ready``."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=_plain(self.env), cwd=_ROOT, start_new_session=True
            )
        until = time.monotonic() + _STARTS_S
        while time.monotonic() < until:
            assert self.process.poll() is None, f"{self.command[0]} ended: {self.log.read_text()[-2000:]}"
            try:
                if httpx.get(self.url + self.ready, trust_env=False, timeout=5).status_code < 500:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"{self.command[0]} did not answer within {_STARTS_S} s: {self.log.read_text()[-2000:]}")

    def kill(self) -> None:
        """As an outage: at once, with what it has started."""
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """The server, started; killed at the end."""
    try:
        server.start()
        yield server
    finally:
        server.kill()


@dataclass(frozen=True)
class Done:
    """What a run left: its exit code, its summary, what it wrote on stderr, and its rows by the lines' ids."""

    code: int
    summary: dict
    said: str
    rows: dict

    def text(self, name: str) -> str:
        """The answer of a line asked as a chat."""
        return self.rows[name]["response"]["body"]["choices"][0]["message"]["content"]

    def error(self, name: str) -> tuple[str, str]:
        """The class and the message of an error row."""
        return self.rows[name]["error"]["class"], self.rows[name]["error"]["message"]


class User:
    """Runs llmdo over files of their own, against one server."""

    def __init__(self, folder: Path, base_url: str, key: str, model: str) -> None:
        self._folder = folder
        self._base_url, self._key, self._model = base_url, key, model

    def start(self, name: str, lines: Sequence[dict], *options: str, key: str | None = None, model: str | None = None):
        """The process of ``llmdo run`` over NAME.jsonl, to NAME."""
        source = self._folder / f"{name}.jsonl"
        source.write_text("".join(json.dumps(line) + "\n" for line in lines))
        command = [sys.executable, "-m", "llmdo", "run", source, "--output", self._folder / name, "--json"]
        command += ["--model", f"openai/{model or self._model}", "--patience", "3", "--temperature", "0", *options]
        env = _plain({"OPENAI_BASE_URL": self._base_url, "OPENAI_API_KEY": key or self._key})
        return subprocess.Popen(command, env=env, cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def done(self, name: str, process) -> Done:
        """Waits for the process of ``start``."""
        try:
            out, said = process.communicate(timeout=280)
        finally:
            process.kill()
        assert process.returncode in (0, 1, 3), said
        rows = {row["id"]: row for row in self.rows(name)}
        assert self._key not in out + said + json.dumps(rows)
        return Done(process.returncode, json.loads(out), said, rows)

    def run(self, name: str, lines: Sequence[dict], *options: str, **more: str) -> Done:
        """Both."""
        return self.done(name, self.start(name, lines, *options, **more))

    def rows(self, name: str) -> list[dict]:
        """Of all shards that are there."""
        shards = [*(self._folder / name).rglob("shard-*.jsonl"), *(self._folder / name).rglob("errors-*.jsonl")]
        return [json.loads(line) for shard in shards for line in shard.read_text().splitlines()]


def _plain(env: dict[str, str]) -> dict[str, str]:
    """This process's environment without keys, addresses and proxies, with ``env``."""
    strange = ("OPENAI_", "CLOUDFLARE_", "R2_", "BRAINTRUST_", "ANTHROPIC_", "LITELLM_", "OLLAMA_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
    return {**kept, "NO_PROXY": "127.0.0.1", **env}
