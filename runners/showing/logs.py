"""Logs without secrets; a failed pipeline is one sentence instead of everything that Beam logs about it."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from llmdo.settings.secrets import without_secrets


class _Format(logging.Formatter):
    """Removes secrets: at DEBUG the HTTP libraries log replies, and those may repeat what was sent."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


class _JsonFormat(_Format):
    """An object for each event, with what it is about where that is known: run, file and line, its offset in bytes."""

    def format(self, record: logging.LogRecord) -> str:
        said = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{name: getattr(record, name) for name in _ABOUT if getattr(record, name, None) is not None},
        }
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return without_secrets(json.dumps(said))


_ABOUT = ("run", "file", "line")
_runs: list[str] = []  # of this process, the newest last


class _AboutRun(logging.Filter):
    """Notes the run of an event that names none."""

    def filter(self, record: logging.LogRecord) -> bool:
        if _runs and not hasattr(record, "run"):
            record.run = _runs[-1]
        return True


@contextmanager
def logs_of(run_id: str) -> Iterator[None]:
    """What is logged meanwhile is of this run."""
    _runs.append(run_id)
    try:
        yield
    finally:
        _runs.remove(run_id)


def use_json() -> None:
    """From now on each event is a JSON object in a line of its own."""
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(_JsonFormat())
            handler.addFilter(_AboutRun())


def log_level() -> str:
    """LLMDO_LOG_LEVEL, by default WARNING."""
    return os.environ.get("LLMDO_LOG_LEVEL", "WARNING")


def show_own_logs(times: int) -> None:
    """Logs what llmdo does: once, or twice for all details. Others' logs stay as LLMDO_LOG_LEVEL says."""
    if times:
        logging.getLogger("llmdo").setLevel(logging.INFO if times == 1 else logging.DEBUG)


def quieten(level: str) -> None:
    """Sets the level of the logs; unless it shows INFO, what Beam and gRPC log of a failed pipeline is hidden, too."""
    logging.basicConfig()  # Beam does the same when it is imported; the second call changes nothing
    logging.getLogger().setLevel(level)
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(_Format("%(levelname)s %(name)s: %(message)s"))
    if logging.getLogger().isEnabledFor(logging.INFO):
        return
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    others = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        # A thread of Beam's worker that lost its connection when the runner stopped or died.
        grpc = sys.modules.get("grpc")
        if grpc is None or not isinstance(args.exc_value, grpc.RpcError):
            others(args)

    threading.excepthook = hook
