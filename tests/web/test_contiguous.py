"""LiveStore's own client, and so the page, misses no event: web/src/contiguous.js asks again for what was overtaken or
lost.
"""

from __future__ import annotations

import pytest

from tests.fakes.ports import free_port
from tests.storage.livestore.fake_backend import FakeBackend
from tests.web.world import OwnClient, Person, build, chat_page, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
TOKEN = "not to be shown"


@pytest.fixture
def backend():
    backend = FakeBackend(payload={"authToken": TOKEN})
    yield backend
    backend.stop()


@pytest.fixture
def client(backend, tmp_path):
    write(backend, "m0")
    client = OwnClient(backend.url, TOKEN, tmp_path / "client")
    yield client
    client.talk.close()


def write(backend, identity, store="s", **how):
    args = {"id": identity, "conversationId": "c", "message": f"text of {identity}", "role": "user"}
    backend.write(store, "v1.ChatMessageSent", {**args, "createdAt": "2026-11-30T12:00:00.000Z"}, **how)


def reconnect_with_an_overtaking_event(backend, store):
    """After m0, three events come while the client is away, and m4 before it has read them."""
    backend.kill()
    for number in range(1, 4):
        write(backend, f"m{number}", store)
    backend.hold_pulls()
    backend.start()
    backend.wait_for_count("pulls", 2)
    write(backend, "m4", store)
    backend.wait_for_count("pulls", 3)  # it saw that some are missing
    backend.release_pulls()


def test_a_new_event_that_overtakes_the_stored_ones_after_a_reconnect_hides_none_of_them(backend, client):
    until(lambda: client.messages() == {"m0"})
    reconnect_with_an_overtaking_event(backend, "s")
    until(lambda: client.messages() == {f"m{number}" for number in range(5)})
    write(backend, "m5")  # it still listens
    until(lambda: "m5" in client.messages())


def test_a_lost_event_comes_with_the_next_one(backend, client):
    until(lambda: client.messages() == {"m0"})
    backend.faults.lose_broadcast = 1.0
    write(backend, "m1")
    backend.faults.lose_broadcast = 0.0
    write(backend, "m2")
    until(lambda: client.messages() == {"m0", "m1", "m2"})


def test_a_message_that_was_refused_because_of_a_lost_event_reaches_the_log(backend, client):
    until(lambda: client.messages() == {"m0"})
    backend.faults.lose_broadcast = 1.0
    write(backend, "m1")
    backend.faults.lose_broadcast = 0.0
    client.talk("say", "m2", "c", "a message of the page")
    backend.wait(lambda: [event["args"]["id"] for event in backend.logs["s"]] == ["m0", "m1", "m2"])
    until(lambda: client.messages() == {"m0", "m1", "m2"})
    assert backend.counts["ahead"] == 1


def test_holes_that_the_log_itself_has_stop_nothing(backend, client):
    until(lambda: client.messages() == {"m0"})
    write(backend, "m1", numbers=(2, 3))
    until(lambda: client.messages() == {"m0", "m1"})
    backend.kill()
    write(backend, "m2", numbers=(5, 6))
    write(backend, "m3")
    write(backend, "m4", numbers=(9, 10))
    backend.start()
    until(lambda: client.messages() == {f"m{number}" for number in range(5)})


def test_events_that_come_again_are_taken_once(backend, client):
    backend.faults.repeat_broadcast = 1.0
    for number in range(1, 4):
        write(backend, f"m{number}")
    until(lambda: client.messages() == {f"m{number}" for number in range(4)})
    assert backend.counts["pulls"] == 1


def test_the_page_shows_what_was_overtaken_without_a_reload(backend, tmp_path):
    build()
    write(backend, "m0", chat_page.STORE)
    port = free_port()
    with chat_page.serve_page(port, backend.url, TOKEN) as page:
        person = Person(f"http://localhost:{port}/#c", str(tmp_path))
        try:
            tab = person.does("open")
            until(lambda: person.sees(tab) == [("user", "text of m0")])
            reconnect_with_an_overtaking_event(backend, chat_page.STORE)
            until(lambda: person.sees(tab) == [("user", f"text of m{number}") for number in range(5)])
        finally:
            person.does.close()
            page.shutdown()
