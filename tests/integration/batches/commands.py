"""`llmdo` as a process of its own, with batches of the local OpenAI or Anthropic; stopped at chosen instants."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx

from llmdo.runners.inspecting.verify import verify

PATIENCE_S = 180.0
HELD_S = 6.0  # the server waits at its end for what it holds up
# What else would take half a minute in the fast suite; the slow one runs the command as it is.
QUICK = """
from llmdo.backends.engine import batch_polls, batch_work, batches
batches.LINGER_S, batch_polls.FIRST_POLL_S, batch_polls.LONGEST_POLL_S, batch_work.LISTING_LAG_S = 0.3, 0.05, 0.5, 0.5
"""
MODELS = {"openai": "openai/gpt-4o-mini", "anthropic": "anthropic/claude-haiku-4-5"}


class Commands:
    """Runs commands over one file of prompts and one output, and stops them."""

    def __init__(self, server, folder: Path, shape: str, *, quick: bool) -> None:
        self.server, self.folder, self.shape, self.quick = server, folder, shape, quick
        self.started: list[subprocess.Popen[bytes]] = []
        local = server.env["LOCAL_OPENAI_BASE_URL"], server.env["LOCAL_ANTHROPIC_BASE_URL"]
        self._env = {
            **{"OPENAI_BASE_URL": local[0], "OPENAI_API_KEY": "sk-any"},
            **{"ANTHROPIC_BASE_URL": local[1], "ANTHROPIC_API_KEY": "sk-ant-any"},
            **{"XDG_CACHE_HOME": str(folder / "cache"), "XDG_STATE_HOME": str(folder / "state")},
        }

    def ask(self, count: int) -> None:
        """Writes the file of prompts."""
        lines = [json.dumps({"id": number, "prompt": f"line {number} ✓", "max_tokens": 50}) for number in range(count)]
        (self.folder / "in").mkdir()
        (self.folder / "in" / "a.jsonl").write_text("".join(f"{line}\n" for line in lines))

    def start(self, *more: str, command: str = "run") -> subprocess.Popen[bytes]:
        places = [str(self.folder / "in"), "--output", str(self.folder / "out"), "--model", MODELS[self.shape]]
        arguments = [command, *places, "--runner", "direct", "--json", *more]
        code = f"{QUICK}from llmdo.runners.cli.main import main; main({arguments!r})"
        process = subprocess.Popen(
            [sys.executable, *(["-c", code] if self.quick and command == "run" else ["-m", "llmdo", *arguments])],
            env=os.environ | self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.started.append(process)
        return process

    def end(self, process: subprocess.Popen[bytes]) -> tuple[int, dict, str]:
        """Waits for the end; returns the exit code, the summary, or {}, and what was logged."""
        out, err = process.communicate(timeout=PATIENCE_S)
        return process.returncode, json.loads(out) if out.strip() else {}, err.decode()

    def collect(self, how: str) -> None:
        """A later run answers all: in a mode, or as a schedule, which is stopped when all is there."""
        if how != "schedule":
            code, summary, err = self.end(self.start("--mode", how))
            assert code == 0, (summary, err[-3000:])
            return
        process = self.start("--cron", "* * * * * *", "--mode", "batch", command="schedule")
        wait_until(lambda: [*(self.folder / "out").rglob("_manifest.json")], process)
        process.terminate()
        process.communicate(timeout=PATIENCE_S)

    def hold(self, operation: str, seconds: float = HELD_S, **effect) -> None:
        """Holds the next call of an operation up."""
        self.server.fault(self.shape, match=f"#{operation}", latency_s=seconds, count=1, **effect)

    def is_held(self, operation: str) -> bool:
        """Whether a call of the operation has come, and is or was held up."""
        headers = {"Authorization": f"Bearer {self.server.env['CLOUDFLARE_API_TOKEN']}"}
        faults = httpx.get(f"{self.server.url}/_faults", headers=headers, trust_env=False, timeout=60).json()["faults"]
        return any(one.get("match") == f"#{operation}" and one.get("count") == 0 for one in faults)

    def submitted(self) -> int:
        """Batches that the server has taken."""
        return self.server.stats()["batches"]["submitted"]

    def check(self, count: int) -> None:
        """Each line was paid for once, and is answered in one row; nothing is left open, and ``verify`` agrees."""
        out = self.folder / "out"
        rows = [json.loads(line) for one in out.rglob("shard-*.jsonl") for line in one.read_text().splitlines()]
        texts = sorted((row["id"], row["response"]["body"]["choices"][0]["message"]["content"]) for row in rows)
        assert texts == [(number, f"echo: line {number} ✓") for number in range(count)]
        paid = self.server.stats()["paid"]
        assert (len(paid["by_prompt"]), set(paid["by_prompt"].values()), paid["calls"]) == (count, {1}, count)
        assert verify(f"{out}/", [f"{self.folder / 'in'}/"]).ok
        assert [one.name for one in (out / "_batches").glob("*") if not json.loads(one.read_text())["ended_at"]] == []

    def kill_all(self) -> None:
        """Leaves no process behind."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.communicate()


def wait_until(condition, process=None) -> None:
    """Until it holds; fails if ``process`` ends before."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if process and time.monotonic() > end:
            process.kill()
            process.wait()
        assert process is None or process.poll() is None, process.communicate()[1].decode()[-3000:]
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)
