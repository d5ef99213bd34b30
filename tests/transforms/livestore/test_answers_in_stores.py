"""Conversations that are in a store: what the model says, or does not, gets there as one response."""

from __future__ import annotations

import threading

import pytest

from llmdo.backends.engine.engine import Engine
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.responses import ChatResponse
from llmdo.backends.usage import Usage
from llmdo.storage.chat.log import ChatLog
from llmdo.storage.objects.local import LocalStore
from llmdo.transforms.chat.answers import Answers
from llmdo.transforms.chat.conversations import ChatLoop, Conversations
from llmdo.transforms.chat.elements import ChatDefaults, ConversationSettings, WaitingMessage
from llmdo.transforms.chat.lasting_engine import LastingEngine
from llmdo.transforms.livestore import store_replies
from tests.states import run_state
from tests.transforms.livestore.instances import COMPLETED, RECEIVED, Instance, answers, message, of, say


class Provider:
    """Says ``text``."""

    name = "fake"

    def __init__(self, text="Hello."):
        self.text, self.calls = text, 0

    async def execute(self, request):
        self.calls += 1
        return ChatResponse(self.text, "stop", Usage(3, 2), "fake-1")

    async def aclose(self):
        pass


@pytest.fixture
def converse(backend, tmp_path):
    """Answers a message of the store; gives its outcome."""
    made = []

    def go(provider, one):
        instance = Instance(backend)
        made.append(instance)
        engine = Engine(CallSettings(4, fixed=True), lambda _: provider)
        log = ChatLog(LocalStore(tmp_path), "")
        settings = ConversationSettings("run-1", look_again_s=0.02, linger_s=0.05)
        made_by = Answers(
            ChatDefaults("openai/fake"), LastingEngine(lambda: engine, 4), replies=instance.replies, store="s"
        )
        chats = run_state().shared(ChatLoop, ChatLoop)
        conversations = run_state().shared(
            Conversations, lambda: Conversations(log, made_by, instance.replies, settings, chats), name=str(len(made))
        )
        say(backend, one.id)
        log.add(one)
        outcomes, done = [], threading.Event()
        conversations.submit(WaitingMessage(one), lambda answered: (outcomes.append(answered.outcome), done.set()))
        assert done.wait(55)
        assert log.count_open() == 0
        return outcomes[0]

    yield go
    for one in made:
        one.stores.close()


def test_an_answer_is_in_the_store_and_the_message_is_closed(backend, converse):
    assert converse(Provider(), message("m1")) == "answered"
    assert of(backend, RECEIVED)[0]["args"]["message"] == "Hello."


@pytest.mark.parametrize(("size", "outcome"), [(849_000, "answered"), (850_000, "failed"), (5_000_000, "failed")])
def test_an_answer_that_no_store_can_hold_becomes_an_error_event(backend, converse, size, outcome):
    assert converse(Provider("x" * size), message("m1")) == outcome
    received, completed = of(backend, RECEIVED)[0]["args"], of(backend, COMPLETED)[0]["args"]
    assert (received["modelId"] == "error", completed["success"]) == (outcome == "failed", outcome == "answered")
    assert answers(backend) == ["m1"]


def test_a_claim_that_the_backend_refuses_for_a_while_is_no_error_of_its_message(backend, converse, monkeypatch):
    monkeypatch.setattr(store_replies, "_FIRST_WAIT_S", 0.05)
    push = backend._push
    backend.counts["left"] = 3

    async def refuse_three(store, one, request, payload):
        backend.faults.refuse_push = float(backend.counts["left"] > 0)
        backend.counts["left"] -= 1
        await push(store, one, request, payload)

    backend._push = refuse_three
    provider = Provider()
    assert converse(provider, message("m1")) == "answered"
    assert answers(backend) == ["m1"] and provider.calls == 1


def test_what_a_model_says_is_stored_as_clients_can_read_it(backend, converse):
    assert converse(Provider("nul \x00, half \ud83d, whole \ud83d\ude00"), message("m1")) == "answered"
    assert (
        of(backend, RECEIVED)[0]["args"]["message"]
        == "nul \N{REPLACEMENT CHARACTER}, half \N{REPLACEMENT CHARACTER}, whole 😀"
    )
