"""Of several instances one calls the model for a message, and the log gets one response, whoever it is from."""

from __future__ import annotations

import asyncio
import logging

import pytest

from llmdo.transforms.chat.replies import AnsweredElsewhere
from llmdo.transforms.livestore import store_replies
from llmdo.transforms.livestore.claims import CLAIM_S, TAKES_OVER
from tests.transforms.livestore.instances import (
    COMPLETED,
    RECEIVED,
    SENT,
    STARTED,
    answer_to,
    answers,
    claim,
    contiguous_behind_ours,
    let_expire,
    message,
    of,
    respond,
    say,
    until,
)


def test_an_answer_is_announced_then_pushed_with_its_end_in_one_push(backend, play):
    async def scene(instance):
        say(backend, "m1")
        await instance().answer(message("m1"))

    play(scene)
    assert [event["name"] for event in backend.logs["s"]] == [SENT, STARTED, RECEIVED, COMPLETED]
    assert backend.counts["pushes"] == 2 and contiguous_behind_ours(backend)


@pytest.mark.parametrize("announced", [True, False])
def test_two_instances_leave_one_response_and_announced_ones_make_one_call(backend, play, announced):
    async def scene(instance):
        both = [instance(f"run-{n}", f"log{n}", announced=announced) for n in range(2)]
        asked = [message(f"m{n}") for n in range(20)]
        for one in asked:
            say(backend, one.id)
        await asyncio.gather(*(one.begin(each) for each in asked for one in both))
        calls = [name for one in both for name in one.calls]
        assert len(calls) == 20 if announced else 20 <= len(calls) <= 40

    play(scene)
    assert sorted(answers(backend)) == sorted(f"m{n}" for n in range(20))
    assert bool(of(backend, STARTED)) is announced


def test_an_expired_claim_is_taken_over_by_one_of_two_at_once(backend, play, quick):
    async def scene(instance):
        say(backend, "m1")
        claim(backend, "m1", "llmdo-log-dead")
        both = [instance(f"run-{n}", f"log{n}") for n in range(2)]
        tasks = [one.begin(message("m1")) for one in both]
        await let_expire(backend, *both)
        await asyncio.gather(*tasks)
        assert [one.calls for one in both] in ([["m1"], []], [[], ["m1"]])

    play(scene)
    taken = [event["args"][TAKES_OVER] for event in of(backend, STARTED) if TAKES_OVER in event["args"]]
    assert answers(backend) == ["m1"] and taken == ["llmdo-log-dead"]


def test_a_claim_that_is_repeated_at_the_last_moment_is_not_taken_over(backend, play, quick):
    async def scene(instance):
        say(backend, "m1")
        claim(backend, "m1", "another")
        one = instance()
        replies, is_dead = one.replies, one.replies._is_dead

        async def repeated_meanwhile(holder):
            dead = await is_dead(holder)
            if dead and len(of(backend, STARTED)) == 1:
                await asyncio.to_thread(claim, backend, "m1", "another")
                seen = one.claims.holder
                await until(lambda: seen("m1") != holder)
            return dead

        replies._is_dead = repeated_meanwhile
        one.begin(message("m1"))
        await let_expire(backend, one)
        await until(lambda: len(of(backend, STARTED)) == 2)
        await asyncio.sleep(0.3)
        assert len(of(backend, STARTED)) == 2 and one.calls == []
        await let_expire(backend, one)
        await until(lambda: answers(backend) == ["m1"])

    play(scene)


def test_a_claim_of_a_dead_run_of_the_same_log_is_taken_over_at_once(backend, play):
    async def scene(instance):
        alive = set()
        first = instance("run-1", "log", alive)
        say(backend, "m1")
        first.begin(message("m1"), takes_s=60)
        await until(lambda: first.calls)
        await first.kill()
        second = instance("run-2", "log", alive)
        await second.answer(message("m1"))
        assert second.calls == ["m1"]

    play(scene)
    assert answers(backend) == ["m1"]


