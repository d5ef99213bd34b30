import itertools
import json
import uuid
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdo.backends import errors
from llmdo.backends.responses import ChatResponse
from llmdo.backends.usage import Usage
from llmdo.storage.chat.records import ChatMessage
from llmdo.storage.errors import StorageUnavailable
from llmdo.transforms.chat.events import (
    BadEvent,
    OtherEvent,
    ResponseEvent,
    completed,
    delta,
    failed,
    metadata,
    read_event,
    received,
    response_id,
    started,
)
from llmdo.transforms.chat.failures import EMPTY_ANSWER, EMPTY_MESSAGE, ONLY_TOOLS, OVERFLOW, REASONS, reason_of

EXAMPLE = Path(__file__).parents[3] / "examples" / "chat" / "events.jsonl"
# llmMetadata.source in the services of lifebuild that say why there is no answer.
WORDS = """error resource-limit-exceeded queue-overflow-error queue-processing-error input-validation-error
    context-load-error session-init-error tool-error""".split()
FIRST = {  # as the first generation sends it
    "id": "m1",
    "conversationId": "c1",
    "message": "What is next?",
    "role": "user",
    "createdAt": "2025-06-11T09:30:00.250Z",
}
MESSAGE = ChatMessage(
    event={}, id="m1", conversation="c1", text="What is next?", role="user", created=1749634200.25, arrived=5.0
)


def sent(**changes):
    return {"name": "v1.ChatMessageSent", "args": FIRST | changes}


def without(name):
    return {"name": "v1.ChatMessageSent", "args": {k: v for k, v in FIRST.items() if k != name}}


def line(event):
    return json.dumps(event).encode()


@pytest.mark.parametrize("around", [{}, {"seqNum": 3, "parentSeqNum": 2, "clientId": "c", "sessionId": "s"}])
@pytest.mark.parametrize("form", [line, lambda event: event, lambda event: line(event).decode()])
def test_a_message_is_read_from_the_envelope_and_from_the_bare_event(around, form):
    event = sent() | around
    assert read_event(form(event), 5.0) == MESSAGE.model_copy(update={"event": event})


@pytest.mark.parametrize(
    "created",
    [
        "2025-06-11T09:30:00.250Z",
        "2025-06-11T11:30:00.250+02:00",
        "2025-06-11T09:30:00.250",  # no zone: UTC
        1749634200250,
        1749634200250.0,
    ],
)
def test_every_form_of_a_date_is_the_same_time(created):
    assert read_event(sent(createdAt=created), 0.0).created == 1749634200.25


@pytest.mark.parametrize("role", ["user", "assistant", "system"])
def test_the_newer_generation_has_roles_and_a_context(role):
    context = '{"page": "board"}'
    found = read_event(sent(role=role, navigationContext=context), 0.0)
    assert (found.role, found.context) == (role, context)
    assert json.loads(read_event(sent(navigationContext={"page": "board"}), 0.0).context) == {"page": "board"}
    assert read_event(sent(navigationContext=None), 0.0).context == ""


def test_a_byte_order_mark_before_the_first_event_of_a_file_is_none_of_it():
    assert read_event(b"\xef\xbb\xbf" + line(sent()), 5.0).id == "m1"


