"""A /v1/responses body asked of services that have this route, and of those that have only chats."""

import asyncio
import json

import httpx
import pytest
from openai.types.responses import Response

from llmdo.backends.errors import BadReply, InvalidRequest, ModelError
from llmdo.backends.media.parts import with_samples
from llmdo.backends.openai.backend import OpenAI, Service
from llmdo.backends.requests import RawRequest
from llmdo.backends.responses_api.chat_request import as_chat
from llmdo.backends.usage import Usage
from llmdo.backends.workers_ai.requests import chat_body as workers_ai_body
from llmdo.transforms.media import MediaSettings
from tests.backends.wire import Wire

LLAMA = "@cf/meta/llama-3.3-70b-instruct-fp8-fast"
SCHEMA = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}, "additionalProperties": False}
FORMAT = {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}
DETAILS = {
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens_details": {"reasoning_tokens": 0},
}
USED = {"input_tokens": 7, "output_tokens": 4, "total_tokens": 11, **DETAILS}


def response(text="hi", status="completed", **more):
    part = {"type": "output_text", "text": text, "annotations": []}
    said = {"id": "msg_1", "type": "message", "role": "assistant", "status": status, "content": [part]}
    fixed = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "created_at": 1}
    return {"id": "resp_1", "object": "response", "status": status, "model": "m", "output": [said], "usage": USED,
            **fixed, **more}  # fmt: skip


def completion(text="hi"):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


class Answers:
    """By route: what is answered, one after the other; the last one stays."""

    def __init__(self, **by_route):
        self.by_route = {route: list(answers) for route, answers in by_route.items()}
        self.calls = []

    def __call__(self, request):
        route = request.url.path.rpartition("/")[2]
        self.calls.append((route, json.loads(request.content)))
        answers = self.by_route[route]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)


def ask(answers, *bodies, is_openai=False):
    async def scenario():
        service = Service("openai", "http://127.0.0.1:8000/v1", {}, "OPENAI_API_KEY", is_openai=is_openai)
        backend = OpenAI(service, Wire(answers))
        try:
            return [await backend.run(RawRequest("m", {"input": "hi", **body}, "r", "responses")) for body in bodies]
        finally:
            await backend.aclose()

    return asyncio.run(scenario())


NO_ROUTES = [
    httpx.Response(404, text="404 page not found"),
    httpx.Response(404, json={"detail": "Not Found"}),
    httpx.Response(404),
    httpx.Response(405, json={"detail": "Method Not Allowed"}),
    httpx.Response(501, json={"error": {"message": "Not Implemented"}}),
    httpx.Response(404, json={"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}}),
]


@pytest.mark.parametrize("missing", NO_ROUTES, ids=lambda reply: f"{reply.status_code} {reply.text[:12]}")
def test_a_service_without_the_route_is_asked_by_a_chat_from_then_on(missing):
    answers = Answers(responses=[missing], completions=[completion()])
    body = {"instructions": "Be short", "max_output_tokens": 9, "truncation": "auto"}
    first, second = ask(answers, body, body)
    messages = [{"role": "system", "content": "Be short"}, {"role": "user", "content": "hi"}]
    chat = ("completions", {"model": "m", "messages": messages, "max_tokens": 9})
    assert answers.calls == [("responses", {"input": "hi", **body, "model": "m"}), chat, chat]
    for found in (first, second):
        assert Response.model_validate(found.result).output_text == "hi"
        assert found.result["instructions"] == "Be short"
        assert found.usage == Usage(7, 4)
        assert [warning.split()[0] for warning in found.warnings] == ["truncation"]


def test_openai_itself_is_never_asked_otherwise():
    answers = Answers(responses=[httpx.Response(404, json={"error": {"message": "x", "code": "model_not_found"}})])
    with pytest.raises(ModelError):
        ask(answers, {}, is_openai=True)
    assert [route for route, _ in answers.calls] == ["responses"]


def test_a_model_that_neither_route_knows_is_not_found_and_nothing_is_learnt():
    gone = httpx.Response(404, json={"error": {"message": "model 'm' not found", "code": "model_not_found"}})
    answers = Answers(responses=[gone], completions=[gone])
    for _ in range(2):
        with pytest.raises(ModelError, match="no such model"):
            ask(answers, {})
    assert [route for route, _ in answers.calls] == ["responses", "completions"] * 2


def test_a_404_after_an_answer_is_about_the_line():
    answers = Answers(responses=[response(), httpx.Response(404, json={"error": {"message": "no such file"}})])
    with pytest.raises(ModelError, match="no such file"):
        ask(answers, {}, {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]})
    assert [route for route, _ in answers.calls] == ["responses", "responses"]


def test_what_a_chat_cannot_have_is_refused_where_there_are_only_chats_and_passed_on_where_there_are_not():
    tools = {"tools": [{"type": "web_search"}]}
    with pytest.raises(InvalidRequest, match="'web_search' runs at OpenAI"):
        ask(Answers(responses=[NO_ROUTES[0]]), tools)
    answers = Answers(responses=[response()])
    assert ask(answers, tools)[0].result == response()
    assert answers.calls == [("responses", {"input": "hi", **tools, "model": "m"})]


def test_a_file_by_its_url_is_passed_on_and_refused_by_a_chat_unless_its_bytes_were_fetched():
    body = {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "https://h/a.pdf"}]}]}
    assert ask(Answers(responses=[response()]), body)[0].result == response()
    says = "a chat cannot have input_file by file_url"
    with pytest.raises(InvalidRequest, match=says):
        ask(Answers(responses=[NO_ROUTES[0]]), body)
    chat = as_chat(body, LLAMA, "r", pytest.fail)
    with pytest.raises(InvalidRequest, match=says):
        workers_ai_body(chat)
    fetched = with_samples(MediaSettings(("https://h/",)).marked(chat, "r2://bucket"))
    (part,) = workers_ai_body(fetched)["messages"][0]["content"]
    assert part["file"]["filename"] == "a.pdf" and part["file"]["file_data"].startswith("data:")


