"""The quick starts of README, typed as they stand: on a new user's machine, with a server that speaks OpenAI's API."""

from __future__ import annotations

import socket

import pytest

from tests.company_network import clean
from tests.integration.openai_service import Service
from tests.pages.blocks import README, block
from tests.pages.shells import answer, environment, rows, typed

OPENAI, OLLAMA, LOCAL = (
    "With an OpenAI key",
    "With Ollama, vLLM, llama.cpp or another server of your own",
    "With nothing at all",
)
PROMPT = "Why is the sky blue? One sentence."
OLLAMAS_PORT = 11434


def start(heading: str) -> str:
    """The file of prompts, and what is typed after it."""
    return block(README, "Start") + block(README, heading)


@pytest.fixture
def serving():
    made = []

    def serve(port: int = 0) -> Service:
        made.append(Service(port))
        return made[-1]

    yield serve
    for service in made:
        service.close()


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    clean(monkeypatch)


def test_with_an_openai_key(serving, tmp_path):
    service = serving()
    env = environment(tmp_path / "home", OPENAI_BASE_URL=service.url)
    text = start(OPENAI)
    assert "sk-…" in text
    done = typed(text.replace("sk-…", "sk-loopback-only"), tmp_path, env)
    assert done.returncode == 0, done.stderr
    (row,) = rows(done.stdout)
    assert (row["model"], answer(row)) == ("openai/gpt-4o-mini", f"1: {PROMPT[:20]}")
    assert service.asked() == [PROMPT]
    # The same again asks nothing, since the file is done.
    again = typed(text.replace("sk-…", "sk-loopback-only"), tmp_path, env)
    assert again.returncode == 0, again.stderr
    assert rows(again.stdout) == [row]
    assert service.asked() == []


def test_a_key_that_was_not_filled_in_is_said_in_one_sentence(serving, tmp_path):
    service = serving()
    done = typed(start(OPENAI), tmp_path, environment(tmp_path / "home", OPENAI_BASE_URL=service.url))
    assert done.returncode == 2
    (sentence,) = done.stderr.strip().splitlines()
    assert "OPENAI_API_KEY" in sentence
    assert service.asked() == []


def test_with_a_server_of_ones_own(serving, tmp_path):
    text = start(OLLAMA)
    assert f":{OLLAMAS_PORT}/" in text
    service = serving(OLLAMAS_PORT if is_free(OLLAMAS_PORT) else 0)
    port = service.url.rpartition(":")[2].partition("/")[0]
    done = typed(text.replace(str(OLLAMAS_PORT), port), tmp_path, environment(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    (row,) = rows(done.stdout)
    assert (row["model"], answer(row)) == ("openai/llama3.2", f"1: {PROMPT[:20]}")


@pytest.mark.model
def test_with_nothing_at_all(tmp_path):
    done = typed(start(LOCAL), tmp_path, environment(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    (row,) = rows(done.stdout)
    assert row["model"] == "local/smollm2-135m-instruct"
    assert len(answer(row)) > 10
    assert row["usage"]["cost_usd"] == 0


def is_free(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) != 0
