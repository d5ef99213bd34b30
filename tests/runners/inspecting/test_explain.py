import json
import os
from io import StringIO

import pytest
from rich.console import Console
from typer.testing import CliRunner

from llmdo.pipelines.usage import UsageError
from llmdo.runners.cli.main import app
from llmdo.runners.inspecting.explain import explain, show_explained
from llmdo.storage.chat.log import ChatLog
from llmdo.storage.chat.records import ChatMessage, LoggedAnswer
from llmdo.storage.objects.local import LocalStore
from llmdo.storage.objects.store import Location


def message(name="m", conversation="c", created=100.0, role="user"):
    return ChatMessage(
        event={}, id=name, conversation=conversation, text="?", role=role, created=created, arrived=created + 1
    )


def answer(name="m", conversation="c", attempts=1, **more):
    args = {"id": "r", "message": "said", "modelId": "gpt"}
    trace = {"received": 101.0, "queued": 101.5, "begun": 102.0, "called": 102.0, "answered": 105.25}
    return LoggedAnswer(
        conversation=conversation,
        message_id=name,
        events=({"name": "v1.LLMResponseReceived", "args": args},),
        trace=trace,
        attempts=attempts,
        **more,
    )


@pytest.fixture
def place(tmp_path):
    return Location(str(tmp_path), "")


@pytest.fixture
def log(tmp_path):
    return ChatLog(LocalStore(tmp_path), "")


def one(place, name="m", conversation=None):
    (found,) = explain(place, name, conversation)
    return found


def test_an_answered_message_has_its_stages_in_the_order_of_time(place, log):
    log.add(message())
    log.add(message().model_copy(update={"arrived": 103.0}))  # again
    log.answer(answer())
    log.close(message(), 106.0)
    found = one(place)
    assert [stage for stage, _ in found.stages] == [
        *("sent", "received", "queued", "begun", "called", "duplicate", "answered", "pushed")
    ]
    assert dict(found.stages)["answered"] == 105.25
    assert (found.verdict, found.exit_code) == ("It was answered by gpt; the model was asked once.", 0)


def test_a_senders_clock_that_is_ahead_still_stands_first(place, log):
    log.add(message().model_copy(update={"created": 999.0}))
    assert [stage for stage, _ in one(place).stages] == ["sent", "received"]


def test_an_error_for_an_answer_is_told_with_its_technical_sentence(place, log):
    log.add(message())
    log.answer(answer(attempts=3, failed=True, error="openai/gpt-4o: 503 overloaded"))
    found = one(place)
    assert found.exit_code == 3
    assert "asked 3 times: openai/gpt-4o: 503 overloaded" in found.verdict
    assert "not pushed yet" in found.verdict


def test_another_services_answer_stands_behind_the_message_whatever_its_clock_says(place, log):
    log.add(message())
    args = {"id": "r", "message": "said", "modelId": "theirs"}
    event = {"name": "v1.LLMResponseReceived", "args": args}
    log.answer(LoggedAnswer(conversation="c", message_id="m", events=(event,), trace={"answered": 50.0}))
    found = one(place)
    assert found.stages == (("sent", 100.0), ("received", 101.0), ("adopted", 50.0))
    assert found.verdict.startswith("It was answered by theirs.")
    console = Console(file=StringIO(), width=200)
    show_explained([found], console)
    assert "another service" in console.file.getvalue() and "-51" not in console.file.getvalue()


@pytest.mark.parametrize(("error", "said"), [("Do ask.", "not asked: Do ask. It is"), ("503", "not asked: 503. It is")])
def test_a_verdict_ends_each_sentence_once(place, log, error, said):
    log.add(message())
    log.answer(answer(attempts=0, failed=True, error=error))
    assert said in one(place).verdict
    assert (
        "tries for 4 minutes (to a store for as long as it runs); then the sweeps of the log do, every 5 minutes"
        in one(place).verdict
    )


def test_one_message_before_it_is_one(place, log):
    log.add(message("first", created=1.0))
    log.add(message())
    assert "1 message of its conversation is before it." in one(place).verdict


