"""``llmdo chat`` as processes that die, share their queues, and meet services that fail.

The long form is 50 conversations of 20 messages and 20 kills: LLMDO_SOAK=1, or ``make soak``.
"""

from __future__ import annotations

import os
import random
import time

import pytest

from tests.faults.chat.chat_world import WINDOW, badly_ordered, chats, check, messages, sent

pytestmark = pytest.mark.prism

SOAK = bool(os.environ.get("LLMDO_SOAK"))
CONVERSATIONS, EACH = (50, 20) if SOAK else (20, 10)
FEW, KILLS = 2, 20
# Calls to R2 that a process makes before it is killed, at most: some 15 for each message.
CALLS_A_KILL = 600


@pytest.fixture
def world(tmp_path, monkeypatch):
    with chats(tmp_path, monkeypatch) as made:
        yield made


def disturb(world):
    """One call in ten gets no answer, and is not paid; each takes a while, so that some are in flight at a kill."""
    world.cloud.fault(target="ai", probability=0.04, status=500, seed=1)
    world.cloud.fault(target="ai", probability=0.03, status=429, code=3040, seed=2)
    world.cloud.fault(target="ai", probability=0.03, drop=True, seed=3)
    world.cloud.fault(target="ai", latency_s={"median": 0.6 if SOAK else 0.1, "sigma": 0.5}, seed=4)


