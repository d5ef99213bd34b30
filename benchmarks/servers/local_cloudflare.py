"""``llmdo local`` in a process of its own: R2, a queue and Workers AI, whose model answers at once."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from llmdo.settings.environment import CloudflareAccount

BUCKET = "r2://llmdo"
_START_S = 120.0


@dataclass(frozen=True, slots=True)
class LocalCloudflare:
    """A server that runs, with the environment that leads to it, and the folder of its data."""

    env: dict[str, str]
    folder: Path

    @property
    def account(self) -> CloudflareAccount:
        """Of its queues and models."""
        names = ("CLOUDFLARE_ACCOUNT_ID", "CLOUDFLARE_API_TOKEN", "CLOUDFLARE_BASE_URL")
        return CloudflareAccount(*(self.env[name] for name in names))

    def control(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Its ``/_faults`` and ``/_stats``."""
        url, headers = self.env["R2_ENDPOINT_URL"] + path, {"authorization": f"Bearer {self.account.token}"}
        reply = httpx.request(method, url, json=body, headers=headers, trust_env=False, timeout=60.0)
        return reply.raise_for_status().json()


@contextmanager
def started_cloudflare(prepare: Callable[[Path], None] = lambda _: None) -> Iterator[LocalCloudflare]:
    """Starts a server, which ends with the context. ``prepare`` gets the folder of its data before that."""
    with tempfile.TemporaryDirectory(prefix="llmdo-benchmark-") as folder:
        prepare(Path(folder))
        command = [sys.executable, "-m", "llmdo", "local", "--data", folder, "--port", "0", "--model", "echo"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            try:
                env, until = Path(folder, "env"), time.monotonic() + _START_S
                while not env.exists():
                    if process.poll() is not None or time.monotonic() > until:
                        raise SystemExit("llmdo local did not start: see its message above")
                    time.sleep(0.05)
                words = (word for word in shlex.split(env.read_text()) if "=" in word)
                yield LocalCloudflare(dict(word.split("=", 1) for word in words), Path(folder))
            finally:
                process.terminate()


@contextmanager
def local_cloudflare(prepare: Callable[[Path], None] = lambda _: None) -> Iterator[LocalCloudflare]:
    """The same; this process's environment leads to it."""
    with started_cloudflare(prepare) as server:
        os.environ |= server.env | {"XDG_STATE_HOME": str(server.folder)}
        yield server
