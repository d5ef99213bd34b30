"""Child processes, each in its own session, none of which outlives this process."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from llmdo.runners.temporary import temporary_folder
from llmdo.settings.tools import ToolError

_log = logging.getLogger(__name__)

# Far above what was seen on an idle machine: 0.1 s for Prism, 2 s for Java. Seconds.
_START_TIMEOUT = 180.0
# From SIGTERM to SIGKILL. Seconds.
_STOP_TIMEOUT = 5.0
# Becomes the program, and leaves a watcher behind: when this process is gone, however it ended, nobody holds the other
# end of standard input any more, and the program is killed, and what it started, as soon as it has ended or had its
# grace. A server by itself may wait for its worker for ever. $$ is the program. 0 is the watcher's own process group,
# which is the program's: nobody else is hit when it has ended.
_UNTIL_WE_END = (
    "exec 3<&0 </dev/null; (cat <&3; n=$1; "
    'while [ "$n" -gt 0 ] && kill -0 $$; do sleep 1; n=$((n - 1)); done; '
    'kill -KILL 0) >/dev/null 2>&1 & shift; exec "$@" 3<&-'
)
_LOG_TAIL_LINES = 8


class ServerDied(ToolError):
    """A server ended while it was needed; the message has the last lines of its log."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A running server.

    Attributes:
        address: host and port where it serves.
        log: its log so far; removed once it is stopped.
        pid: its process.
    """

    address: str
    log: Path
    pid: int


# Those that this process started and has not stopped.
_running: set[subprocess.Popen[bytes]] = set()


def start_tied(
    command: Sequence[str | Path],
    stdout: IO[bytes] | int,
    stderr: IO[bytes] | None,
    environment: Mapping[str, str] | None = None,
    *,
    pass_fds: Sequence[int] = (),
    grace_s: int = 0,
) -> subprocess.Popen[bytes]:
    """Starts a program that Ctrl-C does not reach, and that is killed when this process is gone. Raises OSError.

    Args:
        stdout: where its output goes, as in subprocess.
        stderr: likewise; None is this process's own.
        environment: is added to this process's.
        pass_fds: descriptors that it inherits.
        grace_s: how long it may still run when this process is gone.
    """
    process = subprocess.Popen(  # noqa: S603  programs that were found and checked
        ["/bin/sh", "-c", _UNTIL_WE_END, "sh", str(grace_s), *command],
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
        pass_fds=pass_fds,
    )
    _running.add(process)
    return process


def own_modules() -> dict[str, str]:
    """The environment in which another Python finds the modules of this one, and none of the working folder's."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def stop_tied(process: subprocess.Popen[bytes]) -> None:
    """Stops what ``start_tied`` started, and what that left behind; kills it after 5 s."""
    process.terminate()
    if not has_ended(process, _STOP_TIMEOUT):
        process.kill()
        process.wait()
    if process.stdin:
        process.stdin.close()  # the watcher ends
    _running.discard(process)


def kill_all() -> None:
    """Kills what ``start_tied`` started, for a process that ends at once."""
    for process in list(_running):
        process.kill()


@contextmanager
def running_server(
    name: str,
    command: Callable[[Path], Sequence[str | Path]],
    serving: re.Pattern[bytes],
    check: Callable[[int], None] = lambda _: None,
) -> Iterator[Endpoint]:
    """Starts a server and stops it at the end, whatever happens.

    Args:
        name: what errors call it.
        command: gets a folder for the server's files, which is removed afterwards.
        serving: finds, as its first group, the address in the server's log: the server chooses a free port itself.
        check: looks at the server's process once it serves, by its pid; an error that it raises stops the server.

    It has its own session: Ctrl-C reaches the pipeline, which drains, and not the server, which would end the job.
    Raises ToolError when it does not start, ServerDied when it ended before the context did, and what ``check`` does.
    """
    with temporary_folder() as folder:
        log = folder / "log"
        with log.open("wb") as file:
            process = start_tied(command(folder), file, file)
        try:
            endpoint = Endpoint(_wait_for_address(name, process, log, serving), log, process.pid)
            _log.info("%s serves at %s", name, endpoint.address)
            check(process.pid)
            try:
                yield endpoint
            except Exception as error:
                # A broken connection is noticed a moment before the end of the process.
                if has_ended(process, within=1.0):
                    raise _died(name, process, log) from error
                raise
        finally:
            stop_tied(process)


def _wait_for_address(name: str, process: subprocess.Popen[bytes], log: Path, serving: re.Pattern[bytes]) -> str:
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline:
        ended = has_ended(process)
        found = serving.search(log.read_bytes())
        if found:
            return found[1].decode()
        if ended:
            raise _died(name, process, log)
        time.sleep(0.02)
    raise ToolError(f"{name} did not serve within {_START_TIMEOUT:.0f} s; run again. Its log ends:{tail(log)}")


def has_ended(process: subprocess.Popen[bytes], within: float = 0.0) -> bool:
    """Whether a process ends within this number of seconds."""
    try:
        process.wait(within)
    except subprocess.TimeoutExpired:
        return False
    return True


def _died(name: str, process: subprocess.Popen[bytes], log: Path) -> ServerDied:
    code = process.returncode
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return ServerDied(
        f"{name} {how} while the pipeline needed it; run the same command again to resume. Its log ends:{tail(log)}"
    )


def tail(log: Path) -> str:
    """The last lines of a log, each on its own line, to follow a sentence that announces them."""
    lines = log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
    return "".join(f"\n  {line}" for line in lines) or " (empty)"
