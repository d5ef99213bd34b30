"""Answers in the background of /v1/responses: what is asked, and what each reply to it and to a look means."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from llmdo.backends.errors import ConnectionFailed, InvalidRequest, ModelNotFound, Overloaded, RateLimited, Retryable
from llmdo.backends.openai.backend import Service
from llmdo.backends.openai_batches.backend import OpenAIWithBatches
from llmdo.backends.requests import ChatRequest, EmbedRequest, Message, RawRequest
from llmdo.backends.responses import ChatResponse, RawResponse
from tests.backends.wire import Wire

NAME = "2h:resp_1"
ANSWERED = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1_780_000_000,
    "status": "completed",
    "model": "gpt-5-mini-2026",
    "background": True,
    "instructions": "be short",
    "service_tier": "default",
    "error": None,
    "output": [
        {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "hm"}]},
        {
            "type": "message",
            "id": "m",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "so", "annotations": [], "logprobs": []}],
        },
    ],
    "usage": {
        "input_tokens": 20,
        "input_tokens_details": {"cached_tokens": 5},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 27,
    },
}
QUEUED = {**ANSWERED, "status": "queued", "output": [], "usage": None}


class World:
    """``asked``: method, path and body of each call; ``reply``: what comes to the next ones."""

    def __init__(self, reply=QUEUED, status=200, url="https://api.openai.com/v1"):
        self.asked, self.reply, self.status = [], reply, status
        service = Service("openai", url, {"authorization": "Bearer k"}, "OPENAI_API_KEY", is_openai="openai" in url)
        self.backend = OpenAIWithBatches(service, Wire(self._answer))

    def _answer(self, request):
        self.asked.append((request.method, request.url.path, json.loads(request.content or b"null")))
        if isinstance(self.reply, str):
            return httpx.Response(self.status, text=self.reply, headers={"content-type": "text/html"})
        return httpx.Response(self.status, json=self.reply)

    def begin(self, request, window="2h"):
        return asyncio.run(self.backend.begin(request, window))

    def look(self, request, name=NAME):
        """None while it is worked on; else all results by position."""

        async def results():
            state = await self.backend.poll_batch(request.model, name, [request], [])
            return None if state.results is None else [one async for one in state.results]

        return asyncio.run(results())


def chat(**parameters):
    messages = (Message("system", "be short"), Message("user", "why?"))
    return ChatRequest("gpt-5-mini", messages, parameters, "line 1")


def raw(**body):
    return RawRequest("gpt-5-mini", {"input": "why?", **body}, "line 1", path="responses")


def test_a_chat_becomes_a_response_in_the_background():
    world = World()
    assert world.begin(chat(max_tokens=50, reasoning_effort="low")) == NAME
    ((method, path, body),) = world.asked
    assert (method, path) == ("POST", "/v1/responses")
    assert {name: body[name] for name in ("background", "background_options", "store", "max_output_tokens")} == {
        "background": True,
        "background_options": {"completion_window": "2h"},
        "store": True,
        "max_output_tokens": 50,
    }
    assert body["reasoning"] == {"effort": "low"}
    assert "max_completion_tokens" not in body


def test_a_body_of_responses_is_passed_on_and_its_own_options_stay():
    world = World()
    asked = raw(background_options={"completion_window": "2h", "continuation_id": "c"}, metadata={"a": "b"})
    assert world.begin(asked, "8h") == "8h:resp_1"
    body = world.asked[0][2]
    assert body["background_options"] == {"completion_window": "8h", "continuation_id": "c"}
    assert (body["input"], body["metadata"], body["model"]) == ("why?", {"a": "b"}, "gpt-5-mini")


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (chat(stop=["x"]), "stop"),
        (chat(store=False), "store"),
        (raw(store=False), "store is false"),
        (raw(stream=True), "stream is true"),
        (RawRequest("m", {"input": "a"}, path="moderations"), "only chats and /v1/responses"),
        (EmbedRequest("m", ("a",)), "only chats and /v1/responses"),
    ],
)
def test_what_the_background_does_not_have_is_said_before_anything_is_sent(request_, said):
    world = World()
    assert said in world.backend.background_problem(request_)
    with pytest.raises(InvalidRequest, match=said):
        world.begin(request_)
    assert world.asked == []
    assert world.backend.background_problem(chat(max_tokens=50)) == world.backend.background_problem(raw()) == ""


@pytest.mark.parametrize("status", ["queued", "in_progress"])
def test_a_look_finds_one_that_is_worked_on(status):
    world = World({**QUEUED, "status": status})
    assert world.look(chat()) is None
    assert world.asked == [("GET", "/v1/responses/resp_1", None)]


def test_the_answer_to_a_chat_is_as_a_calls_would_be():
    ((number, answer),) = World(ANSWERED).look(chat())
    assert number == 0
    assert isinstance(answer, ChatResponse)
    assert (answer.text, answer.reasoning, answer.finish_reason, answer.lane) == ("so", "hm", "stop", "2h")
    assert (answer.model, answer.warnings) == ("gpt-5-mini-2026", ())
    usage = answer.usage
    assert (usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.reasoning_tokens) == (20, 7, 5, 3)
    assert answer.body == {
        "id": "resp_1",
        "created": 1_780_000_000,
        "service_tier": "default",
        "usage": {
            "prompt_tokens": 20,
            "prompt_tokens_details": {"cached_tokens": 5},
            "completion_tokens": 7,
            "completion_tokens_details": {"reasoning_tokens": 3},
            "total_tokens": 27,
        },
    }


def test_log_probabilities_and_refusals_stand_where_a_chat_has_them():
    part = ANSWERED["output"][1]["content"][0]
    probable = {"token": "so", "logprob": -0.1, "bytes": [115, 111], "top_logprobs": []}
    message = {**ANSWERED["output"][1], "content": [{**part, "logprobs": [probable]}]}
    ((_, answer),) = World({**ANSWERED, "output": [message]}).look(chat(logprobs=True))
    assert answer.body["choices"][0]["logprobs"]["content"] == [probable]
    message = {**ANSWERED["output"][1], "content": [{"type": "refusal", "refusal": "I won't"}]}
    ((_, answer),) = World({**ANSWERED, "output": [message]}).look(chat())
    assert (answer.text, answer.refused, answer.warnings) == ("I won't", True, ("the model refused",))


def test_the_answer_to_a_body_of_responses_is_as_it_came():
    ((_, answer),) = World(ANSWERED).look(raw())
    assert isinstance(answer, RawResponse)
    assert (answer.result["id"], answer.result["output"], answer.lane) == ("resp_1", ANSWERED["output"], "2h")


def test_an_answer_that_is_cut_off_says_so():
    cut = {**ANSWERED, "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    ((_, answer),) = World(cut).look(chat(max_tokens=50))
    assert answer.finish_reason == "length"
    assert any("cut off" in warning and "max_output" not in warning for warning in answer.warnings)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": "server_error", "message": "The model failed."}, Overloaded),
        ({"code": "rate_limit_exceeded", "message": "Too fast."}, RateLimited),
    ],
)
def test_one_that_failed_is_an_error_that_is_tried_again(error, kind):
    ((_, result),) = World({**ANSWERED, "status": "failed", "output": [], "error": error}).look(chat())
    assert isinstance(result, kind)
    assert (result.lane, result.provider) == ("2h", "openai")


def test_one_that_was_ended_has_no_result():
    assert World({**QUEUED, "status": "cancelled"}).look(chat()) == []


def test_an_answer_that_does_not_keep_to_its_format_is_asked_for_by_a_call():
    asked = chat(response_format={"type": "json_object"})
    ((_, result),) = World(ANSWERED).look(asked)
    assert isinstance(result, Retryable)
    assert "does not keep to its format" in result.message
    assert result.usage.output_tokens == 7  # and was paid


@pytest.mark.parametrize(
    ("reply", "status", "error"),
    [
        ({"error": {"message": "Response with id 'resp_1' not found."}}, 404, ModelNotFound),
        ({"error": {"message": "busy"}}, 503, Overloaded),
        ("<html>a login page</html>", 200, ConnectionFailed),
        ({"object": "list", "data": []}, 200, ConnectionFailed),
        ("<html>bad gateway</html>", 502, Retryable),
    ],
)
def test_a_look_that_fails_is_no_result(reply, status, error):
    with pytest.raises(error) as raised:
        World(reply, status).look(chat())
    assert raised.value.lost in (False, None)


def test_a_service_that_answers_at_once_and_one_that_refuses():
    answer = World(ANSWERED).begin(chat())
    assert (answer.text, answer.lane) == ("so", "")
    with pytest.raises(InvalidRequest, match="completion_window"):
        World({"error": {"message": "Unknown parameter: 'background_options.completion_window'."}}, 400).begin(chat())


def test_it_is_ended_by_its_name():
    world = World({**QUEUED, "status": "cancelled"})
    asyncio.run(world.backend.cancel_batch("gpt-5-mini", "8h:resp_1"))
    assert world.asked == [("POST", "/v1/responses/resp_1/cancel", None)]
    with pytest.raises(InvalidRequest, match="Cannot cancel"):
        asyncio.run(
            World({"error": {"message": "Cannot cancel a completed response."}}, 400).backend.cancel_batch("m", NAME)
        )


def test_a_call_is_not_paid_for_an_answer_that_it_would_not_wait_for():
    world = World()
    with pytest.raises(InvalidRequest, match="leave background out, or run with --lane 2h or 8h"):
        asyncio.run(world.backend.run(raw(background=True)))
    with pytest.raises(InvalidRequest, match="no call waits"):
        world.backend.check(raw(background=True))
    assert world.asked == []
