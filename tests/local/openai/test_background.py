"""Responses in the background of the local OpenAI, by the official client."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.responses import Response

from tests.local.cloudflare import Running
from tests.local.openai.batching import client_of

MODEL = "gpt-5-mini"
WINDOW: Any = {"completion_window": "2h"}


def begun(client: OpenAI, prompt: str = "a b", **more: Any) -> Response:
    return client.responses.create(
        **{"model": MODEL, "input": prompt, "background": True, "background_options": WINDOW, **more}
    )


def until(client: OpenAI, response: Response, holds: Callable[[Response], bool]) -> Response:
    deadline = time.monotonic() + 60
    while not holds(response):
        assert time.monotonic() < deadline, response
        time.sleep(0.01)
        response = client.responses.retrieve(response.id)
    return response


def ended(client: OpenAI, response: Response) -> Response:
    return until(client, response, lambda one: str(one.status) in ("completed", "incomplete", "failed", "cancelled"))


def test_a_response_is_taken_at_once_answered_later_and_paid_once(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    made = begun(client, metadata={"nonce": "abc"}, extra_headers={"x-llmdo-line": "line 1"})
    assert (made.status, made.background, made.output, made.usage) == ("queued", True, [], None)
    done = ended(client, made)
    assert (done.id, done.status, done.output_text, done.model) == (made.id, "completed", "echo: a b", MODEL)
    assert (done.metadata, done.background, done.service_tier) == ({"nonce": "abc"}, True, "default")
    assert done.usage
    assert (done.usage.input_tokens, done.usage.output_tokens) == (2, 3)
    assert client.responses.retrieve(made.id) == done
    assert cloudflare.stats()["paid"] == {**cloudflare.stats()["paid"], "calls": 1, "by_line": {"line 1": 1}}


def test_an_answer_that_is_cut_off_is_incomplete(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    done = ended(client, begun(client, max_output_tokens=2))
    assert (done.status, done.output_text) == ("incomplete", "echo: a")
    assert done.incomplete_details
    assert done.incomplete_details.reason == "max_output_tokens"


def test_one_that_is_held_up_can_be_cancelled_and_is_not_paid(cloudflare: Running) -> None:
    cloudflare.fault("openai", batch="hold", state="queued", match="a b")
    client = client_of(cloudflare)
    made = begun(client)
    assert client.responses.retrieve(made.id).status == "queued"
    assert client.responses.cancel(made.id).status == "cancelled"
    assert client.responses.cancel(made.id).status == "cancelled"
    cloudflare.clear_faults()
    assert ended(client, begun(client, "c")).output_text == "echo: c"
    assert client.responses.retrieve(made.id).status == "cancelled"
    assert cloudflare.stats()["paid"]["calls"] == 1


def test_one_that_has_ended_cannot_be_cancelled(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    done = ended(client, begun(client))
    with pytest.raises(openai.BadRequestError, match="Cannot cancel"):
        client.responses.cancel(done.id)


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ({"batch": "fail"}, "failed", "server_error"),
        ({"batch": "fail", "code": "rate_limit_exceeded"}, "failed", "rate_limit_exceeded"),
        ({"batch": "cancel"}, "cancelled", None),
        ({"batch": "row", "status": 429}, "failed", "rate_limit_exceeded"),
    ],
)
def test_faults_end_it_without_an_answer(
    cloudflare: Running, fault: dict[str, Any], status: str, code: str | None
) -> None:
    cloudflare.fault("openai", **fault)
    client = client_of(cloudflare)
    done = ended(client, begun(client))
    assert (done.status, done.output, done.error and done.error.code) == (status, [], code)
    assert cloudflare.stats()["paid"]["calls"] == 0


def test_a_state_that_openai_does_not_have_passes(cloudflare: Running) -> None:
    cloudflare.fault("openai", batch="hold", state="rescheduled", polls=2)
    client = client_of(cloudflare)
    made = until(client, begun(client), lambda one: str(one.status) == "rescheduled")
    assert ended(client, made).output_text == "echo: a b"


def test_a_lost_reply_is_one_that_is_worked_on(cloudflare: Running) -> None:
    cloudflare.fault("openai", match="#responses", drop=True, after=True, count=1)
    client = client_of(cloudflare)
    with pytest.raises(openai.APIConnectionError):
        begun(client, "lost")
    assert ended(client, begun(client, "kept")).status == "completed"
    deadline = time.monotonic() + 60
    while cloudflare.stats()["paid"]["calls"] < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_who_has_another_key_and_who_asks_for_what_was_forgotten_finds_nothing(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    made = begun(client)
    with pytest.raises(openai.NotFoundError):
        client_of(cloudflare, "sk-other").responses.retrieve(made.id)
    cloudflare.fault("openai", batch="forget")
    gone = begun(client)
    with pytest.raises(openai.NotFoundError, match="not found"):
        client.responses.retrieve(gone.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.cancel(gone.id)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"background_options": {"completion_window": "1h"}}, "soonest, 2h, 8h"),
        ({"background": False}, "needs 'background': true"),
        ({"store": False}, "stored"),
        ({"stream": True}, "streamed"),
        ({"service_tier": "flex"}, "default service tier"),
        ({"metadata": {"k": 1}}, "metadata"),
        ({"input": None}, "input"),
    ],
)
def test_what_does_not_go_with_a_window_is_refused(cloudflare: Running, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said):
        begun(client_of(cloudflare), **wrong)
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        begun(client_of(cloudflare), model="gpt-none")
    assert cloudflare.stats()["paid"]["calls"] == 0


def test_the_tier_is_free_where_no_window_is_asked_for(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    assert ended(client, begun(client, background_options={}, service_tier="flex")).service_tier == "flex"