def test_an_empty_text_is_a_message_that_somebody_has_to_answer_for():
    assert read_event(sent(message=""), 0.0).text == ""


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[1]", "must be a JSON object, not an array"),
        ("text", "not valid JSON"),
        (b'{"name": "x", "args": {"n": 1e999}}', "number"),
        ({"name": "x", "args": {"n": float("nan")}}, "no event"),
        ({"name": "x", "args": {"text": "\ud83d"}}, "cannot be written as JSON"),
        ({"name": "x", "args": {"what": object()}}, "cannot be written as JSON"),
        ({}, "'name' is wrong"),
        ({"name": "v1.ChatMessageSent"}, "'args' is wrong"),
        ({"name": "", "args": {}}, "'name' is wrong"),
        ({"name": 7, "args": {}}, "'name' is wrong"),
        ({"name": "x", "args": []}, "'args' is wrong"),
        (without("id"), "v1.ChatMessageSent: 'id' is wrong: it is missing"),
        (without("conversationId"), "'conversationId' is wrong"),
        (without("message"), "'message' is wrong"),
        (without("role"), "'role' is wrong"),
        (without("createdAt"), "'createdAt' is wrong"),
        (sent(id=""), "'id' is wrong"),
        (sent(id=7), "'id' is wrong: it must be a string"),
        (sent(conversationId=""), "'conversationId' is wrong"),
        (sent(message=None), "'message' is wrong"),
        (sent(role="tool"), "'role' is wrong: it must be 'user'"),
        (sent(createdAt="yesterday"), "'createdAt' is wrong: it must be a date in ISO 8601, such as 2025"),
        (sent(createdAt=True), "'createdAt' is wrong"),
        (sent(createdAt=-1), "'createdAt' is wrong"),
        (sent(createdAt=10**30), "'createdAt' is wrong"),
        (sent(createdAt=None), "'createdAt' is wrong"),
        (sent(navigationContext=7), "'navigationContext' is wrong: it must be a string or a JSON object"),
        ({"name": "v1.ConversationCreated", "args": {"title": "x"}}, "v1.ConversationCreated: 'id' is wrong"),
        ({"name": "v1.LLMResponseReceived", "args": {"id": "r"}}, "v1.LLMResponseReceived: 'conversationId' is wrong"),
    ],
)
def test_a_malformed_event_says_what_is_wrong(raw, reason):
    with pytest.raises(BadEvent) as caught:
        read_event(raw, 0.0)
    assert reason in str(caught.value)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)) | st.binary()
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | scalars, inner, max_size=3)
)
names = st.sampled_from(
    ["v1.ChatMessageSent", "v1.ConversationCreated", "v1.LLMResponseReceived", "v1.LLMResponseStarted", "v2.Other"]
)
fields = [*FIRST, "navigationContext", "modelId", "responseToMessageId", "title", "llmMetadata"]
dates = st.integers() | st.floats() | st.datetimes().map(str) | st.text(max_size=12)
nearly = st.builds(
    lambda name, args, extra: {"name": name, "args": args, **extra},
    names | anything,
    st.builds(
        lambda right, odd, date: {**FIRST, "modelId": "gpt-4o", "title": "t", **right, **date, **odd},
        st.dictionaries(st.sampled_from(fields), st.text(max_size=5)),
        st.dictionaries(st.sampled_from(fields), anything, max_size=2),
        dates.map(lambda date: {"createdAt": date}),
    )
    | anything,
    st.dictionaries(st.sampled_from(["seqNum", "clientId", "😀"]), anything),
)


def check(raw):
    """Reads it; what can be read can be logged as it is."""
    try:
        event = read_event(raw, 1.0)
    except BadEvent as error:
        assert str(error)
        return
    if isinstance(event, ChatMessage):
        assert ChatMessage.model_validate_json(event.model_dump_json()) == event
    elif not isinstance(event, ResponseEvent):
        assert isinstance(event, OtherEvent)
        json.dumps(event.event)


@given(nearly)
def test_whatever_comes_as_an_object_is_an_event_or_a_bad_event(raw):
    check(raw)


@given(st.binary() | st.text(st.characters(codec=None)) | anything)
def test_whatever_comes_is_an_event_or_a_bad_event(raw):
    check(raw)


