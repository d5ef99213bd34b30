"""A process that answers chats, and dies right after or before any single write, loses nothing: the next one goes on.

The order of all writes is kept (``chat_recorder``) and checked as a whole.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import mkdtemp

import pytest

from tests.faults.chat.chat_recorder import ChatWorld, kind_of, name_of
from tests.faults.chat.chat_world import sent
from tests.faults.recorder import SOAK, Death, Write

CONVERSATIONS = {"a": ["a1", "a2", "a3"], "b": ["b1"]}
# Not in their order, and one comes twice.
COME = ["a1", "a3", "b1", "a2", "a3"]
EVENTS = [sent(name, name[0], 1_000 + int(name[1]), f"text of {name}") for name in COME]
MESSAGES = {f"{conversation}/{name}" for conversation, names in CONVERSATIONS.items() for name in names}
KINDS = {"pull", "message", "mark", "ack", "_owner", "tell", "call", "keep", "answer", "push", "trace", "mark removed"}
# Of these a whole run writes one for each message; of the other kinds at least one.
OF_EACH_MESSAGE = ("message", "mark", "call", "keep", "answer", "mark removed")
KINDS_OF_FILES = KINDS - {"pull", "ack", "tell", "push"} | {"heartbeat", "history", "events.jsonl"}


@pytest.fixture
def new_world(tmp_path, monkeypatch):
    """Makes a world in which nothing is done; it takes the place of the one before."""

    def new() -> ChatWorld:
        monkeypatch.undo()
        world = ChatWorld(Path(mkdtemp(dir=tmp_path)))
        world.install(monkeypatch)
        world.send(EVENTS)
        return world

    return new


def test_a_whole_run_writes_everything_once_and_in_its_order(new_world):
    world = new_world()
    assert world.answer_queue()
    check_end(world, 0)
    kinds = Counter(map(kind_of, world.history))
    assert set(kinds) == KINDS | {"_owner removed"}
    for kind in OF_EACH_MESSAGE:
        assert kinds[kind] == len(MESSAGES)
    assert world.calls == dict.fromkeys(MESSAGES, 1)


@pytest.mark.fast("message", "answer", "push")
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_death_at_a_write_of_any_kind_loses_nothing_and_repeats_only_calls_in_flight(new_world, kind):
    die_at_each(new_world, "after", kind, ChatWorld.answer_queue, some=(1, 3) if kind in OF_EACH_MESSAGE else (1,))
    die_at_each(new_world, "before", kind, ChatWorld.answer_queue, some=(1,))


@pytest.mark.fast("answer")
@pytest.mark.parametrize("kind", sorted(KINDS_OF_FILES))
def test_a_death_at_a_write_of_any_kind_of_a_run_over_files_loses_nothing(new_world, kind):
    die_at_each(new_world, "after", kind, ChatWorld.answer_files, some=(1,))


def die_at_each(new_world, moment, kind, answer, some: tuple[int, ...]) -> None:
    """Dies at these writes of a kind, or at each that there is (LLMDO_SOAK=1), goes on, and checks the end."""
    for number in count(1) if SOAK else some:
        world = new_world()
        if answer(world, Death(moment, number, kind)):
            assert number > some[-1], f"there were less than {number} of {kind}"
            check_end(world, 0)
            return
        last = go_on_after_a_death(world, partial(answer, world), f"{moment} {kind} {number}")
        assert moment == "before" or last == kind


@pytest.mark.fast("0")
@pytest.mark.parametrize("seed", range(40 if SOAK else 3))
def test_deaths_again_and_again_cost_no_more_than_the_calls_in_flight_at_each(new_world, seed):
    world, deaths, in_flight = new_world(), 0, 0
    while not world.answer_queue(Death("after", 2 + (5 * deaths + seed) % 11)):
        deaths += 1
        in_flight = unkept_calls(world)
        assert deaths < 60
    assert deaths >= 4
    check_end(world, in_flight)
    assert in_flight <= 2 * deaths


def go_on_after_a_death(world, again, where: str) -> str:
    """Goes on, and checks the end; gives the kind of the last write before it."""
    check_order(world.history)
    last = kind_of(world.history[-1]) if world.history else "nothing written"
    in_flight, left = unkept_calls(world), state_left(world)
    try:
        assert again()
        check_end(world, in_flight)
    except AssertionError as error:
        error.add_note(f"it died right {where} ({last}), and left {left}")
        raise
    return last


def unkept_calls(world) -> int:
    """Calls that were paid and whose answer is not in the ledger: those in flight when their process died."""
    return world.calls.total() - world.kept()


def state_left(world) -> list[str]:
    return [*(info.key for info in world.bucket.list("chat/")), f"{world.backlog()} messages"]


def by_queue(world) -> bool:
    return any(write.operation == "pull" for write in world.history)


def check_end(world, in_flight: int) -> None:
    """Each message one answer, made of all before it, pushed and not open; paid once, but for the calls in flight."""
    check_order(world.history)
    assert list(world.bucket.list("chat/_open/")) == []
    for name, ids in CONVERSATIONS.items():
        conversation = world.log.conversation(name)
        assert [message.id for message in conversation.messages] == ids
        assert conversation.answers.keys() == set(ids)
        for at, message in enumerate(ids):
            answer = conversation.answers[message]
            assert (answer.failed, answer.text) == (False, f"re: text of {message}")
            assert answer.history == tuple(ids[:at])
    assert set(world.calls) == MESSAGES
    assert world.calls.total() == len(MESSAGES) + in_flight
    if by_queue(world):
        assert world.backlog() == 0
        pushed = world.pushed()
        assert pushed.keys() == MESSAGES
        for name, events in pushed.items():
            conversation, _, message = name.partition("/")
            (response, _) = world.log.conversation(conversation).answers[message].events
            assert events == [response] * len(events)


def check_order(history: list[Write]) -> None:
    """Message before mark before ack and call; owner before call; call before answer before push before mark's removal.

    Inside a conversation no call before the answer to the message before.
    """
    logged: set[str] = set()
    marked: set[str] = set()
    owned: set[str] = set()
    called: set[str] = set()
    answered: set[str] = set()
    pushed: set[str] = set()
    kinds: Counter[str] = Counter()
    by_files = not any(write.operation == "pull" for write in history)
    for write in history:
        kind = kind_of(write)
        kinds[kind] += 1
        match kind:
            case "message":
                logged.add(name_of(write))
            case "mark":
                assert name_of(write) in logged, "a message was marked before it was logged"
                marked.add(name_of(write))
            case "ack":
                assert set(write.keys) <= marked, "a message was acked before it was marked"
            case "_owner":
                owned.add(name_of(write))
            case "_owner removed":
                owned.discard(name_of(write))
            case "call":
                assert write.key in marked, "a message was sent to the model before it was marked"
                assert write.key[0] in owned, "a conversation was worked on that nobody had taken"
                before = {name for name in logged if name[0] == write.key[0] and name < write.key}
                assert before <= answered, "a message was sent to the model before its turn"
                called.add(write.key)
            case "keep":
                assert kinds["keep"] <= kinds["call"], "an answer was kept before its call"
            case "answer":
                assert name_of(write) in called, "an answer was logged before its call"
                assert kinds["answer"] <= kinds["keep"], "an answer was logged before it was kept"
                assert name_of(write) not in answered, "an answer was logged twice"
                answered.add(name_of(write))
            case "push":
                assert set(write.keys) <= answered, "an answer was pushed before it was logged"
                pushed |= set(write.keys)
            case "mark removed":
                assert name_of(write) in (answered if by_files else pushed), "a mark was removed before the push"
