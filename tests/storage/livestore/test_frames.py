"""Frames as sync-cf 0.4.0 and 0.4.0-dev.22 write them, and those that it understands."""

from __future__ import annotations

import json
import time

import pytest

from llmdo.storage.livestore import frames
from llmdo.storage.livestore.frames import (
    Author,
    BadFrame,
    Chunk,
    Cursor,
    Defect,
    Exit,
    NewEvent,
    Pong,
    Refusal,
    StoredEvent,
)

TOKEN = {"authToken": "insecure-token-change-me"}
AHEAD = {"minimumExpectedNum": 2, "providedNum": 0, "_tag": "ServerAheadError"}


def failure(cause):
    return json.dumps({"_tag": "Exit", "requestId": "2", "exit": {"_tag": "Failure", "cause": cause}})


def test_requests_are_byte_for_byte_what_the_backend_was_seen_to_answer():
    assert frames.pull("0", "h1", TOKEN, None) == (
        '{"_tag":"Request","id":"0","tag":"SyncWsRpc.Pull","payload":{"storeId":"h1",'
        '"payload":{"authToken":"insecure-token-change-me"},"live":true,"cursor":{"_tag":"None"}},"headers":[]}'
    )
    assert '"cursor":{"_tag":"Some","value":{"backendId":"tN","eventSequenceNumber":153}}' in frames.pull(
        "0", "h1", None, Cursor("tN", 153)
    )
    sent = json.loads(
        frames.push("1", "h1", None, Cursor("tN", 7), [NewEvent("a", {"x": 1}), NewEvent("b", {})], Author("me", "py"))
    )
    assert sent["payload"] == {
        "storeId": "h1",
        "batch": [
            {"name": "a", "args": {"x": 1}, "seqNum": 8, "parentSeqNum": 7, "clientId": "me", "sessionId": "py"},
            {"name": "b", "args": {}, "seqNum": 9, "parentSeqNum": 8, "clientId": "me", "sessionId": "py"},
        ],
        "backendId": {"_tag": "Some", "value": "tN"},
    }
    assert frames.ack("0") == '{"_tag":"Ack","requestId":"0"}'


def test_a_chunk_is_read():
    text = (
        '{"_tag":"Chunk","requestId":"0","values":[{"batch":[{"eventEncoded":{"name":"v1.ChatMessageSent","args":'
        '{"id":"f1","message":"hi"},"seqNum":1,"parentSeqNum":0,"clientId":"carol","sessionId":"static"},"metadata":'
        '{"_tag":"Some","value":{"_tag":"SyncMessage.SyncMetadata","createdAt":"2026-11-29T19:33:41.580Z"}}}],'
        '"pageInfo":{"_tag":"NoMore"},"backendId":"PScF"}]}'
    )
    (chunk,) = frames.read_frames(text)
    event = StoredEvent("v1.ChatMessageSent", {"id": "f1", "message": "hi"}, 1, 0, "carol", "static", 1795980821.58)
    assert chunk == Chunk("0", "PScF", (event,), more=False)
    assert event.envelope["seqNum"] == 1 and event.envelope["clientId"] == "carol"
    more = text.replace('{"_tag":"NoMore"}', '{"_tag":"MoreKnown","remaining":3}')
    assert frames.read_frames(f"[{more}]")[0].more


@pytest.mark.parametrize("at", ["null", '"yesterday"', '{"_tag":"None"}', '{"_tag":"Some","value":{"createdAt":5}}'])
def test_an_event_without_a_readable_time_is_read_all_the_same(at):
    text = (
        '{"_tag":"Chunk","requestId":0,"values":[{"batch":[{"eventEncoded":{"name":"n","args":{},"seqNum":1,'
        f'"parentSeqNum":0}},"metadata":{at}}}],"pageInfo":{{"_tag":"NoMore"}},"backendId":"P"}}]}}'
    )
    (chunk,) = frames.read_frames(text)
    assert chunk.events[0].stored == pytest.approx(time.time(), abs=60)
    assert chunk == Chunk("0", "P", (StoredEvent("n", {}, 1, 0, "", "", chunk.events[0].stored),), more=False)


@pytest.mark.parametrize(
    ("cause", "kinds"),
    [
        ({"_tag": "Fail", "error": AHEAD}, ["ServerAheadError"]),
        (
            {"_tag": "Fail", "error": {"_tag": "InvalidPushError", "cause": AHEAD}},
            ["InvalidPushError", "ServerAheadError"],
        ),
        ([{"_tag": "Fail", "error": AHEAD}], ["ServerAheadError"]),
        (
            {"_tag": "Sequential", "left": {"_tag": "Fail", "error": AHEAD}, "right": {"_tag": "Interrupt"}},
            ["ServerAheadError", "Interrupt"],
        ),
        (
            {
                "_tag": "Fail",
                "error": {
                    "_tag": "InvalidPullError",
                    "cause": {"name": "BackendIdMismatchError", "message": "expected a, got b"},
                },
            },
            ["InvalidPullError", "BackendIdMismatchError"],
        ),
        ({"_tag": "Die", "defect": "is missing"}, ["Die"]),
    ],
)
def test_errors_are_found_wherever_a_version_puts_them(cause, kinds):
    (exit_,) = frames.read_frames(failure(cause))
    assert [one.kind for one in exit_.refusals] == kinds
    if "ServerAheadError" in kinds:
        assert next(one for one in exit_.refusals if one.kind == "ServerAheadError").head == 2


def test_the_words_of_an_error_never_hold_what_was_sent():
    error = {
        "_tag": "UnknownError",
        "payload": TOKEN,
        "cause": {"name": "Error", "message": "UNIQUE constraint failed", "payload": TOKEN},
    }
    (exit_,) = frames.read_frames(failure({"_tag": "Fail", "error": error}))
    assert "UNIQUE constraint failed" in exit_.refusals[1].text
    assert "insecure" not in str(exit_)
    (exit_,) = frames.read_frames(failure({"_tag": "Fail", "error": {"_tag": "UnknownError", "cause": "not allowed"}}))
    assert exit_.refusals == (Refusal("UnknownError", "not allowed"),)


def test_other_frames():
    assert frames.read_frames('{"_tag":"Pong"}') == [Pong()]
    assert frames.read_frames('{"_tag":"Exit","requestId":"1","exit":{"_tag":"Success","value":{}}}') == [Exit("1")]
    assert frames.read_frames('{"_tag":"Defect","defect":"Unknown request tag"}') == [Defect("Unknown request tag")]
    assert frames.read_frames(failure({"_tag": "What", "token": "hush"}))[0].refusals == (
        Refusal("an unknown error", ""),
    )


@pytest.mark.parametrize(
    "text",
    ["", "x", "5", '{"_tag":"New"}', "[" * 100_000, '{"_tag":"Chunk","requestId":"0","values":[{"batch":[{}]}]}'],
)
def test_what_is_no_frame_is_one_error(text):
    with pytest.raises(BadFrame) as problem:
        frames.read_frames(text)
    assert "New" not in str(problem.value)
