"""Checks JSON Schemas, and answers against them, in a child process.

The schema comes from a line and the answer from a model. Together they can demand any amount of work (references that
double, long lists against long lists) in native code that holds the GIL and cannot be interrupted. So one child process
does all checks (``schema.serve_checks``), each within CHECK_CPU_S. It starts with the first check, has no keys in its
environment, and ends with this process, however that ends.
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

# CPU time for one check. With an ordinary schema, an answer of 1 MB takes about 10 ms, and the usual one 0.05 ms.
CHECK_CPU_S = 0.25
KNOWN = 256  # most schemas whose check is remembered
_SCRIPT = Path(__file__).with_name("schema.py")
_VARIABLES = ("PATH", "PYTHON", "LD_", "DYLD_", "LANG", "LC_", "VIRTUAL_ENV")  # what Python needs to start


class TooMuchWork(BadReply):
    """A check was given up: it took more CPU time than CHECK_CPU_S, or too much memory."""


def schema_problem_now(schema: str) -> str | None:
    """Why a schema, as JSON, cannot be used for checking, in a sentence; None if it can.

    Blocks, without the GIL, for at most about CHECK_CPU_S. Raises Retryable if no process can be started.
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
    return await asyncio.get_running_loop().run_in_executor(_thread(), schema_problem_now, schema)


async def answer_problem(answer: str, schema: str) -> str | None:
    """What is wrong with an answer that must fit a schema, as JSON, or without one be an object; None if it fits.

    Raises TooMuchWork, and Retryable if no process can be started.
    """
    # The answer may hold a lone surrogate, and is not JSON then.
    sent = (schema.encode("utf-8", "surrogatepass"), answer.encode("utf-8", "surrogatepass"))
    return await asyncio.get_running_loop().run_in_executor(_thread(), _checker.ask, *sent)


class _Checker:
    """The child process; one check at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, schema: bytes, answer: bytes | None) -> str | None:
        with self._lock:
            for _ in range(2):  # it may have been killed from outside
                process = self._process = self._process or _start()
                try:
                    reply = _asked(process, schema, answer)
                except BaseException:  # Ctrl-C: the reply must not be taken for the next check's
                    self._process = None
                    process.kill()
                    raise
                if reply:
                    return cast("str | None", from_json(reply))
                self._process = None
                if process.wait() == -signal.SIGPROF:
                    break
        raise TooMuchWork(f"the check by the JSON schema takes over {CHECK_CPU_S:g} s or too much memory")


def _start() -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(  # noqa: S603 - our own script
            [sys.executable, "-P", str(_SCRIPT)],  # -P: the script's folder may shadow the standard library
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)},
            start_new_session=True,  # not for Ctrl-C: calls in flight are finished and checked
        )
    except OSError as error:
        raise Retryable(
            f"the process that checks JSON cannot be started ({error}): free memory or processes"
        ) from error


def _asked(process: subprocess.Popen[bytes], schema: bytes, answer: bytes | None) -> bytes:
    """The child's line; empty if it ended."""
    write, read = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)
    reply = b""
    with suppress(BrokenPipeError):
        write.write(b"%d %d %f\n" % (len(schema), -1 if answer is None else len(answer), CHECK_CPU_S))
        write.write(schema + (answer or b""))
        write.flush()
        reply = read.readline()
    if not reply.endswith(b"\n"):
        with suppress(BrokenPipeError):
            write.close()
        read.close()
        return b""
    return reply


_checker = _Checker()
_known: dict[str, str | None] = {}


@functools.cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "llmdo-json")
