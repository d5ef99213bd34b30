"""Chats that are sent badly, ``llmdo chat`` as processes that die, and what must be true in the end."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from llmdo.settings.environment import cloudflare_account
from llmdo.storage.chat.log import ChatLog
from llmdo.storage.chat.records import ChatMessage, Conversation, LoggedAnswer
from llmdo.storage.errors import ObjectNotFound
from llmdo.storage.objects.opening import open_store
from llmdo.storage.queues.client import QueueClient, find_queue
from llmdo.transforms.acks import VISIBILITY_TIMEOUT
from llmdo.transforms.chat.events import RESPONSE_IDS
from tests.fakes.clocks import AheadClock
from tests.integration.cloud import MODEL, Cloud
from tests.local.cloudflare import running
from tests.signals import drain

LOG, PREFIX = "r2://llmdo/chat/", "chat/"
RECEIVED = "v1.LLMResponseReceived"
SYSTEM = "Be kind."
WINDOW = 16
# From the look into the log to the call, at most, on a busy machine; the store's times are whole seconds. Seconds.
_LOOKING_S = 5.0

Event = dict[str, Any]


def sent(name: str, conversation: str, at: float, text: str) -> Event:
    """A user's message; ``at`` in Unix time in seconds."""
    args = {"id": name, "conversationId": conversation, "message": text, "role": "user", "createdAt": int(at * 1000)}
    return {"name": "v1.ChatMessageSent", "args": args}


def messages(conversations: int, each: int, seed: int = 1) -> list[Event]:
    """``each`` messages in every conversation, interleaved, of different lengths."""
    rng = random.Random(seed)
    return [
        sent(f"c{c}-m{n}", f"c{c}", 1_000 + 60 * n + c / 100, f"text of c{c}-m{n}" + " word" * rng.randrange(30))
        for n in range(each)
        for c in range(conversations)
    ]


def badly_ordered(events: Sequence[Event], part: float = 0.1, seed: int = 2) -> list[Event]:
    """The same, where this part of the messages comes after later ones of its conversation, and as many come twice."""
    rng = random.Random(seed)
    conversations = len({event["args"]["conversationId"] for event in events})
    places: list[tuple[float, Event]] = []
    for at, event in enumerate(events):
        late = rng.random() < part
        places.append((at + late * conversations * rng.uniform(1.0, 3.0), event))
        if rng.random() < part:
            places.append((at + conversations * rng.uniform(-1.0, 3.0), event))
    return [event for _, event in sorted(places, key=lambda place: place[0])]


