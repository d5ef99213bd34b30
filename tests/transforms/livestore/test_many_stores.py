"""Many stores in one process: none waits for another, and what is known is not written again."""

from __future__ import annotations

import time

import pytest

from llmdo.storage.livestore.frames import Cursor, StoredEvent
from llmdo.storage.livestore.stores import TakenEvent
from llmdo.storage.objects.store import Location
from llmdo.transforms.livestore.connections import StoreSettings, close_links, links_of
from llmdo.transforms.livestore.poll_stores import _OneStore, _StoredEvents
from llmdo.transforms.run import Run
from tests.states import run_state
from tests.storage.livestore.fake_backend import FakeBackend

CREATED = "2026-01-01T00:00:00.000Z"


@pytest.fixture
def run(tmp_path):
    yield Run("run-1", Location(str(tmp_path), ""))
    close_links(run_state())


def answer(client, message="m1"):
    args = {
        "id": f"r-{message}",
        "conversationId": "c",
        "message": "An answer.",
        "modelId": "m",
        "responseToMessageId": message,
        "createdAt": CREATED,
    }
    return TakenEvent("s", StoredEvent("v1.LLMResponseReceived", args, 1, 0, client, "s", 1.0), Cursor("b", 1))


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.json"))


def test_what_this_run_pushed_is_not_logged_again_and_what_another_pushed_is(run, tmp_path):
    store = _OneStore("s", Location(str(tmp_path), "s/"), 0.0, "llmdo-log-run-1", run)
    assert store.take([answer("llmdo-log-run-1")]) == ([], [], None)
    assert files(tmp_path) == []
    assert store.take([answer("llmdo-log-run-1"), answer("llmdo-log-run-2", "m2")]) == ([], [], None)
    assert files(tmp_path) == ["s/c/answers/m2.json"]


def test_the_logs_of_all_stores_are_looked_through_before_anything_is_waited_for(run, tmp_path, monkeypatch):
    backend = FakeBackend()
    try:
        logs = {f"s{n}": Location(str(tmp_path), f"s{n}/") for n in range(9)}
        settings = StoreSettings(backend.url, logs, since=0.0)
        waits = []

        def take(most, wait):
            waits.append(wait)
            time.sleep(wait)
            return []

        monkeypatch.setattr(links_of(settings, run).stores, "take", take)
        looking = _StoredEvents(settings, run)
        for _ in range(3):
            looking.look()
        assert [wait > 0 for wait in waits][:3] == [False, False, True]
        looking.close()
    finally:
        backend.stop()


def test_a_look_does_not_end_for_what_this_run_has_pushed(run, tmp_path, monkeypatch):
    backend = FakeBackend()
    try:
        settings = StoreSettings(backend.url, {"s": Location(str(tmp_path), "s/")}, since=0.0)
        links = links_of(settings, run)
        args = {"id": "m1", "conversationId": "c", "message": "?", "role": "user", "createdAt": CREATED}
        asked = TakenEvent("s", StoredEvent("v1.ChatMessageSent", args, 2, 1, "page", "s", 1.0), Cursor("b", 2))
        takes = iter([[answer(links.clients["s"])], [asked], []])
        monkeypatch.setattr(links.stores, "take", lambda most, wait: next(takes))
        looking = _StoredEvents(settings, run)
        found, wait = looking.look()
        assert ([one.message.id for one in found], wait) == (["m1"], 0.0)
        assert links.readers["s"]._found.number == 2
    finally:
        backend.stop()