def portions(events, count):
    size = -(-len(events) // count)
    return [events[at : at + size] for at in range(0, len(events), size)]


def kill_again_and_again(world, events, kills, instances, seconds):
    """Sends the events bit by bit, and kills one of the processes at random moments. Returns how often.

    The last time all that was sent is in the log, and what is open no longer in the queue.
    """
    rng = random.Random(7)
    end = time.monotonic() + seconds
    left = portions(events, kills + 1)
    for _ in range(instances):
        world.start()
    done = 0
    while done < kills - 1 and time.monotonic() < end:
        world.input.push_many(left.pop(0))
        until = world.cloud.stats()["r2"]["calls"] + rng.randrange(CALLS_A_KILL)
        soon = time.monotonic() + rng.uniform(1.0, 12.0)
        while world.cloud.stats()["r2"]["calls"] < until and time.monotonic() < soon:
            time.sleep(0.01)
        world.kill(rng.choice(world.processes))
        world.start()
        done += 1
    for portion in left:
        world.input.push_many(portion)
    world.wait(lambda: world.input.backlog() == 0)
    world.kill(rng.choice(world.processes))
    world.start()
    return done + 1


@pytest.mark.timeout(3600 if SOAK else 600)
@pytest.mark.parametrize(
    ("instances", "wanted", "seconds"),
    [
        (1, FEW, 60),
        pytest.param(1, KILLS, 3600 if SOAK else 20, marks=pytest.mark.slow),
        *([(2, KILLS, 3600)] if SOAK else []),
    ],
)
def test_kills_lose_no_message_and_repeat_at_most_the_calls_in_flight(world, instances, wanted, seconds, capsys):
    asked = messages(CONVERSATIONS, EACH)
    disturb(world)
    kills = kill_again_and_again(world, badly_ordered(asked), wanted, instances, seconds)
    world.wait(world.done, 600 if SOAK else 180)
    world.drain()
    answers = check(world, asked)
    calls, allowed = world.paid(), len(asked) + kills * WINDOW
    failed, recalled = sum(one.failed for one in answers), sum("recalled" in one.trace for one in answers)
    with capsys.disabled():
        print(f"\n{instances} at once: {len(asked)} messages, {kills} kills, {calls} calls paid of {allowed} allowed;")
        print(f"{failed} error events, {recalled} answers from the ledger")
    assert len(asked) - failed <= calls
    assert calls <= allowed
    assert kills >= (wanted if SOAK else FEW)


def messages_until_both_work(world):
    """Sends messages, each in a conversation of its own, until two processes have taken one; gives them."""
    events, owners = [], set()
    end = time.monotonic() + 120
    while len(owners) < 2:
        assert time.monotonic() < end, "only one of two works"
        events.append(sent(f"first{len(events)}", f"first{len(events)}", 1_000, f"Who is there, {len(events)}?"))
        world.input.push_many([events[-1]])
        time.sleep(0.3)
        owners |= world.owners()
    return events


@pytest.mark.slow
@pytest.mark.timeout(3600 if SOAK else 600)
def test_two_instances_answer_no_message_twice_and_pay_none_twice(world, capsys):
    conversations, each = (50, 20) if SOAK else (10, 6)
    asked = messages(conversations, each)
    disturb(world)
    world.start()
    world.start()
    asked += messages_until_both_work(world)
    for portion in portions(badly_ordered(asked), 40):  # the first ones come again with them
        world.input.push_many(portion)
        time.sleep(0.15)
    world.wait(world.done, 600 if SOAK else 180)
    summaries = world.drain()
    check(world, asked)
    shares = [summary["answered"] + summary["failed"] for summary in summaries]
    with capsys.disabled():
        print(f"\ntwo at once: {len(asked)} messages, {shares} by each, {world.paid()} calls paid")
    assert sum(shares) == len(asked)
    assert min(shares) > 0
    assert {len(responses) for responses in world.responses().values()} == {1}
    assert set(world.cloud.stats()["paid"]["by_prompt"].values()) == {1}
    assert world.paid() == sum(summary["answered"] for summary in summaries)


@pytest.mark.slow
def test_queues_that_fail_for_a_while_lose_no_message_and_no_answer(world):
    asked = messages(6, 4)
    world.start()
    world.input.push_many(asked[:6])
    world.wait(lambda: len(world.responses()) == 6)
    answered = f"{world.output.queue_id}/messages/batch"
    world.cloud.fault(target="queue", match=answered, probability=0.5, status=500, seed=1)
    world.cloud.fault(target="queue", match=answered, drop=True, after=True)  # the other half comes, and nobody knows
    for what in ("pull", "ack"):
        world.cloud.fault(target="queue", match=f"{world.input.queue_id}/messages/{what}", probability=0.3, status=500)
    world.input.push_many(asked[6:])
    world.wait(lambda: all(len(world.log.conversation(f"c{c}").answers) == 4 for c in range(6)))
    world.wait(lambda: world.cloud.stats()["queue"]["by_status"].get("drop", 0) >= 5)  # a push is tried 4 times
    # Each is in the log, and none is taken for pushed; the marks of the first six go after their pushes.
    world.wait(lambda: len(world.cloud.keys("chat/_open/")) == 18)
    world.cloud.no_faults()
    world.wait(world.done)
    world.drain()
    check(world, asked)
    assert world.paid() == len(asked)


def by_model(world):
    """The messages that have come back, and the words for why those without an answer have none."""
    args = {name: responses[0]["args"] for name, responses in world.responses().items()}
    words = {name: one["llmMetadata"]["source"] for name, one in args.items() if one["modelId"] == "error"}
    return args, words


def test_a_model_that_fails_for_a_while_gives_error_events_and_the_stream_goes_on(world):
    asked = messages(4, 3)
    world.start("--patience", "5")  # by default it is a minute
    world.cloud.fault(target="ai", status=500)
    world.input.push_many(asked[:4])
    world.wait(lambda: len(by_model(world)[1]) == 4)
    world.cloud.no_faults()
    world.input.push_many(asked[4:])
    world.wait(world.done)
    (summary,) = world.drain()
    assert (summary["answered"], summary["failed"]) == (8, 4)
    check(world, asked)
    args, words = by_model(world)
    assert words == {f"c{c}-m0": "resource-limit-exceeded" for c in range(4)}
    assert {args[name]["message"] for name in words} == {
        "The assistant is very busy. Please send your message again in some minutes."
    }


# The day's allowance ends at midnight; here after some seconds.
SOON = """
import time
import llmdo.backends.refusals.meanings as meanings, llmdo.transforms.chat.lasting_engine as lasting_engine
assert meanings.next_midnight_utc and lasting_engine.STOP_S
meanings.next_midnight_utc = lambda now: time.time() + 2.0
lasting_engine.STOP_S = 2.0
"""


@pytest.mark.slow
def test_a_used_up_allowance_gives_error_events_that_say_so_and_the_next_day_has_answers(world):
    asked = messages(4, 6)
    world.start(first=SOON)
    world.input.push_many(asked[:4])
    world.wait(lambda: len(world.responses()) == 4)
    world.cloud.fault(target="ai", status=429, code=4006)
    world.input.push_many(asked[4:12])
    world.wait(lambda: len(world.responses()) == 12)
    world.cloud.no_faults()
    time.sleep(3.0)
    world.input.push_many(asked[12:])
    world.wait(world.done)
    (summary,) = world.drain()
    check(world, asked)
    args, words = by_model(world)
    assert words == {event["args"]["id"]: "resource-limit-exceeded" for event in asked[4:12]}
    assert {args[name]["message"] for name in words} == {
        "The assistant has used up its allowance. Please try again later."
    }
    assert (summary["answered"], summary["failed"], summary["restarts"]) == (16, 8, 0)
    assert world.paid() == 16
