"""``llmdo ask``, against the echo behind a local Cloudflare, and against replies that are made here."""

import io
import json

import httpx
import pytest

from llmdo.backends.errors import InvalidRequest, Overloaded, StreamError
from llmdo.backends.limits import retry
from llmdo.backends.openai.backend import OpenAI, Service
from llmdo.backends.responses import ModelInfo
from llmdo.backends.sync import Model, connect
from llmdo.pipelines.ask_options import AskOptions
from llmdo.runners.cli.main import main
from llmdo.runners.inspecting import ask as ask_module
from llmdo.runners.inspecting.ask import ask
from tests.backends.conformance import ANSWER, event_stream, events
from tests.backends.services import OPENAI_STREAM, openai_shape
from tests.backends.wire import Wire

MODEL = "@cf/echo/chat"


@pytest.fixture
def replies(monkeypatch):
    """Sets the replies that the model behind ``ask`` gets, one after another; the last one stays."""
    retry.set_instant(True)

    def set_replies(*replies):
        left = list(replies)
        sent = []

        def answer(call):
            if call.method == "GET":  # the list of models
                return openai_shape(call)
            sent.append(json.loads(call.content))
            reply = left.pop(0) if len(left) > 1 else left[0]
            return reply() if callable(reply) else openai_shape(call)

        service = Service("openai", "http://127.0.0.1:1/v1", {}, "K")
        monkeypatch.setattr(ask_module, "connect", lambda name, gateway: Model(OpenAI(service, Wire(answer)), "m"))
        return sent

    yield set_replies
    retry.set_instant(False)


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        main(["ask", *arguments])
    said = capsys.readouterr()
    return left.value.code or 0, said.out, said.err


@pytest.mark.parametrize("streamed", ["--stream", "--no-stream"])
def test_an_answer_goes_to_stdout_and_nothing_else(cloudflare, capsys, streamed):
    assert run(capsys, "a b", "--model", MODEL, streamed) == (0, "echo: a b\n", "")


def test_an_answer_that_is_cut_off_says_so_on_stderr(cloudflare, capsys):
    code, out, err = run(capsys, "a b c", "--model", MODEL, "--max-tokens", "2", "--no-stream")
    assert (code, out.strip()) == (0, "echo: a")
    assert "cut off" in err


def test_a_prompt_is_read_from_stdin(cloudflare, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("from stdin\n"))
    assert run(capsys, "-", "--model", MODEL)[:2] == (0, "echo: from stdin\n\n")


def test_json_is_one_object_or_one_for_each_piece(cloudflare, capsys):
    answer = json.loads(run(capsys, "a b", "--model", MODEL, "--json")[1])
    assert answer["text"] == "echo: a b"
    assert (answer["usage"]["input_tokens"], answer["model"]) == (2, MODEL)
    lines = [json.loads(line) for line in run(capsys, "a b", "--model", MODEL, "--json", "--stream")[1].splitlines()]
    assert [line["kind"] for line in lines if line["kind"] != "metadata"] == ["start", *["content"] * 3, "done"]
    assert "".join(line.get("text", "") for line in lines) == "echo: a b"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["a", "--model", "gpt"], 2, "names no provider"),
        ([" ", "--model", MODEL], 2, "the prompt is empty"),
        (["a", "--model", "@cf/no/such-model"], 1, "there is no such model"),
        (["a b", "--model", "@cf/baai/bge-m3"], 1, "bge-m3"),
    ],
)
def test_what_cannot_work_is_one_sentence(cloudflare, capsys, arguments, code, says):
    left, out, err = run(capsys, *arguments)
    assert (left, out) == (code, "")
    assert says in err
    assert len(err.splitlines()) == 1


def test_options_that_cannot_be_are_all_named_at_once(capsys):
    code, _, err = run(capsys, "a", "--model", MODEL, "--max-tokens", "0", "--temperature", "9", "--call-timeout", "0")
    assert code == 2
    said = [
        "llmdo: --max-tokens 0: must be at least 1",
        "llmdo: --temperature 9.0: must be at most 5.0",
        "llmdo: --call-timeout 0.0: must be at least 1.0",
    ]
    assert [line for line in err.splitlines() if "must be" in line] == said


def test_missing_settings_are_named(monkeypatch, capsys):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    code, _, err = run(capsys, "a", "--model", "openai/gpt-4o")
    assert (code, err) == (2, "llmdo: OPENAI_API_KEY is not set: export it in the environment\n")


def test_system_prompt_and_parameters_go_along(replies):
    sent = replies("answer")
    ask("p", AskOptions(model="openai/m", system="s", temperature=0), io.StringIO(), stream=False, as_json=False)
    assert sent == [
        {
            "model": "m",
            "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}],
            "temperature": 0,
        }
    ]


