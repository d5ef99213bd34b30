import json
from contextlib import nullcontext
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console
from typer.testing import CliRunner

from llmdo.backends.errors import Overloaded
from llmdo.backends.responses import ModelInfo, Models
from llmdo.pipelines.chat_options import check_chat_options
from llmdo.pipelines.usage import UsageError
from llmdo.runners.cli.answer.chat import spread
from llmdo.runners.cli.main import app
from llmdo.runners.running import chat as chats
from llmdo.runners.running.chat import (
    ChatSummary,
    chat,
    chat_line,
    context_tokens,
    logged_answers,
    prepare_chat,
    show_chat,
)
from llmdo.runners.showing.progress import Meters
from llmdo.runners.showing.summary import Summary
from llmdo.storage.chat.log import ChatLog
from llmdo.storage.chat.records import ChatMessage, LoggedAnswer
from llmdo.storage.errors import StorageUnavailable
from llmdo.storage.objects.local import LocalStore
from llmdo.storage.objects.store import Location
from llmdo.transforms.run_state import Counts, RunState

MODEL = "local/smollm2-135m-instruct"
RUN = Summary("r", Counts(answered=2), (), (), {})
QUEUES = {"queue": "in", "reply_queue": "out", "log": "r2://bucket/chat/", "model": MODEL}


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    for name in ("CLOUDFLARE_API_TOKEN", "R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", "a" * 32)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("STORE_ID", raising=False)


def message(name, conversation="c", created=1.0):
    return ChatMessage(
        event={}, id=name, conversation=conversation, text=name, role="user", created=created, arrived=created
    )


def answer(name, conversation="c", failed=False):
    args = {"id": f"r-{name}", "message": f"to {name} \ud800", "modelId": "m"}
    events = ({"name": "v1.LLMResponseReceived", "args": args}, {"name": "v1.LLMResponseCompleted", "args": {}})
    error = "it broke" if failed else ""
    return LoggedAnswer(conversation=conversation, message_id=name, events=events, failed=failed, error=error)


@pytest.fixture
def log(tmp_path):
    """Two conversations, one with a name that no folder can have; the last message waits."""
    log = ChatLog(LocalStore(tmp_path / "out"), "")
    for one in (message("m2", created=2.0), message("m1"), message("n", "z/ü"), message("m3", created=3.0)):
        log.add(one)
    for one in (answer("n", "z/ü"), answer("m2"), answer("m1", failed=True)):
        log.answer(one)
    for one in (message("m1"), message("m2"), message("n", "z/ü")):
        log.close(one, 9.0)
    return log


def test_the_answers_of_a_log_come_by_conversation_then_in_the_order_of_messages(log, tmp_path):
    found = [(one.conversation, one.message_id) for one in logged_answers(Location(str(tmp_path / "out"), ""))]
    assert found == [("c", "m1"), ("c", "m2"), ("z/ü", "n")]


@pytest.fixture
def bounded(monkeypatch, tmp_path):
    """Answers a file's messages with given ends of its pipelines; gives the summary."""
    events = tmp_path / "events.jsonl"
    events.write_text("")

    def go(*ends, **options):
        left = list(ends)
        monkeypatch.setattr(chats, "attempt", lambda *_: left.pop(0))
        given = {"events": (str(events),), "output": str(tmp_path / "out"), "model": MODEL, "ledger": "none", **options}
        summary = chat(check_chat_options(**given), lambda state: nullcontext())
        assert left == []
        return summary

    return go


def test_the_responses_of_the_whole_log_are_written_also_when_the_run_was_stopped(bounded, log, tmp_path):
    summary = bounded(replace(RUN, problem="stopped by SIGINT"))
    assert (summary.exit_code, summary.waiting) == (1, 1)
    written = (tmp_path / "out/events.jsonl").read_text()
    assert summary.responses == str(tmp_path / "out/events.jsonl")
    ids = [event["args"]["id"] for line in written.splitlines() if "id" in (event := json.loads(line))["args"]]
    assert ids == ["r-m1", "r-m2", "r-n"]
    bounded(RUN)
    assert (tmp_path / "out/events.jsonl").read_text() == written


@pytest.mark.parametrize(
    ("counts", "options", "code"),
    [
        (Counts(answered=1), {}, 1),  # a message still waits
        (Counts(answered=1), {"since": 5000}, 0),  # that one is too old
        (Counts(answered=1, failed=1), {"since": 5000}, 3),
    ],
)
def test_the_exit_code_says_whether_all_are_answered(bounded, log, counts, options, code):
    assert bounded(replace(RUN, counts=counts), **options).exit_code == code