@given(nearly)
def test_whatever_comes_as_a_line_is_an_event_or_a_bad_event(event):
    check(json.dumps(event, default=repr, skipkeys=True).encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_deep_nesting_is_a_bad_event(opening):
    for raw in (opening * 100_000, b'{"name": "x", "args": ' + opening * 100_000):
        with pytest.raises(BadEvent):
            read_event(raw, 0.0)
    deep = {"name": "x", "args": {}}
    for _ in range(100_000):
        deep = {"name": "x", "args": deep}
    with pytest.raises(BadEvent):
        read_event(deep, 0.0)
    deep["args"] = deep
    with pytest.raises(BadEvent):
        read_event(deep, 0.0)


def test_unknown_events_and_new_conversations_are_kept_as_they_came():
    created = {"name": "v1.ConversationCreated", "args": {"id": "c1", "title": "Plan", "createdAt": 1}, "seqNum": 1}
    unknown = {"name": "v2.ChatMessageSent", "args": {"what": "ever"}}
    assert read_event(line(created), 0.0) == OtherEvent(created)
    assert read_event(line(unknown), 0.0) == OtherEvent(unknown)


def test_a_response_that_was_sent_comes_back_as_the_answer_that_it_is():
    event = received(MESSAGE, "Ship it.", "gpt-4o", 1749634201.5, {"source": "openai"})
    found = read_event(line(event | {"seqNum": 9}), 0.0)
    answer = found.answer
    assert (answer.conversation, answer.message_id, answer.text, answer.failed) == ("c1", "m1", "Ship it.", False)
    assert (answer.response_id, found.created) == (response_id("m1"), 1749634201.5)
    assert answer.events == (event | {"seqNum": 9},)
    sorry = read_event(failed(MESSAGE, OVERFLOW, 2.0), 0.0).answer
    assert (sorry.failed, sorry.text) == (True, None)
    for event in (started(MESSAGE, 1.0), completed(MESSAGE, 1.0, 1, True), delta(MESSAGE, 0, "Sh")):
        assert read_event(line(event), 0.0) == ResponseEvent()


def test_a_response_of_the_first_generation_names_no_message():
    args = {k: FIRST[k] for k in ("id", "conversationId", "message", "createdAt")}
    event = {"name": "v1.LLMResponseReceived", "args": args | {"role": "assistant", "modelId": "gpt-4o"}}
    found = read_event(event, 0.0)
    assert (found.answer.message_id, found.answer.text, found.created) == ("", "What is next?", 1749634200.25)


def test_the_events_of_an_answer_have_the_fields_of_the_schema():
    assert started(MESSAGE, 1749634201.5) == {
        "name": "v1.LLMResponseStarted",
        "args": {"conversationId": "c1", "userMessageId": "m1", "createdAt": "2025-06-11T09:30:01.500Z"},
    }
    assert completed(MESSAGE, 1749634201.5, 2, False) == {
        "name": "v1.LLMResponseCompleted",
        "args": {
            "conversationId": "c1",
            "userMessageId": "m1",
            "createdAt": "2025-06-11T09:30:01.500Z",
            "iterations": 2,
            "success": False,
        },
    }
    assert received(MESSAGE, "Ship it.", "gpt-4o", 1749634201.5, {"source": "openai"}) == {
        "name": "v1.LLMResponseReceived",
        "args": {
            "id": response_id("m1"),
            "conversationId": "c1",
            "message": "Ship it.",
            "role": "assistant",
            "modelId": "gpt-4o",
            "responseToMessageId": "m1",
            "createdAt": "2025-06-11T09:30:01.500Z",
            "llmMetadata": {"source": "openai"},
            "metadata": {"source": "openai"},
        },
    }
    assert delta(MESSAGE, 3, "it") == {
        "name": "v1.LLMResponseDelta",
        "args": {
            "id": response_id("m1"),
            "conversationId": "c1",
            "responseToMessageId": "m1",
            "attempt": 1,
            "number": 3,
            "text": "it",
        },
    }


def test_the_id_of_a_response_never_changes():
    assert response_id("m1") == "c03dfd85-0ba3-5b83-aacb-c7803803b701"
    assert uuid.UUID(response_id("m1")).version == 5
    assert len({response_id(name) for name in ("m1", "m2", "M1", "")}) == 4


def test_half_a_character_in_a_model_s_text_does_not_make_an_event_unwritable():
    for event in (received(MESSAGE, "so \ud83d", "m", 1.0, {}), delta(MESSAGE, 0, "so \ud83d")):
        assert "so �" in json.loads(json.dumps(event, ensure_ascii=False).encode())["args"].values()


def test_the_metadata_of_an_answer_tells_what_it_took():
    usage = Usage(input_tokens=10, output_tokens=5, cached_tokens=4, reasoning_tokens=1, neurons=2.5)
    response = ChatResponse("Ship it.", "stop", usage, "gpt-4o", request_id="req-1", warnings=("cut",))
    assert metadata("openai", response, 2, 1.2345, ["trimmed"]) == {
        "source": "openai",
        "usage": {"inputTokens": 10, "outputTokens": 5, "cachedTokens": 4, "reasoningTokens": 1, "neurons": 2.5},
        "finishReason": "stop",
        "attempts": 2,
        "latencyMs": 1234,
        "requestId": "req-1",
        "warnings": ["trimmed", "cut"],
    }


def test_a_failure_tells_the_user_a_sentence_and_the_page_a_word_and_a_class_but_not_the_error_s_text():
    error = errors.QuotaExhausted("the allocation of account 0123 is used", status=429, code=3036)
    event = failed(MESSAGE, reason_of(error), 1749634201.5, error, attempts=3)
    args = event["args"]
    assert (args["modelId"], args["id"], args["responseToMessageId"]) == ("error", response_id("m1"), "m1")
    assert args["message"] == reason_of(error).sentence
    assert args["llmMetadata"] == {
        "source": "resource-limit-exceeded",
        "attempts": 3,
        "error": {"class": "QuotaExhausted", "status": 429, "code": 3036},
    }
    assert "0123" not in json.dumps(event)


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (errors.QuotaExhausted, "resource-limit-exceeded"),
        (errors.BudgetSpent, "resource-limit-exceeded"),
        (errors.RateLimited, "resource-limit-exceeded"),
        (errors.Overloaded, "resource-limit-exceeded"),
        (errors.CallTimeout, "error"),
        (errors.ConnectionFailed, "error"),
        (errors.BadReply, "error"),
        (errors.ContentFiltered, "error"),
        (errors.Unauthorized, "session-init-error"),
        (errors.ModelRetired, "session-init-error"),
        (errors.InvalidRequest, "input-validation-error"),
        (errors.ContextOverflow, "input-validation-error"),
        (StorageUnavailable, "context-load-error"),
        (ZeroDivisionError, "queue-processing-error"),
    ],
)
def test_each_error_has_its_word(error, word):
    assert reason_of(error("why")).word == word


