"""One rule for the limit of an answer's tokens, whoever reads it: the call, its estimate, its pacing."""

import asyncio

import pytest

from llmdo.backends.errors import InvalidRequest
from llmdo.backends.limits.rates import MODEST_OUTPUT, Tokens
from llmdo.backends.limits.sizes import DEFAULT_MAX_TOKENS, answer_limit, checked_token_limit, token_limit
from llmdo.backends.llama_cpp import backend as llama_cpp
from llmdo.backends.money.estimates import LONGEST_RESULT, Estimates
from llmdo.backends.openai import requests as openai_request
from llmdo.backends.openai.requests import COMPATIBLE_DIALECT, OPENAI_DIALECT
from llmdo.backends.requests import ChatRequest, EmbedRequest, Message, RawRequest
from llmdo.backends.usage import Usage
from llmdo.backends.workers_ai.batch import batch_state
from llmdo.backends.workers_ai.requests import body_of
from llmdo.backends.workers_ai.shapes import Reply

TEXT = "x" * 400


def chat(parameters):
    return ChatRequest("m", (Message("user", TEXT),), parameters)


def openai_body(parameters, **options):
    dialect = OPENAI_DIALECT if options else COMPATIBLE_DIALECT
    body, _ = openai_request.chat_body(chat(parameters), dialect, **options)
    assert len({"max_tokens", "max_completion_tokens"} & body.keys()) <= 1
    return body.get("max_tokens", body.get("max_completion_tokens"))


def finish_in_a_batch(parameters, tokens):
    """The finish reason read from an answer of ``tokens`` tokens that gives none."""
    said = {"response": "x", "usage": {"prompt_tokens": 1, "completion_tokens": tokens}}
    reply = Reply({"responses": [{"id": 0, "result": said, "success": True}]})

    async def read():
        return [answer async for _, answer in batch_state(reply, "m", [chat(parameters)], 0.0).results]

    (answer,) = asyncio.run(read())
    return answer.finish_reason


# Each with what it takes where a request sets no limit.
READERS = {
    "OpenAI": (lambda p: openai_body(p, new_limit=True), None),
    "a compatible server": (openai_body, None),
    "Workers AI, native": (lambda p: body_of(chat(p))["max_tokens"], DEFAULT_MAX_TOKENS),
    "Workers AI, chat": (lambda p: body_of(chat(p), "chat")["max_tokens"], DEFAULT_MAX_TOKENS),
    "the embedded model": (lambda p: llama_cpp._chat_body(chat(p))[0]["max_tokens"], llama_cpp._MAX_TOKENS),
    "the estimate": (lambda p: Estimates().most(chat(p)).output_tokens, DEFAULT_MAX_TOKENS),
    "the pace": (lambda p: Tokens().estimate(chat(p)) - len(TEXT) / 4, MODEST_OUTPUT),
    "anybody": (token_limit, None),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("parameters", "limit"),
    [
        ({"max_tokens": 100}, 100),
        ({"max_completion_tokens": 100}, 100),
        ({"max_tokens": 4000, "max_completion_tokens": 100}, 100),
        ({"max_tokens": 100, "max_completion_tokens": 4000}, 100),
        ({"max_tokens": None, "max_completion_tokens": 100}, 100),
        ({"max_tokens": 100, "max_completion_tokens": None}, 100),
        ({"max_tokens": 5000}, 5000),
        ({"max_tokens": None}, None),
        ({}, None),
    ],
)
def test_all_read_the_same_limit(reader, parameters, limit):
    read, without = READERS[reader]
    assert read(parameters) == (without if limit is None else limit)


@pytest.mark.parametrize("reader", ["the estimate", "the pace", "anybody"])
@pytest.mark.parametrize("limit", [True, False, 0, -4000, 1.5, "100", [1]])
def test_what_is_not_a_limit_sets_none_and_its_call_is_refused(reader, limit):
    read, without = READERS[reader]
    assert read({"max_tokens": limit}) == without
    assert read({"max_tokens": limit, "max_completion_tokens": 100}) == 100
    with pytest.raises(InvalidRequest, match="max_tokens"):
        checked_token_limit({"max_tokens": limit, "max_completion_tokens": 100})


@pytest.mark.parametrize(
    ("given", "limit"),
    [
        ({"max_output_tokens": 9}, 9),
        ({"max_length": 9}, 9),
        ({"max_tokens": 4, "max_completion_tokens": 9}, 9),  # passed on as it is: the model may read either
        ({"max_tokens": -100_000}, None),
        ({"max_tokens": True}, None),
        ({"max_tokens": 100.0}, 100),
        ({"max_tokens": 100.5}, None),
    ],
)
def test_of_a_models_own_input_the_highest_limit_counts(given, limit):
    request = RawRequest("m", given)
    assert answer_limit(request) == limit
    assert Estimates().most(request).output_tokens == (LONGEST_RESULT if limit is None else limit)
    assert Tokens().estimate(request) == (limit or 0)


def test_vectors_are_not_tokens():
    tokens = Tokens()
    tokens.measured(chat({}), Usage(100, 50))
    assert answer_limit(EmbedRequest("m", ("a",))) == 0
    assert tokens.estimate(EmbedRequest("m", ("a" * 4,))) == 1


@pytest.mark.parametrize(("parameters", "limit"), [({"max_tokens": 40, "max_completion_tokens": 7}, 7), ({}, 2048)])
def test_an_answer_of_a_batch_is_cut_off_at_the_same_limit(parameters, limit):
    assert finish_in_a_batch(parameters, limit) == "length"
    assert finish_in_a_batch(parameters, limit - 1) != "length"