def test_a_message_of_another_conversation_is_told_by_that_ones_name(place, log):
    log.add(message("a1", "A"))
    found = one(place, "a1", "B")
    assert (found.verdict, found.exit_code) == (
        "it is not in conversation B, but in A: check --conversation",
        1,
    )
    assert "no message" in one(place, "a2", "B").verdict


def test_a_log_that_is_not_there_is_said(tmp_path):
    result = CliRunner().invoke(app, ["chat", "explain", "m", "--log", str(tmp_path / "none")])
    assert isinstance(result.exception, UsageError)
    (said,) = result.exception.problems
    assert said.startswith("--log: there is no log at") and "/none" in said
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("alive", [True, False])
def test_a_message_that_waits_is_told_its_turn_and_who_is_at_work(place, log, tmp_path, alive):
    for name, created in (("first", 1.0), ("second", 2.0), ("m", 3.0)):
        log.add(message(name, created=created))
    beat = tmp_path / "_runs/host-1-abc.json"
    beat.parent.mkdir()
    beat.write_text("{}")
    (tmp_path / "_runs/2026-11-21T14-15-60Z.json").write_text("{}")  # what a run has left that is over
    if not alive:
        os.utime(beat, (1.0, 1.0))
    found = one(place)
    assert found.exit_code == 1
    assert "2 messages of its conversation are before it" in found.verdict
    assert ("host-1-abc" in found.verdict) == alive
    assert ("No run is working" in found.verdict) != alive
    assert "14-15-60" not in found.verdict


def test_a_message_that_wants_no_answer_says_why(place, log):
    log.add(message("old"), wanted=False)
    log.add(message("theirs", role="assistant"))
    assert "--since" in one(place, "old").verdict
    assert "role assistant" in one(place, "theirs").verdict
    assert one(place, "old").exit_code == one(place, "theirs").exit_code == 1


def test_an_event_that_was_not_understood_is_found_by_its_id_in_the_dead_letters(place, log):
    log.bury(b'{"name": "v1.ChatMessageSent", "args": {"id": "bad-1"}}', "'conversationId' is wrong")
    found = one(place, "bad-1")
    assert "'conversationId' is wrong" in found.verdict and "_dead/" in found.verdict
    assert "was received: check" in one(place, "bad-2").verdict
    assert found.exit_code == 1


def test_one_id_in_two_conversations_is_told_twice_unless_one_is_named(place, log):
    for conversation in ("c", "d"):
        log.add(message(conversation=conversation))
    log.answer(answer(conversation="d"))
    assert [found.conversation for found in explain(place, "m")] == ["c", "d"]
    assert [found.exit_code for found in explain(place, "m", "d")] == [0]


def test_people_see_a_table_and_brackets_as_they_are(place, log):
    log.add(message(conversation="[red]"))
    log.answer(answer(conversation="[red]"))
    console = Console(file=StringIO(), width=200)
    show_explained(explain(place, "m"), console)
    said = console.file.getvalue()
    for part in ("[red] / m", "1970-01-01T00:01:41.000Z", "4.250 s", "called", "answered by gpt"):
        assert part in said


def test_the_command_prints_json_and_finds_the_stores_log(log, tmp_path, monkeypatch):
    store = ChatLog(LocalStore(tmp_path / "my-store"), "")
    store.add(message())
    store.answer(answer())
    monkeypatch.setenv("STORE_ID", "my-store")
    result = CliRunner().invoke(app, ["chat", "explain", "m", "--log", str(tmp_path), "--json"], catch_exceptions=False)
    (said,) = json.loads(result.stdout)
    assert (result.exit_code, said["message_id"], said["model"]) == (0, "m", "gpt")
    assert said["stages"][1] == {"stage": "received", "at": "1970-01-01T00:01:41.000Z"}
    monkeypatch.delenv("STORE_ID")
    result = CliRunner().invoke(app, ["chat", "explain", "m", "--log", str(tmp_path)], catch_exceptions=False)
    assert (result.exit_code, "no message" in result.output) == (1, True)