def test_what_a_server_leaves_out_is_added_and_what_it_sends_stays():
    """As llama.cpp and smaller servers answer."""
    said = {"type": "message", "content": [{"type": "output_text", "text": "hi", "own": 1}]}
    thought = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]}
    body = {"object": "response", "status": "completed", "output": [thought, said], "timings": {"ms": 3}}
    asked = {"tools": [{"type": "function", "name": "f"}]}
    (found,) = ask(Answers(responses=[{**body, "usage": {"input_tokens": 7, "output_tokens": 4}}]), asked)
    read = Response.model_validate(found.result)
    assert (read.output_text, read.id, read.model, read.usage.total_tokens) == ("hi", "r", "m", 11)
    assert (read.tools[0].name, found.result["timings"]) == ("f", {"ms": 3})
    assert found.result["output"][1]["content"][0]["own"] == 1
    assert Response.model_validate(ask(Answers(responses=[body]), {})[0].result).usage is None


def test_an_answer_that_has_all_its_tokens_may_be_cut_off_though_the_server_says_that_it_is_complete():
    (found,) = ask(Answers(responses=[response()]), {"max_output_tokens": 4})
    assert "all 4 tokens that it may have" in found.warnings[0]
    (found,) = ask(Answers(responses=[response()]), {"max_output_tokens": 5})
    assert found.warnings == ()


@pytest.mark.parametrize("reply", [{}, completion(), {"object": "response", "output": None}, [1]])
def test_a_reply_that_is_not_a_response_is_not_an_answer(reply):
    with pytest.raises(BadReply, match="not a response"):
        ask(Answers(responses=[reply]), {})


# JSON mode


def test_an_answer_that_does_not_fit_is_shown_to_the_model_once():
    answers = Answers(responses=[response("no"), response('{"a": 1}')])
    (found,) = ask(answers, {"text": FORMAT}, is_openai=True)
    turns = answers.calls[1][1]["input"]
    asked = [{"type": "message", "role": role, "content": text} for role, text in (("user", "hi"), ("assistant", "no"))]
    assert turns[:2] == asked
    assert "cannot be used" in turns[2]["content"]
    read = Response.model_validate(found.result)
    assert (read.output_text, read.usage.input_tokens, read.usage.total_tokens) == ('{"a": 1}', 14, 22)
    assert found.usage == Usage(14, 8)
    assert "asked twice" in found.warnings[0]


def test_a_server_that_ignores_the_format_is_asked_by_a_chat():
    answers = Answers(responses=[response("no")], completions=[completion('{"a": 1}')])
    (found,) = ask(answers, {"text": FORMAT})
    _, (route, second) = answers.calls
    assert (route, second["response_format"]["json_schema"]["schema"]) == ("completions", SCHEMA)
    assert [turn["role"] for turn in second["messages"]] == ["user", "assistant", "user"]
    assert Response.model_validate(found.result).output_text == '{"a": 1}'
    assert (found.usage, found.result["usage"]["total_tokens"]) == (Usage(14, 8), 22)
    hosted = {"text": FORMAT, "tools": [{"type": "web_search"}]}
    answers = Answers(responses=[response("no"), response('{"a": 1}')])
    ask(answers, hosted)
    assert [route for route, _ in answers.calls] == ["responses", "responses"]


def test_a_fence_is_removed_and_what_fits_never_is_an_error():
    (found,) = ask(Answers(responses=[response('```json\n{"a": 1}\n```')]), {"text": FORMAT})
    assert Response.model_validate(found.result).output_text == '{"a": 1}'
    with pytest.raises(BadReply, match="also when asked again") as caught:
        ask(Answers(responses=[response("no")]), {"text": FORMAT}, is_openai=True)
    assert caught.value.usage == Usage(14, 8)


def test_an_answer_that_fits_comes_out_as_it_came():
    body = response('{"a": 1}')
    answers = Answers(responses=[body])
    (found,) = ask(answers, {"text": FORMAT, "input": [{"role": "user", "content": "hi"}]})
    assert (found.result, found.warnings, len(answers.calls)) == (body, (), 1)


def test_refusals_and_calls_are_not_checked():
    said = {"id": "m", "type": "message", "role": "assistant", "status": "completed"}
    refusal = [{**said, "content": [{"type": "refusal", "refusal": "I cannot"}]}]
    (found,) = ask(Answers(responses=[response(output=refusal)]), {"text": FORMAT})
    assert (found.result["output"], found.warnings) == (refusal, ("the model refused",))
    calls = [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]
    (found,) = ask(Answers(responses=[response(output=calls)]), {"text": FORMAT})
    assert (found.result["output"], found.warnings) == (calls, ())


@pytest.mark.parametrize(
    ("output", "status", "says"),
    [
        ([], "completed", "the model sent no text"),
        ([{"type": "image_generation_call", "result": "AA"}], "completed", ""),
        ([{"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}], "incomplete",
         "all 4 tokens went into reasoning: raise max_output_tokens"),
    ],
)  # fmt: skip
def test_an_answer_without_text_is_said_to_be_one(output, status, says):
    details = {"reason": "max_output_tokens"} if status == "incomplete" else None
    body = response(status=status, output=output, incomplete_details=details)
    (found,) = ask(Answers(responses=[body]), {})
    assert "".join(found.warnings) == says