@pytest.mark.parametrize("streamed", [True, False])
def test_trouble_is_tried_again_while_nothing_was_said(replies, streamed):
    sent, out = replies(lambda: httpx.Response(503), lambda: httpx.Response(429), "answer"), io.StringIO()
    assert ask("p", AskOptions(model="openai/m"), out, stream=streamed, as_json=False).answered
    assert out.getvalue() == f"{ANSWER}\n"
    assert len(sent) == 3


@pytest.mark.parametrize("streamed", [True, False])
def test_three_tries_are_enough_and_a_bad_request_has_one(replies, streamed):
    sent = replies(lambda: httpx.Response(503))
    with pytest.raises(Overloaded):
        ask("p", AskOptions(model="openai/m"), io.StringIO(), stream=streamed, as_json=False)
    assert len(sent) == 3
    sent = replies(lambda: httpx.Response(400))
    with pytest.raises(InvalidRequest):
        ask("p", AskOptions(model="openai/m"), io.StringIO(), stream=streamed, as_json=False)
    assert len(sent) == 1


def test_an_answer_that_breaks_off_is_not_begun_anew_and_fails(replies):
    sent, out = replies(lambda: event_stream(OPENAI_STREAM[:300])), io.StringIO()
    with pytest.raises(StreamError):
        ask("p", AskOptions(model="openai/m"), out, stream=True, as_json=False)
    assert len(sent) == 1
    assert out.getvalue().endswith("\n")


def test_each_piece_is_written_before_the_next_one_comes(replies):
    """The reply goes on only once the words that came first are written."""
    out = io.StringIO()

    class Waiting(httpx.AsyncByteStream):
        async def __aiter__(self):
            head, tail = OPENAI_STREAM[:300], OPENAI_STREAM[300:]
            yield head
            for _ in range(2000):
                if out.getvalue():
                    break
                await asyncio.sleep(0.005)
            written.append(out.getvalue())
            yield tail

    import asyncio

    written = []
    replies(lambda: httpx.Response(200, stream=Waiting(), headers={"content-type": "text/event-stream"}))
    ask("p", AskOptions(model="openai/m"), out, stream=True, as_json=False)
    assert written[0]
    assert ANSWER.startswith(written[0])
    assert out.getvalue() == f"{ANSWER}\n"


def test_no_text_is_no_answer_but_a_tool_call_is_one(replies):
    replies(lambda: event_stream(events({"choices": [{"delta": {}, "finish_reason": "stop"}]})))
    said = ask("p", AskOptions(model="openai/m"), io.StringIO(), stream=True, as_json=False)
    assert (said.answered, said.warnings) == (False, ("the model sent no text",))
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}
    replies(
        lambda: event_stream(events({"choices": [{"delta": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]}))
    )
    out = io.StringIO()
    assert ask("p", AskOptions(model="openai/m"), out, stream=True, as_json=False).answered
    assert json.loads(out.getvalue())["function"]["name"] == "f"


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("streamed", ["--stream", "--no-stream"])
def test_a_deprecated_model_is_warned_of_once(cloudflare, capsys, monkeypatch, tmp_path, known, streamed):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    info = ModelInfo(f"workers-ai/{MODEL}", deprecated="2026-05-30")
    monkeypatch.setattr("llmdo.backends.workers_ai.backend.model_info", lambda entry: info)
    if known:
        with connect("workers-ai") as backend:
            backend.list_models()
    code, out, err = run(capsys, "a b", "--model", MODEL, streamed)
    assert (code, out) == (0, "echo: a b\n")
    assert err == f"llmdo: {MODEL} is deprecated since 2026-05-30: name another model\n"


def test_a_stream_that_is_cut_off_says_so_once(cloudflare, capsys):
    _, _, err = run(capsys, "a b c", "--model", MODEL, "--max-tokens", "2", "--stream")
    assert err.count("cut off") == 1


def test_a_gateway_that_cannot_be_or_is_not_used_is_said(cloudflare, capsys, replies):
    code, _, err = run(capsys, "a", "--gateway", "https://gateway.ai.cloudflare.com/v1/xx")
    assert (code, "ends in /v1/ACCOUNT_ID/GATEWAY_ID" in err) == (2, True)
    replies("x")
    code, _, err = run(capsys, "a", "--model", "openai/m", "--gateway", "g", "--no-stream")
    assert (code, "openai/m is called without the AI Gateway" in err) == (0, True)


def test_a_used_quota_says_when_it_is_there_again(cloudflare, capsys):
    cloudflare.fault("ai", status=429, code=4006)
    code, _, err = run(capsys, "a", "--model", MODEL)
    assert (code, "It can resume from " in err) == (1, True)