def test_every_error_of_a_model_has_a_known_word_and_a_sentence_for_its_reader():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ModelError)]
    sources = [*(reason_of(kind("why")) for kind in kinds), *(source for _, source in REASONS)]
    for source in [*sources, OVERFLOW, EMPTY_MESSAGE, EMPTY_ANSWER, ONLY_TOOLS]:
        assert source.word in WORDS
        assert source.sentence.endswith(".") and len(source.sentence) > 40


def test_no_row_of_the_table_hides_a_later_one():
    for at, (kind, _) in enumerate(REASONS):
        assert not any(issubclass(kind, earlier) for earlier, _ in REASONS[:at])


def test_the_example_is_five_conversations_of_thirty_questions_that_interleave():
    events = [read_event(raw, float(at)) for at, raw in enumerate(EXAMPLE.read_bytes().splitlines())]
    messages = [event for event in events if isinstance(event, ChatMessage)]
    users = [message for message in messages if message.role == "user"]
    assert len(users) == 30
    assert {message.role for message in messages} == {"user", "assistant", "system"}
    assert len({message.id for message in messages}) == len(messages)
    assert Counter(message.conversation for message in users).total() == 30
    assert len({message.conversation for message in messages}) == 5
    assert any(message.context for message in messages)
    assert sum(a.conversation != b.conversation for a, b in itertools.pairwise(users)) >= 25
    assert all(a.created <= b.created for a, b in itertools.pairwise(messages))
    others = Counter(event.event["name"] for event in events if isinstance(event, OtherEvent))
    assert others == {"v1.ConversationCreated": 5, "v1.TaskCreated": 1}
    (kick_off,) = {message.conversation for message in users if "BLUE HERON" in message.text}
    first, second = [message.text for message in users if message.conversation == kick_off][:2]
    assert "BLUE HERON" in first
    assert "code word" in second and "BLUE HERON" not in second


@pytest.mark.parametrize(
    "wrong",
    [
        {"role": "x" * 100_000},
        {"createdAt": "2" * 100_000},
        {"navigationContext": [1] * 100_000},
        {"message": [{}] * 1000},
    ],
    ids=["a role", "a date", "a context", "a message"],
)
def test_an_event_that_is_a_book_is_refused_with_a_sentence(wrong):
    args = {"id": "a", "conversationId": "c", "message": "m", "role": "user", "createdAt": 0, **wrong}
    with pytest.raises(BadEvent) as caught:
        read_event(json.dumps({"name": "v1.ChatMessageSent", "args": args}), 0.0)
    assert len(str(caught.value)) < 300
