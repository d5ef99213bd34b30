import pytest

from llmdo.settings.environment import CloudflareAccount
from llmdo.storage.queues.client import QueueClient, find_queue
from tests.integration.conftest import cloud

__all__ = ["cloud"]


@pytest.fixture
def queue(cloud):
    """A client of the queue from which files are announced."""
    env = cloud.env
    account = CloudflareAccount(env["CLOUDFLARE_ACCOUNT_ID"], env["CLOUDFLARE_API_TOKEN"], env["CLOUDFLARE_BASE_URL"])
    with QueueClient(account, find_queue(account, "llmdo-input")) as client:
        yield client
