import pytest

from tests.integration.cloud import Cloud


@pytest.fixture
def cloud(cloudflare, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))  # where ledgers of outputs in R2 are
    return Cloud(cloudflare)
