import pytest

from llmdo.backends.engine import batch_polls, batch_work, batches
from tests.integration.batches.user import User


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """Batches are polled for often, and what is kept beside outputs is the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(batches, "LINGER_S", 1.0)
    monkeypatch.setattr(batch_polls, "FIRST_POLL_S", 0.05)
    monkeypatch.setattr(batch_polls, "LONGEST_POLL_S", 0.5)
    monkeypatch.setattr(batch_work, "LISTING_LAG_S", 0.5)


@pytest.fixture
def user(cloudflare, tmp_path, monkeypatch, quick):
    monkeypatch.setenv("OPENAI_BASE_URL", cloudflare.env["LOCAL_OPENAI_BASE_URL"])
    monkeypatch.setenv("OPENAI_API_KEY", "sk-any")
    return User(cloudflare, tmp_path)
