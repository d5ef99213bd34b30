import pytest

from tests.integration.cloud import Cloud
from tests.integration.openai_service import serving


@pytest.fixture
def cloud(cloudflare, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))  # where ledgers of outputs in R2 are
    return Cloud(cloudflare)


@pytest.fixture
def service(monkeypatch, tmp_path):
    """OpenAI's API on loopback, which ``openai/…`` models are asked by."""
    with serving() as service:
        monkeypatch.setenv("OPENAI_BASE_URL", service.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-loopback-only")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield service