class Chats:
    """The two queues, the log, and the processes that answer."""

    def __init__(self, cloud: Cloud, clock: AheadClock, folder: Path) -> None:
        self.cloud = cloud
        self.log = ChatLog(open_store("r2://llmdo"), PREFIX)
        self.processes: list[subprocess.Popen[bytes]] = []
        self._clock = clock
        self._system = folder / "system.txt"
        self._system.write_text(SYSTEM)
        self._events: list[Event] = []
        account = cloudflare_account()
        for name in ("chat-in", "chat-out"):
            made = (
                cloud.api.post(f"{account.url}/queues", json={"queue_name": name}).raise_for_status().json()["result"]
            )
            consumer = {"type": "http_pull", "dead_letter_queue": "chat-dead", "settings": {"max_retries": 100}}
            cloud.api.post(f"{account.url}/queues/{made['queue_id']}/consumers", json=consumer).raise_for_status()
        self.input, self.output = (QueueClient(account, find_queue(account, name)) for name in ("chat-in", "chat-out"))

    def start(self, *more: str, first: str = "") -> subprocess.Popen[bytes]:
        """One more ``llmdo chat``; ``first``: a statement that its Python runs before."""
        options = ["--queue", "chat-in", "--reply-queue", "chat-out", "--log", LOG, "--model", MODEL, "--json"]
        options += ["--system", f"@{self._system}", "--concurrency", f"fixed:{WINDOW}", *more]
        code = f"{first}\nfrom llmdo.runners.cli.main import main; main({['chat', *options]!r})"
        env = os.environ | self.cloud.env
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.processes.append(process)
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL; what the process has leased comes again."""
        process.kill()
        process.communicate()
        self.processes.remove(process)
        self._clock.ahead += VISIBILITY_TIMEOUT + 1

    def drain(self) -> list[dict[str, Any]]:
        """SIGTERM for all; gives their summaries."""
        drain(*self.processes)  # all may have been done before one of them began
        ended = [process.communicate(timeout=240) for process in self.processes]
        for process, (_, err) in zip(self.processes, ended, strict=True):
            assert process.returncode == 0, err.decode()[-3000:]
            assert b"Traceback" not in err, err.decode()[-3000:]
        self.processes.clear()
        return [json.loads(out) for out, _ in ended]

    def events(self) -> list[Event]:
        """All that has come by the reply queue so far."""
        while pulled := self.output.pull().messages:
            self._events += [message.body for message in pulled]
            self.output.settle([message.lease_id for message in pulled])
        return self._events

    def responses(self) -> dict[str, list[Event]]:
        """What has come, by the message that it answers."""
        found = defaultdict(list)
        for event in self.events():
            if event["name"] == RECEIVED:
                found[event["args"]["responseToMessageId"]].append(event)
        return dict(found)

    def logged(self, conversation: str) -> dict[str, float]:
        """When the store got each message of a conversation, in whole seconds."""
        folder = f"{PREFIX}{conversation}/messages/"
        listed = self.cloud.store.list(folder)
        return {info.key.removeprefix(folder).removesuffix(".json"): info.modified.timestamp() for info in listed}

    def owners(self) -> set[str]:
        """The runs that work on a conversation at this moment."""
        found = set()
        for key in self.cloud.keys(PREFIX):
            if key.endswith("/_owner.json"):
                with suppress(ObjectNotFound):
                    found.add(json.loads(self.cloud.store.read(key)[0])["run_id"])
        return found

    def done(self) -> bool:
        """Whether all that was sent is answered and pushed."""
        return self.input.backlog() == 0 and not self.cloud.keys(f"{PREFIX}_open/")

    def wait(self, condition: Callable[[], bool], seconds: float = 180.0) -> None:
        """Looks again and again; no process may end meanwhile."""
        end = time.monotonic() + seconds
        while not condition():
            for process in self.processes:
                assert process.poll() is None, process.communicate()[1].decode()[-3000:]
            assert time.monotonic() < end, f"it took too long; open: {self.cloud.keys(f'{PREFIX}_open/')[:10]}"
            time.sleep(0.1)

    def paid(self) -> int:
        """Calls that the model answered."""
        return int(self.cloud.stats()["paid"]["calls"])


@contextmanager
def chats(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Chats]:
    """A fresh stand-in for Cloudflare; no process is left behind."""
    clock = AheadClock()
    with running(folder / "cloudflare", clock=clock) as server:
        for name, value in {**server.env, "XDG_STATE_HOME": str(folder / "state")}.items():
            patch.setenv(name, value)
        patch.delenv("STORE_ID", raising=False)
        made = Chats(Cloud(server), clock, folder)
        try:
            yield made
        finally:
            for process in made.processes:
                process.kill()
                process.communicate()


def check(world: Chats, events: Iterable[Event]) -> list[LoggedAnswer]:
    """Every message has one answer, in the log and in the reply queue, made of the log before it; gives the answers."""
    asked = {event["args"]["id"]: event["args"] for event in events}
    by_conversation = defaultdict(list)
    for args in sorted(asked.values(), key=lambda args: args["createdAt"]):
        by_conversation[args["conversationId"]].append(args["id"])
    pushed, answers = world.responses(), []
    for name, ids in by_conversation.items():
        conversation, logged = world.log.conversation(name), world.logged(name)
        assert [message.id for message in conversation.messages] == ids
        assert conversation.answers.keys() == set(ids)
        for message in conversation.messages:
            answer = conversation.answers[message.id]
            (response,) = [event for event in answer.events if event["name"] == RECEIVED]
            assert response["args"]["id"] == str(uuid.uuid5(RESPONSE_IDS, message.id))
            assert answer.failed or answer.text == f"echo: {message.text}"
            assert pushed[message.id] == [response] * len(pushed[message.id])
            check_history(conversation, message, answer, logged)
            answers.append(answer)
        check_turns(conversation)
    assert pushed.keys() == asked.keys()
    assert world.done()
    return answers


def check_history(
    conversation: Conversation, message: ChatMessage, answer: LoggedAnswer, logged: Mapping[str, float]
) -> None:
    """The call had all that was logged before it, in the log's order, and nothing else; ``logged``: when each was.

    What the model was sent is known by its number of words, which the stand-in tells as tokens.
    """
    before = [one for one in conversation.messages if one.order < message.order]
    in_call = [one for one in before if one.id in answer.history]
    assert answer.history == tuple(one.id for one in in_call)
    begun = answer.trace["begun"]
    for one in before:
        if one.id in answer.history:
            assert one.arrived < begun
        else:
            late = logged[one.id] > begun - _LOOKING_S and conversation.answers[one.id].trace["begun"] > begun
            assert late, f"{message.id} was answered without {one.id}"
    texts = [SYSTEM, message.text]
    for one in in_call:
        said = conversation.answers[one.id]
        texts += [one.text, said.text or ""] if said.trace["answered"] <= begun else [one.text]
    if not answer.failed:
        assert answer.usage is not None
        words, told = sum(len(text.split()) for text in texts), answer.usage["inputTokens"]
        # What is in the ledger was called for by a process that died; a message may have come since then.
        assert told <= words if "recalled" in answer.trace else told == words, (message.id, answer.history)


def check_turns(conversation: Conversation) -> None:
    """One message was answered at a time."""
    turns = sorted((answer.trace["begun"], answer.trace["answered"]) for answer in conversation.answers.values())
    for (_, answered), (begun, _) in pairwise(turns):
        assert answered <= begun
