"""Programs that are not Python packages: looked for in several places, else built once and kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from llmdo.settings.environment import whole_path
from llmdo.settings.private import lock

_BUILD_TIMEOUT = 1800.0  # seconds; 71 were measured on two cores for Prism, with all modules to fetch; 223 for Flink

Ways = Mapping[str, Callable[[], Path]]


class ToolError(RuntimeError):
    """A required program is missing or does not work; the message names what was tried, and the remedy."""


def given_path(places: Mapping[str, str | None], check: Callable[[Path], Path], what: str) -> Path | None:
    """The checked path of the first of these options and variables, by name, that is set; None if none is.

    Raises what ``check`` raises, with the name in front and a remedy at the end.
    """
    for name, path in places.items():
        if path:
            try:
                return check(whole_path(path))
            except ToolError as error:
                raise type(error)(f"{name}: {error}; give the path of {what}, or omit it") from None
    return None


def find_or_make(folder: Path, found: Ways, made: Ways, error: type[ToolError], what: str, remedy: str) -> Path:
    """What the first way of ``found`` that works returns, else the first of ``made``.

    Raises ``error``, with a line for each way that failed, and ToolError where nothing can be written to ``folder``.

    Args:
        folder: where what is made is kept; one process at a time makes it.
        found: among them "cache", which is tried again once no other process makes it.
        made: ways that take long.
        what: what errors call it; they end with ``remedy``.
    """
    tried: list[str] = []
    path = _first(found, tried)
    if path is None:
        with one_at_a_time(folder):
            path = _first({"cache": found["cache"]}, []) or _first(made, tried)
    if path is None:
        raise error(f"{what} is not on this machine and could not be obtained:{''.join(tried)}\n{remedy}")
    return path


def _first(ways: Ways, tried: list[str]) -> Path | None:
    for name, way in ways.items():
        try:
            return way()
        except (ToolError, OSError, subprocess.SubprocessError) as error:
            tried.append(f"\n  {name}: {str(error).strip() or type(error).__name__}")
    return None


@contextmanager
def workshop(cache: Path) -> Iterator[Path]:
    """A folder for one try, beside where the result goes; within ``one_at_a_time``.

    Removes those of killed processes, which may hold a whole toolchain.
    """
    for left in cache.glob("making-*"):
        shutil.rmtree(left, ignore_errors=True)
    with TemporaryDirectory(dir=cache, prefix="making-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def one_at_a_time(cache: Path) -> Iterator[None]:
    """Holds the lock on making what ``cache`` keeps; freed by the system when the process dies. Raises ToolError."""
    try:
        file = lock(cache)
    except OSError as error:
        raise ToolError(f"nothing can be kept at {cache}: {error}; set XDG_CACHE_HOME") from error
    with file:
        yield


def succeed(command: Sequence[str | Path], environment: Mapping[str, str], folder: Path | None = None) -> None:
    """Runs a command. Raises ToolError with pip's first error in its output, else with the last line of that."""
    done = run_tool(command, _BUILD_TIMEOUT, environment, folder)
    if done.returncode:
        said = [line for line in done.stdout.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        reason = next((line for line in said if line.startswith("ERROR")), said[-1])
        raise ToolError(f"{Path(command[0]).name} failed: {reason}")


def run_tool(
    command: Sequence[str | Path],
    timeout: float,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs a command within ``timeout`` seconds; its stderr goes to stdout."""
    return subprocess.run(  # noqa: S603  commands of this package, and programs that the user named
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout,
        env={**os.environ, **(environment or {})},
        cwd=folder,
        check=False,
    )


def print_path(find: Callable[[], Path]) -> int:
    """What ``python -m`` does for a tool: prints its path. Returns 1, with the reason on stderr, without one."""
    try:
        print(find())  # noqa: T201  this is the command's output
    except ToolError as error:
        say(str(error))
        return 1
    return 0


def say(text: str) -> None:
    """Prints to stderr what takes long, or failed."""
    print(text, file=sys.stderr)  # noqa: T201
