import pytest

from tests.integration.conftest import cloud

__all__ = ["cloud"]


@pytest.fixture(autouse=True, scope="session")
def no_stores_of_the_user():
    """What a user's environment says of LiveStore is not for these tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("STORE_ID", "STORE_IDS", "LIVESTORE_SYNC_URL", "LIVESTORE_PAYLOAD"):
            patch.delenv(name, raising=False)
        yield
