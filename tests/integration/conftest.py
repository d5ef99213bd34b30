import pytest

from tests.integration.cloud import Cloud


@pytest.fixture
def cloud(cloudflare):
    return Cloud(cloudflare)
