"""Who answers a message follows from the log alone, and of several instances one answers."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from llmdo.storage.livestore.frames import StoredEvent
from llmdo.transforms.livestore import claims as module
from llmdo.transforms.livestore.claims import CLAIM_S, TAKES_OVER, Claims, MessageClaim

CREATED = "2026-01-01T00:00:00.000Z"


def event(name, client="page", stored=1000.0, **args):
    return StoredEvent(f"v1.{name}", {"createdAt": CREATED, **args}, 1, 0, client, "s", stored)


def started(client, message="m1", stored=1000.0, **more):
    return event("LLMResponseStarted", client, stored, conversationId="c", userMessageId=message, **more)


def received(answers="m1", client="a", **more):
    named = {"responseToMessageId": answers} if answers else {}
    args = {"id": f"r-{answers}", "conversationId": "c", "message": "x", "modelId": "m", **named, **more}
    return event("LLMResponseReceived", client, **args)


def sent(message, conversation="c", role="user"):
    return event("ChatMessageSent", id=message, conversationId=conversation, message="?", role=role)


def heard(*events, now=1000.0):
    claims = Claims(lambda: now)
    for one in events:
        claims.hear(one)
    return claims


def test_the_first_claim_counts_until_it_is_taken_over_in_so_many_words():
    assert heard(started("a"), started("b")).holder("m1") == MessageClaim("a", 1000.0)
    assert heard(started("a"), started("b"), started("a", stored=1060.0)).holder("m1") == MessageClaim("a", 1060.0)
    taken = started("b", stored=1200.0, **{TAKES_OVER: "a"})
    assert heard(started("a"), taken).holder("m1") == MessageClaim("b", 1200.0)
    too_late = started("c", stored=1201.0, **{TAKES_OVER: "a"})
    assert heard(started("a"), taken, too_late).holder("m1") == MessageClaim("b", 1200.0)
    assert heard(started("a")).holder("m2") is None


def test_an_answer_counts_whoever_it_is_from_and_also_one_that_names_no_message():
    assert heard(received()).answered("c", "m1")
    assert not heard(received("m2")).answered("c", "m1")
    assert not heard(received(conversationId="d")).answered("c", "m1")  # else nobody would answer it
    assert heard(sent("m1"), received("")).answered("c", "m1")
    assert not heard(sent("m1"), sent("m2"), received("")).answered("c", "m1")
    assert not heard(sent("m1", conversation="d"), received("")).answered("d", "m1")
    assert not heard(sent("m1"), sent("n", role="assistant"), received("m9")).answered("c", "m1")


def test_a_response_that_names_no_message_gets_its_name_once():
    """In the first version of the schema it answers the last message before it, in the log's order."""
    claims = heard(sent("m1"))
    unnamed = received("", id="r1")
    assert claims.hear(unnamed).args["responseToMessageId"] == "m1"
    claims.hear(sent("m2"))
    assert claims.hear(unnamed) is unnamed and not claims.answered("c", "m2")  # clients that reload write events again
    other = received("", id="r2", conversationId="d")
    assert claims.hear(other) is other
    assert claims.hear(received("m2")).args == received("m2").args
    late = received("", id="r3")
    assert claims.hear(late) is late  # the last message has an answer


def test_the_ids_of_all_responses_are_known():
    claims = heard(received(id="r1"), event("LLMResponseReceived", id="r2"))
    assert claims.has_response("r1") and claims.has_response("r2") and not claims.has_response("r3")


def test_a_claim_ends_with_an_answer():
    claims = heard(started("a"), received())
    assert claims.holder("m1") is None
    claims.hear(started("b"))
    assert claims.holder("m1") is None


def test_a_corrected_clock_ends_no_claim():
    now = 5.0  # of a clock that is not the time of day
    claims = Claims(lambda: now)
    claims.hear(started("a", stored=1_000_000.0))
    now += 60.0
    assert claims.age(1_000_000.0) == 60.0
    assert Claims().age(time.time()) == 0.0


def test_events_of_any_other_form_are_passed_over():
    odd = [started("a", message=5), event("LLMResponseReceived"), event("New"), event("LLMResponseCompleted")]
    claims = heard(*odd)
    assert not claims.answered("c", "m1") and claims.holder("m1") is None


def test_ages_are_told_by_the_backends_clock_whatever_this_ones_says():
    for ahead in (-5_000.0, 0.0, 5_000.0):
        now = 2_000.0 + ahead
        claims = Claims(lambda: now)  # noqa: B023
        claims.hear(started("a", stored=1_000.0))  # read long after it was stored
        claims.hear(started("x", "m2", stored=1_990.0))
        assert claims.age(1_000.0) == 990.0 > CLAIM_S
        assert claims.age(1_990.0) == 0.0


def test_what_is_known_of_a_log_is_forgotten_with_it_and_of_a_long_one_all_answers_and_the_newest_claims(monkeypatch):
    claims = heard(started("a"), received("m2"), sent("m3"))
    claims.forget()
    assert claims.holder("m1") is None and not claims.answered("c", "m2")
    monkeypatch.setattr(module, "_REMEMBERED", 3)
    claims = heard(*(started("a", f"m{number}") for number in range(10)))
    assert [claims.holder(f"m{number}") is not None for number in (6, 7, 9)] == [False, True, True]
    claims = heard(*(received(f"m{number}") for number in range(10)))
    assert all(claims.answered("c", f"m{number}") for number in range(10))  # or it would be answered again


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["claim", "take", "answer"])), max_size=30))
def test_everybody_sees_the_same_holder_and_nobody_loses_a_message_unsaid(steps):
    """Each instance decides by what it has read; pushes are compared with the head, so it has read everything."""
    log = []
    for client, step in steps:
        seen = heard(*log)
        holder = seen.holder("m1")
        if seen.answered("c", "m1"):
            continue
        if step == "claim" and holder is None:
            log.append(started(client))
        elif step == "take" and holder is not None:
            log.append(started(client, **{TAKES_OVER: holder.client}))
        elif step == "answer" and holder is not None and holder.client == client:
            log.append(received(client=client))
        after = heard(*log).holder("m1")
        if after is not None and after != holder:
            assert log[-1].client == after.client
    assert sum(one.name == "v1.LLMResponseReceived" for one in log) <= 1