def test_a_living_claim_is_waited_for_though_it_is_long(backend, play, quick):
    async def scene(instance):
        first, second = instance("run-1", "log1"), instance("run-2", "log2")
        say(backend, "m1")
        first.begin(message("m1"), gate=(gate := asyncio.Event()))
        await until(lambda: first.calls)
        waiting, seen = second.begin(message("m1")), second.claims.holder
        await until(lambda: seen("m1"))
        for _ in range(4):
            known = seen("m1").at
            backend.ahead += 0.6 * CLAIM_S
            await until(lambda known=known: seen("m1").at > known + 0.5 * CLAIM_S)
        assert second.calls == []
        gate.set()
        await waiting
        assert second.calls == []

    play(scene)
    assert answers(backend) == ["m1"]


@pytest.mark.parametrize("other_answers", [True, False])
def test_whoever_lost_a_message_during_its_call_waits_for_the_other_and_keeps_its_answer(
    backend, play, quick, other_answers
):
    async def scene(instance):
        one = instance()
        say(backend, "m1")
        task = one.begin(message("m1"), gate=(gate := asyncio.Event()))
        await until(lambda: one.calls)
        claim(backend, "m1", "other", **{TAKES_OVER: one.client})
        await until(lambda: one.claims.holder("m1").client == "other")
        gate.set()
        await until(lambda: "m1" in one.paid)
        await asyncio.sleep(0.2)
        assert answers(backend) == []
        if other_answers:
            respond(backend, "m1", "theirs", "other")
        else:
            await let_expire(backend, one)
        await task
        assert one.calls == ["m1"]

    play(scene)
    assert answers(backend) == ["m1"]
    assert (of(backend, RECEIVED)[0]["args"]["id"] == "theirs") is other_answers


@pytest.mark.parametrize("announced", [True, False])
def test_a_message_that_has_a_response_is_not_answered(backend, play, announced):
    async def scene(instance):
        say(backend, "m1")
        respond(backend, "m1")
        say(backend, "m2", "d")
        respond(backend, None, "first-version", conversationId="d")
        one = instance(announced=announced)
        await until(lambda: one.claims.answered("d", "m2"))
        for each in (message("m1"), message("m2", "d")):
            with pytest.raises(AnsweredElsewhere):
                async with one.replies.answering(each):
                    raise AssertionError("a call")
            assert await one.replies.push(answer_to(each))

    play(scene)
    assert [event["name"] for event in backend.logs["s"]] == [SENT, RECEIVED] * 2


@pytest.mark.parametrize("announced", [True, False])
def test_a_message_is_not_answered_before_the_log_is_read_to_its_end(backend, play, announced):
    """Its response may be further on."""

    async def scene(instance):
        say(backend, "m1")
        respond(backend, "m1")
        pull, readable = backend._pull, asyncio.Event()

        async def late(*words):
            while not readable.is_set():  # noqa: ASYNC110  another thread sets it
                await asyncio.sleep(0.01)
            await pull(*words)

        backend._pull = late
        one = instance(announced=announced)
        task = one.begin(message("m1"))
        await asyncio.sleep(0.3)
        assert not task.done() and one.calls == []
        readable.set()
        await task
        assert one.calls == []

    play(scene)
    assert answers(backend) == ["m1"]


def test_no_response_is_pushed_under_an_id_that_the_log_has(backend, play):
    """A second row of one id stops every client with a plain table, whatever message it is said to answer."""

    async def scene(instance):
        say(backend, "m1")
        mine = answer_to(message("m1"))
        respond(backend, "another", mine[0]["args"]["id"])
        one = instance()
        assert await one.replies.push(mine)
        unnamed = {**mine[0], "args": {k: v for k, v in mine[0]["args"].items() if k != "responseToMessageId"}}
        assert await one.replies.push((unnamed,))

    play(scene)
    assert len(of(backend, RECEIVED)) == 1


@pytest.mark.parametrize("client", ["the app's own", ""])
def test_anothers_announcement_without_a_heartbeat_is_honoured_for_a_while(backend, play, quick, client):
    async def scene(instance):
        say(backend, "m1")
        claim(backend, "m1", client)
        one = instance()
        one.begin(message("m1"))
        await asyncio.sleep(0.4)
        assert one.calls == []
        await let_expire(backend, one)
        await until(lambda: answers(backend) == ["m1"])

    play(scene)
    assert [event["args"].get(TAKES_OVER) for event in of(backend, STARTED)] == [None, client]


