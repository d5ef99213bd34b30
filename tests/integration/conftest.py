from contextlib import ExitStack

import pytest

from tests.integration.called import Echo
from tests.integration.cloud import Cloud
from tests.integration.openai_service import serving
from tests.integration.services.seeing import Seeing


@pytest.fixture
def cloud(cloudflare, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))  # where ledgers of outputs in R2 are
    return Cloud(cloudflare)


@pytest.fixture
def serve():
    """Starts servers with OpenAI's API (``called.Echo``)."""
    with ExitStack() as services:

        def start(refuse):
            service = Echo(refuse)
            services.callback(service.close)
            return service

        yield start


@pytest.fixture
def service(monkeypatch, tmp_path):
    """OpenAI's API on loopback, which ``openai/…`` models are asked by."""
    with serving() as service:
        monkeypatch.setenv("OPENAI_BASE_URL", service.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-loopback-only")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield service


@pytest.fixture
def seeing(monkeypatch):
    """The same, with all that it was sent."""
    service = Seeing()
    monkeypatch.setenv("OPENAI_BASE_URL", service.url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-loopback-only")
    yield service
    service.close()
