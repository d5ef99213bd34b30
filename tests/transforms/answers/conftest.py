import pytest

from llmdo.backends.engine.registry import close_engines
from llmdo.backends.limits import retry
from tests.fakes.adding import AddingService


@pytest.fixture
def adding(monkeypatch, tmp_path):
    """The service that ``openai/…`` models are asked at."""
    service = AddingService()
    monkeypatch.setenv("OPENAI_BASE_URL", service.url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-loopback-only")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    close_engines()
    retry.set_instant(True)
    yield service
    retry.set_instant(False)
    close_engines()
    service.close()
