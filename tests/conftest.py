"""What tests of several rooms share: one local Cloudflare, with the environment that leads to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from local.server import Running, running


@pytest.fixture
def cloudflare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A fresh server with the bucket ``llmdo`` and the queue ``llmdo-input``; models are the echo stand-in."""
    with running(tmp_path / "cloudflare") as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        yield server
