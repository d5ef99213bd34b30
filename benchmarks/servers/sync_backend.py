"""LiveStore's sync backend: the worker of ``worker/`` in a bare workerd, as ``make chat-page`` has it."""

from __future__ import annotations

import json
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmdo.runners.servers import stop_tied
from llmdo.storage.livestore.synced_store import StorePlace

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import chat_page  # it imports its neighbour by a bare name, as a script does


@dataclass(frozen=True, slots=True)
class SyncBackend:
    """A backend that runs. ``token``: what its clients show."""

    url: str
    token: str

    @property
    def payload(self) -> dict[str, str]:
        """What its ``validatePayload`` asks for."""
        return {"authToken": self.token}

    def place(self, store: str) -> StorePlace:
        """Where a store is."""
        return StorePlace(self.url, store, self.payload)


@contextmanager
def sync_backend(folder: Path | None = None) -> Iterator[SyncBackend]:
    """Builds the worker where that was not done, and starts it without stores; ``folder``: where these will be.

    This process's environment has the payload. Says what is missing, and ends, where there is no Node.js.
    """
    with tempfile.TemporaryDirectory(prefix="llmdo-benchmark-", dir=folder) as data:
        Path(data, "store").mkdir()
        try:
            with _stdout_to_stderr():
                chat_page.build()
            port, token = chat_page.free_port(), secrets.token_urlsafe(24)
            process = chat_page.start_backend(port, token, Path(data))
        except chat_page.Missing as error:
            raise SystemExit(f"there is no sync backend to measure with: {error}") from None
        backend = SyncBackend(f"ws://localhost:{port}", token)
        try:
            os.environ["LIVESTORE_PAYLOAD"] = json.dumps(backend.payload)
            yield backend
        finally:
            del os.environ["LIVESTORE_PAYLOAD"]
            stop_tied(process)


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Of this process and those that it starts: stdout is for figures."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
