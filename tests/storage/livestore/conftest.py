"""A backend with the faults of the real one, and clients of it."""

from __future__ import annotations

import pytest

from tests.storage.livestore.fake_backend import FakeBackend
from tests.storage.livestore.store_client import SECRET, Client


@pytest.fixture
def backend():
    backend = FakeBackend(payload=SECRET)
    yield backend
    backend.stop()


@pytest.fixture
def client(backend):
    made = []

    def make(**how):
        made.append(Client(backend, **how))
        return made[-1]

    yield make
    for one in made:
        one.stores.close()