@pytest.mark.parametrize("name", ["nul\x00id", "with space", "ü" * 300])
def test_ids_stay_as_they_are(backend, play, name):
    async def scene(instance):
        say(backend, name)
        await instance().answer(message(name))

    play(scene)
    assert answers(backend) == [name] and len(of(backend, STARTED)) == 1


def test_texts_are_as_every_client_can_store_them(backend, play):
    async def scene(instance):
        say(backend, "m1")
        event, end = answer_to(message("m1"), "nul \x00 and half \ud83d of a pair")
        event["args"] |= {"gone": None, "llmMetadata": {"n": float("nan"), "deep": ["\x00", "\udc00", None], "k": 1}}
        assert await instance().replies.push((event, end))

    play(scene)
    args = of(backend, RECEIVED)[0]["args"]
    assert args["message"] == "nul \ufffd and half \ufffd of a pair" and "gone" not in args
    assert args["llmMetadata"] == {"n": None, "deep": ["\ufffd", "\ufffd", None], "k": 1}
    assert args["createdAt"].endswith("Z")


@pytest.mark.parametrize("announced", [True, False])
def test_what_the_backend_refuses_is_tried_ever_more_rarely_and_said_once(backend, play, caplog, announced):
    async def scene(instance):
        say(backend, "m1")
        one, waits = instance(announced=announced), []

        async def pause(seconds):
            waits.append(seconds)
            if len(waits) == 9:
                backend.faults.refuse_push = 0.0
            await asyncio.sleep(0)

        backend.faults.refuse_push = 1.0
        one.replies._pause = pause
        await one.answer(message("m1"))
        assert waits[:9] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]

    with caplog.at_level(logging.WARNING):
        play(scene)
    assert answers(backend) == ["m1"]
    said = [one.message for one in caplog.records if "SQLITE_BUSY" in one.message]
    assert said == ["store s refuses an event: UnknownError; Error: SQLITE_BUSY; trying again until it is accepted"]


def test_a_refused_claim_ends_with_the_run_and_the_message_stays_open(backend, play):
    async def scene(instance):
        say(backend, "m1")
        backend.faults.refuse_push = 1.0
        one = instance()

        async def answering():
            async with one.replies.answering(message("m1")):
                raise AssertionError("a call")

        task = asyncio.create_task(answering())
        await until(lambda: backend.counts["pushes"])
        one.replies.stop()
        with pytest.raises(AnsweredElsewhere):
            await task

    play(scene)


def test_an_answer_is_pushed_while_the_run_stops_and_is_left_if_the_backend_is_away(backend, play, monkeypatch):
    monkeypatch.setattr(store_replies, "_LAST_PUSH_S", 0.5)

    async def scene(instance):
        say(backend, "m1")
        one = instance()
        async with one.replies.answering(message("m1")):
            one.replies.stop()
        assert await one.replies.push(answer_to(message("m1")))
        await asyncio.to_thread(backend.kill)
        assert not await one.replies.push(answer_to(message("m2")))

    play(scene)
    assert answers(backend) == ["m1"]


def test_an_answer_that_no_store_can_hold_is_said_and_not_pushed(backend, play, caplog):
    async def scene(instance):
        say(backend, "m1")
        assert not await instance().replies.push(answer_to(message("m1"), "x" * 860_000))

    play(scene)
    assert "the answer to m1 cannot be pushed" in caplog.text and answers(backend) == []


def test_a_claim_by_a_clock_that_is_an_hour_wrong_is_as_old_as_the_backend_says(backend, play, quick):
    """The date in an event is its client's."""

    async def scene(instance):
        for number, at in enumerate(("2020-01-01T00:00:00Z", "2099-01-01T00:00:00Z")):
            say(backend, f"m{number}")
            claim(backend, f"m{number}", "other", createdAt=at)
        one = instance()
        for number in range(2):
            one.begin(message(f"m{number}"))
        await asyncio.sleep(0.4)
        assert one.calls == []
        await let_expire(backend, one, messages=("m0", "m1"))
        await until(lambda: sorted(answers(backend)) == ["m0", "m1"])

    play(scene)
