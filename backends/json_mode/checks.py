"""Checks of JSON Schemas, and of answers by them, in a process of their own.

A line brings the schema and a model the answer; together they can ask for any amount of work, in native code that
holds Python's lock and cannot be interrupted: references that double, long lists against long lists. So one child
process does it all (``json_schema.serve``), within CHECK_CPU_S each time. It is started by the first check, knows no
keys, and ends with this process, however that ends.
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, cast

from pydantic_core import from_json

from llmdo.backends.errors import BadReply, Retryable

# CPU time for one check. An answer of 1 MB takes some 10 ms by an ordinary schema, the usual one 0.05 ms.
CHECK_CPU_S = 0.25
KNOWN = 256  # schemas whose problem, or that they have none, is remembered
_SCRIPT = Path(__file__).with_name("schema.py")
_VARIABLES = ("PATH", "PYTHON", "LD_", "DYLD_", "LANG", "LC_", "VIRTUAL_ENV")  # what Python needs to start


class TooMuchWork(BadReply):
    """A check was given up: it took more CPU time than CHECK_CPU_S, or too much memory."""


def problem_of_schema(schema: str) -> str | None:
    """Why values cannot be checked with a schema, as JSON, in a sentence; None where they can.

    Blocks, without Python's lock, for at most about CHECK_CPU_S. Raises Retryable where no process can be started.
    """
    if schema not in _known:
        try:
            problem = _checker.ask(schema.encode("utf-8", "surrogatepass"), None)
        except TooMuchWork:
            problem = f"$ takes over {CHECK_CPU_S:g} s to read: make it smaller"
        if len(_known) >= KNOWN:
            _known.clear()
        _known[schema] = problem
        return problem
    return _known[schema]


async def schema_problem(schema: str) -> str | None:
    """The same, without blocking the loop."""
    if schema in _known:
        return _known[schema]
    return await asyncio.get_running_loop().run_in_executor(_thread(), problem_of_schema, schema)


async def answer_problem(answer: str, schema: str) -> str | None:
    """What is wrong with an answer that must fit a schema, as JSON, or without one be an object; None where it fits.

    Raises TooMuchWork, and Retryable where no process can be started.
    """
    # The answer may hold half of a surrogate pair, which is then no JSON.
    sent = (schema.encode("utf-8", "surrogatepass"), answer.encode("utf-8", "surrogatepass"))
    return await asyncio.get_running_loop().run_in_executor(_thread(), _checker.ask, *sent)


class _Checker:
    """The child process; one check at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, schema: bytes, answer: bytes | None) -> str | None:
        with self._lock:
            for _ in range(2):  # it may have been killed by somebody else
                process = self._process = self._process or _start()
                try:
                    said = _asked(process, schema, answer)
                except BaseException:  # Ctrl-C: its answer must not be taken for the next one's
                    self._process = None
                    process.kill()
                    raise
                if said:
                    return cast("str | None", from_json(said))
                self._process = None
                if process.wait() == -signal.SIGPROF:
                    break
        raise TooMuchWork(f"the check by the JSON schema takes over {CHECK_CPU_S:g} s or too much memory")


def _start() -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(  # noqa: S603 - our own script
            [sys.executable, "-P", str(_SCRIPT)],  # -P: beside the script are modules named like the standard library's
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)},
            start_new_session=True,  # Ctrl-C is not for it: calls in flight end, and are checked
        )
    except OSError as error:
        raise Retryable(
            f"the process that checks JSON cannot be started ({error}): free memory or processes"
        ) from error


def _asked(process: subprocess.Popen[bytes], schema: bytes, answer: bytes | None) -> bytes:
    """The child's line; empty where it ended."""
    write, read = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)
    said = b""
    with suppress(BrokenPipeError):
        write.write(b"%d %d %f\n" % (len(schema), -1 if answer is None else len(answer), CHECK_CPU_S))
        write.write(schema + (answer or b""))
        write.flush()
        said = read.readline()
    if not said.endswith(b"\n"):
        with suppress(BrokenPipeError):
            write.close()
        read.close()
        return b""
    return said


_checker = _Checker()
_known: dict[str, str | None] = {}


@functools.cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "llmdo-json")