def test_a_run_that_slept_goes_on_while_it_gets_anywhere(bounded):
    asleep = replace(RUN, asleep=True, problem="frozen")
    assert bounded(asleep, asleep, RUN).run.problem is None
    assert bounded(replace(asleep, counts=Counts())).run.problem == "frozen"


def test_a_queue_is_gone_on_with_after_failures_as_long_as_messages_are_answered(monkeypatch, log, tmp_path):
    failed = replace(RUN, problem="Prism died", counts=Counts(), continuous=True)
    ends = [failed, replace(failed, counts=Counts(failed=1)), failed, replace(RUN, continuous=True)]
    monkeypatch.setattr(chats, "attempt", lambda *_: ends.pop(0))
    monkeypatch.setattr(chats, "find_prism", lambda location, allow_open: None)
    monkeypatch.setattr(chats, "prepare_chat", lambda options: options)
    monkeypatch.setattr(chats.Stop, "wait", lambda self, seconds: False)
    given = {**QUEUES, "log": str(tmp_path / "out"), "max_restarts": 1}
    summary = chat(check_chat_options(**given), lambda state: nullcontext())
    assert (summary.exit_code, summary.run.restarts, summary.waiting) == (0, 3, 1)
    assert (summary.run.counts.answered, summary.run.counts.failed) == (2, 1)


def test_a_log_that_does_not_tell_what_is_open_is_no_failure_of_the_run(log, tmp_path, monkeypatch):
    where = Location(str(tmp_path / "out"), "")
    assert chats._open_in(where) == 1

    def fails(self):
        raise StorageUnavailable("later")

    monkeypatch.setattr(ChatLog, "count_open", fails)
    assert chats._open_in(where) is None


def test_two_names_of_one_queue_are_refused(monkeypatch):
    monkeypatch.setattr(chats, "id_of_queue", lambda name: "f" * 32)
    with pytest.raises(UsageError, match="--reply-queue out is --queue"):
        prepare_chat(check_chat_options(**QUEUES))


def test_a_file_that_is_not_there_is_said_before_any_work(tmp_path):
    given = {"events": (str(tmp_path / "none.jsonl"),), "output": str(tmp_path / "out"), "model": MODEL}
    with pytest.raises(UsageError, match=r"none\.jsonl: there is no such file"):
        prepare_chat(check_chat_options(**given))


@pytest.mark.parametrize("place", ["a.jsonl", "/proc/none"])
def test_a_place_in_which_nothing_can_be_written_is_said_before_any_work(tmp_path, monkeypatch, place):
    (tmp_path / "a.jsonl").write_text("")
    where = str(tmp_path / place)
    given = {"events": (str(tmp_path / "a.jsonl"),), "output": where, "model": MODEL, "ledger": "none"}
    with pytest.raises(UsageError, match=f"--output {where}: nothing can be written there"):
        prepare_chat(check_chat_options(**given))
    monkeypatch.setattr(chats, "id_of_queue", lambda name: name)
    monkeypatch.setattr(chats, "check_consumers", lambda name, queue_id: None)
    with pytest.raises(UsageError, match=f"--log {where}: nothing can be written there"):
        prepare_chat(check_chat_options(**{**QUEUES, "log": where, "ledger": "none"}))


def test_what_the_context_holds_is_the_providers_word_unless_it_is_said(monkeypatch, tmp_path):
    def lists(provider):
        return Models((ModelInfo("openai/a", context_tokens=10), ModelInfo("openai/b", context_tokens=20)))

    monkeypatch.setattr(chats, "list_of", lists)
    assert (context_tokens("openai/b"), context_tokens("openai/c")) == (20, None)
    (tmp_path / "a.jsonl").write_text("")
    given = {"events": (str(tmp_path / "a.jsonl"),), "output": str(tmp_path / "out"), "model": MODEL}
    assert prepare_chat(check_chat_options(**given, context_tokens=7)).context_tokens == 7

    def fails(provider):
        raise Overloaded("later")

    monkeypatch.setattr(chats, "list_of", fails)
    assert prepare_chat(check_chat_options(**given)).context_tokens is None


def test_the_status_line_has_conversations_messages_calls_errors_and_backlog(monkeypatch):
    monkeypatch.setattr(chats, "open_conversations", lambda state: 1234)
    monkeypatch.setattr("llmdo.runners.showing.progress.calls_in_flight", lambda run_id: 56)
    state = RunState()
    state.add(answered=1000, failed=2, input_tokens=3000, output_tokens=4)
    said = chat_line(Meters().look(state), state)
    for part in ("1,234 conversations open", "1,002 messages", "/s", "56 calls in flight", "3,004 tokens", "2 errors"):
        assert part in said
    assert "waiting" not in said
    state.backlog = 7000
    assert "7,000 waiting" in chat_line(Meters().look(state), state)


