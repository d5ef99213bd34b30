"""A person chats on the page, in a real browser, with the embedded model's answers through a real sync backend.

With LLMDO_PICTURES, the pictures of it are kept in that folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.ports import free_port
from tests.web.world import Person, Workerd, build, chat_page, until

pytestmark = [pytest.mark.slow, pytest.mark.prism, pytest.mark.model, pytest.mark.timeout(1200)]
READABLE = 4.5  # WCAG 2.2, 1.4.3: contrast of text, at least


def roles(node: dict) -> Iterator[tuple[str, str]]:
    """What a screen reader finds: roles, and their names."""
    yield node["role"], node.get("name", "")
    for child in node.get("children", []):
        yield from roles(child)


@pytest.fixture(scope="module")
def backend(tmp_path_factory):
    build()
    backend = Workerd(tmp_path_factory.mktemp("page"))
    yield backend
    backend.kill()


@pytest.fixture(scope="module")
def person(backend, tmp_path_factory):
    """A person at the page of `make chat-page`, which llmdo answers."""
    folder = tmp_path_factory.mktemp("chat")
    pictures = Path(os.environ.get("LLMDO_PICTURES") or tmp_path_factory.mktemp("pictures")).absolute()
    pictures.mkdir(parents=True, exist_ok=True)
    port = free_port()
    page = chat_page.serve_page(port, backend.url, backend.token)
    chat = chat_page.start_chat(backend.url, backend.token, chat_page.MODEL, folder)
    person = Person(f"http://localhost:{port}/", str(pictures))
    yield person
    person.does.close()
    assert chat.poll() is None
    chat_page.end_chat(chat)
    page.shutdown()
    page.server_close()
    assert chat.returncode == 0


def test_three_messages_get_three_answers_in_every_tab_and_after_a_reload(person):
    tab = person.opens()
    assert "Write a message" in person.does("text", tab, "main")
    asked = ["Hello, is anybody there?", "How do I begin to plan a project?", "Name a risk that I may forget."]
    for text in asked:
        person.asks(tab, text)
    seen = person.sees(tab)
    assert [text for kind, text in seen if kind == "user"] == asked
    assert [kind for kind, _ in seen] == ["user", "assistant"] * 3
    assert all(text.strip() for _, text in seen)
    about = re.compile(r"smollm2-135m-instruct · \d+ \+ \d+ tokens · \$0 · [\d.]+ s$")
    until(lambda: about.search(person.does("rows", tab)[-1]["about"]))
    assert person.does("text", tab, "h2") == asked[0] == person.does("text", tab, "nav [aria-current]")
    until(lambda: person.does("text", tab, ".working") == "")
    person.does("picture", tab, "page-light.png")
    person.does("reload", tab)
    until(lambda: person.sees(tab) == seen)
    other = person.does("open")  # it shows the newest conversation
    until(lambda: person.sees(other) == seen)
    person.asks(other, "And one from the other tab.")
    until(lambda: person.sees(tab) == person.sees(other))
    assert person.does("problems") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read_in_light_and_dark_on_a_large_and_on_a_small_screen(person, scheme):
    for size in ((1000, 700), (390, 700)):
        tab = person.opens(*size)
        person.does("scheme", tab, scheme)
        person.asks(tab, f"What is an event log, in {scheme}, at {size[0]} pixels?")
        contrast, words = person.does("faintest", tab)
        assert contrast >= READABLE, words
        person.does("picture", tab, f"page-{scheme}-{size[0]}.png")
        person.does("close", tab)


def test_the_page_is_used_with_the_keyboard_alone_and_read_aloud(person):
    tab = person.opens()
    expected = {
        ("navigation", "Conversations"),
        ("link", "New conversation"),
        ("heading", "New conversation"),
        ("log", "Messages"),
        ("textbox", "Message"),
        ("button", "Send"),
    }
    until(lambda: expected <= set(roles(person.does("tree", tab))))
    # From the text to its button, and from the first link of the page to it.
    person.does("type", tab, "A line")
    person.does("press", tab, "Tab")
    assert person.does("focused", tab) == "BUTTON"
    person.does("press", tab, "Enter")
    until(lambda: person.answers(tab) == 1)
    assert person.sees(tab)[0] == ("user", "A line")
    person.does("reload", tab)
    until(lambda: person.does("focused", tab) == "text")
    person.does("type", tab, "And another one")
    person.does("press", tab, "Enter")
    until(lambda: person.answers(tab) == 2)


def test_what_somebody_writes_stays_when_a_conversation_begins_elsewhere(person):
    reading = person.does("open")
    until(lambda: person.does("has", reading, "#text"))
    title = person.does("text", reading, "h2")
    person.does("type", reading, "Half a thought")
    person.asks(person.opens(), "A conversation that begins elsewhere.")
    until(lambda: "begins elsewhere" in person.does("text", reading, "nav"))
    assert person.does("text", reading, "h2") == title
    assert person.does("value", reading) == "Half a thought"
    person.does("press", reading, "Enter")
    until(lambda: "Half a thought" in [text for _, text in person.sees(reading)])


def test_a_message_that_is_written_while_the_backend_is_away_is_kept_and_answered_later(person, backend):
    tab = person.opens()
    person.asks(tab, "Before the backend is away.")
    backend.kill()
    person.writes(tab, "While it is away.")
    until(lambda: "Not connected" in person.does("text", tab, ".offline"))
    person.does("picture", tab, "page-not-connected.png")
    person.does("reload", tab)
    until(lambda: len(person.sees(tab)) == 3)
    assert person.sees(tab)[2] == ("user", "While it is away.")
    assert "not answered yet" in person.does("rows", tab)[2]["about"]
    backend.start()
    until(lambda: person.answers(tab) == 2)
    until(lambda: person.does("text", tab, ".offline") == "")
    person.does("problems")


def test_the_chat_goes_on_after_the_backend_was_killed(person, backend):
    tab = person.opens()
    person.asks(tab, "Before the kill.")
    backend.kill()
    backend.start()
    person.asks(tab, "After the kill.")
    assert [kind for kind, _ in person.sees(tab)] == ["user", "assistant"] * 2
    person.does("problems")


def test_a_message_that_cannot_be_answered_shows_why(person):
    tab = person.opens()
    person.does("paste", tab, "A very long message. " * 5_000)
    person.does("press", tab, "Enter")
    until(lambda: person.answers(tab) == 1)
    row = person.does("rows", tab)[1]
    assert (row["kind"], row["who"]) == ("error", "No answer")
    assert row["text"].startswith("This is too long for the assistant.")
    assert "error" not in row["about"]
    assert person.does("faintest", tab)[0] >= READABLE
    person.does("picture", tab, "page-error.png")
