"""Runs inside the process of a way that is measured, and reports what it used.

Every way and every rival runs this module; a rival in an environment of its own, where llmdo is not installed.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MODEL = "@cf/meta/llama-3.3-70b-instruct-fp8-fast"
MEASURED = "measured.json"  # in the task's folder: what libraries print is theirs
EVERY_S = 0.05
PROMPT = "Classify the sentiment of review {} in one word: The delivery was late, but the product itself is great."


@dataclass(frozen=True, slots=True)
class Task:
    """What a way has to do: ask each line of ``prompts``, a file of ``{"id", "prompt"}`` lines, with at most
    ``concurrency`` calls in flight, at the endpoint with this URL. What it writes goes into ``folder``.
    """

    url: str
    concurrency: int
    prompts: str
    folder: str

    def texts(self) -> list[str]:
        """The prompts."""
        return [json.loads(line)["prompt"] for line in Path(self.prompts).read_text().splitlines()]


@dataclass(frozen=True, slots=True)
class Used:
    """What a way's process reports.

    Attributes:
        answered: prompts that got the right answer.
        cpu: pairs of time.monotonic() and the CPU seconds used until then, children that have ended included.
        rss_mb: the most memory that the process had.
        more: what only this way can report.
    """

    answered: int
    cpu: list[tuple[float, float]]
    rss_mb: float
    more: dict[str, Any]


def native_body(text: str) -> dict[str, Any]:
    """The body of a call as llmdo makes it."""
    return {"max_tokens": 2048, "messages": [{"role": "user", "content": text}]}


def run(way: Callable[[Task], int | tuple[int, dict[str, Any]]]) -> None:
    """Runs the way on the task in this process's arguments; ``way`` returns the number of answers, and what else it
    can report.
    """
    url, concurrency, prompts, folder = sys.argv[1:]
    cpu = [_now()]
    threading.Thread(target=_sample, args=(cpu,), daemon=True).start()
    result = way(Task(url, int(concurrency), prompts, folder))
    cpu.append(_now())
    answered, more = result if isinstance(result, tuple) else (result, {})
    Path(folder, MEASURED).write_text(json.dumps(asdict(Used(answered, sorted(cpu), peak_mb(), more))))


def stay_on_this_machine() -> None:
    """Lets this process's Python code connect to 127.0.0.1 only: a library's telemetry fails."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[1][0] != "127.0.0.1":
            raise PermissionError(f"a benchmark talks to this machine only, not to {arguments[1][0]}")
        if event == "socket.getaddrinfo" and arguments[0] not in ("127.0.0.1", "localhost", None):
            raise PermissionError(f"a benchmark talks to this machine only, not to {arguments[0]!r}")

    sys.addaudithook(hook)


def children_cpu_s() -> float:
    """CPU seconds of the child processes that have ended, and of their children."""
    return _cpu_s(resource.RUSAGE_CHILDREN)


def peak_mb() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _cpu_s(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def _now() -> tuple[float, float]:
    return time.monotonic(), _cpu_s(resource.RUSAGE_SELF) + children_cpu_s()


def _sample(cpu: list[tuple[float, float]]) -> None:
    while True:
        time.sleep(EVERY_S)
        cpu.append(_now())