def test_the_end_says_what_failed_what_waits_and_where_the_responses_are():
    console = Console(file=StringIO(), width=200)
    counts = Counts(answered=3, failed=1, messages_undecodable=2)
    failed = tuple(answer(f"m{i}", "[c]", failed=True) for i in range(7))
    show_chat(ChatSummary(replace(RUN, counts=counts, restarts=2), 4, "/out/events.jsonl", failed), console)
    said = console.file.getvalue()
    for part in ("3 messages answered, 1 with an error", "7 messages have an error", "[c] / m4: it broke", "…"):
        assert part in said
    assert "m5" not in said
    for part in ("2 events could not be understood", "2 times", "4 messages still wait", "/out/events.jsonl"):
        assert part in said


def test_what_a_run_without_an_end_leaves_open_is_said(log):
    console = Console(file=StringIO(), width=200)
    summary = ChatSummary(replace(RUN, continuous=True), 1)
    show_chat(summary, console)
    assert "1 message still waits: run the same command again." in console.file.getvalue()
    assert (summary.exit_code, summary.as_json()["waiting"]) == (0, 1)


def test_the_summary_as_json_has_what_a_machine_asks():
    said = json.loads(json.dumps(ChatSummary(replace(RUN, until=0.0), 0, "/out/events.jsonl").as_json()))
    assert (said["exit_code"], said["answered"], said["failed"], said["waiting"]) == (0, 2, 0, 0)
    assert (said["until"], said["responses"]) == ("1970-01-01T00:00:00Z", "/out/events.jsonl")


# The command line.


def test_events_takes_several_files():
    assert spread(["--events", "a", "b", "c", "--output", "o", "d"]) == [
        *("--events", "a", "--events", "b", "--events", "c", "--output", "o", "d")
    ]
    assert spread(["explain", "m", "--log", "l"]) == ["explain", "m", "--log", "l"]


@pytest.fixture
def started(monkeypatch):
    """The options that chats would be answered with."""
    found = []
    monkeypatch.setattr(
        "llmdo.runners.running.chat.chat", lambda options, watch: found.append(options) or ChatSummary(RUN, 0, "x")
    )
    return found


def test_what_the_user_says_reaches_the_run(started, tmp_path):
    (tmp_path / "system.txt").write_text("Be brief.")
    words = ["--events", "a.jsonl", "b.jsonl", "--output", "out/", "--model", MODEL, "--since", "1000"]
    more = [
        "--system",
        f"@{tmp_path}/system.txt",
        "--temperature",
        "0",
        "--concurrency",
        "fixed:4",
        "--patience",
        "7",
        "--json",
    ]
    result = CliRunner().invoke(app, ["chat", *words, *more], catch_exceptions=False)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["answered"] == 2
    (options,) = started
    assert (options.events, options.output, options.since) == (("a.jsonl", "b.jsonl"), "out/", 1.0)
    assert (options.system, options.temperature, str(options.concurrency)) == ("Be brief.", 0.0, "fixed:4")
    assert options.patience_s == 7.0


def test_a_system_prompt_that_cannot_be_read_is_one_sentence(started, tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"\xe9")
    said = []
    for name in ("none.txt", "latin.txt"):
        words = ["--events", "a.jsonl", "--output", "out/", "--model", MODEL, "--system", f"@{tmp_path}/{name}"]
        said += CliRunner().invoke(app, ["chat", *words]).exception.problems
    assert said == [
        f"--system {tmp_path}/none.txt cannot be read (No such file or directory): name a text file in UTF-8",
        f"--system {tmp_path}/latin.txt cannot be read (it is not UTF-8): name a text file in UTF-8",
    ]


def test_a_queue_needs_no_word_about_the_runner(started):
    words = ["--queue", "in", "--reply-queue", "out", "--log", "r2://bucket/chat/", "--model", MODEL, "--deltas"]
    assert CliRunner().invoke(app, ["chat", *words], catch_exceptions=False).exit_code == 0
    (options,) = started
    assert (options.continuous, options.runner, options.deltas) == (True, "prism", True)
    assert "planning" in options.system


@pytest.mark.parametrize("command", [["chat"], ["chat", "explain"]])
def test_help_has_an_example_and_no_option_takes_a_secret(command):
    said = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"}).output
    assert f"llmdo {' '.join(command)}" in said.replace("\n", " ")
    assert not [word for word in ("secret", "api-key", "--token") if word in said.lower()]
