"""A backend, and instances that answer its messages."""

from __future__ import annotations

import asyncio

import pytest

from llmdo.transforms.livestore import store_replies
from tests.storage.livestore.fake_backend import FakeBackend
from tests.transforms.livestore.instances import Instance


@pytest.fixture
def backend():
    backend = FakeBackend()
    yield backend
    backend.stop()


@pytest.fixture
def quick(monkeypatch):
    """Claims that are repeated soon, and often looked at; they are over when a test moves the clocks."""
    monkeypatch.setattr(store_replies, "RENEW_S", 0.2)
    monkeypatch.setattr(store_replies, "_LOOK_S", 0.02)


@pytest.fixture
def play(backend):
    """Runs a coroutine function with a maker of instances, which are ended behind it."""

    def go(scene):
        async def main():
            made = []

            def instance(*words, **how):
                made.append(Instance(backend, *words, **how))
                return made[-1]

            try:
                async with asyncio.timeout(110):
                    await scene(instance)
            finally:
                for one in made:
                    await one.end()

        asyncio.run(main())

    return go
