"""Logs without secrets; a failed pipeline is one sentence instead of everything that Beam logs about it."""

from __future__ import annotations

import logging
import os
import sys
import threading

from llmdo.settings.secrets import without_secrets


class _Format(logging.Formatter):
    """Removes secrets: at DEBUG the HTTP libraries log replies, and those may repeat what was sent."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


def log_level() -> str:
    """LLMDO_LOG_LEVEL, by default WARNING."""
    return os.environ.get("LLMDO_LOG_LEVEL", "WARNING")


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
