"""Long beginnings that requests share: their names, and the first call that goes ahead alone."""

from __future__ import annotations

import asyncio

import pytest

from llmdo.backends.limits.prefixes import CACHED_FROM, FirstAhead, prefix_key
from llmdo.backends.requests import ChatRequest, EmbedRequest, Message, RawRequest

LONG = "Answer as a pirate. " * CACHED_FROM
TOOLS = [{"type": "function", "function": {"name": "f", "description": LONG}}]


def chat(text="hi", system=LONG, model="m", **parameters):
    listen = parameters.pop("listen", None)
    return ChatRequest(model, (Message("system", system), Message("user", text)), parameters, listen=listen)


def test_requests_with_the_same_long_beginning_have_one_name_whatever_follows():
    assert prefix_key(chat("a")) == prefix_key(chat("b", temperature=0.5)) != ""
    assert prefix_key(chat(system="", tools=TOOLS)) == prefix_key(chat("b", system="", tools=TOOLS)) != ""
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"description": LONG}}}
    assert prefix_key(chat(system="", response_format=schema)) != ""


@pytest.mark.parametrize(
    "other",
    [chat(model="n"), chat(system=LONG + "."), chat(tools=TOOLS), chat(response_format={"type": "json_object"})],
)
def test_another_model_instruction_tool_or_format_has_another(other):
    assert prefix_key(other) not in ("", prefix_key(chat()))


@pytest.mark.parametrize(
    "short",
    [
        chat(system="Be brief."),
        ChatRequest("m", (Message("user", LONG),)),
        ChatRequest("m", ()),
        EmbedRequest("m", (LONG,)),
        RawRequest("m", {"prompt": LONG}),
        RawRequest("m", {"input": LONG}, path="responses"),
        chat(system="\ud800" * 10_000),  # which cannot be sent at all
    ],
)
def test_what_is_short_or_not_shared_has_none(short):
    assert prefix_key(short) == ""


def test_a_body_of_responses_has_one_by_its_instructions_items_and_tools():
    body = {"input": "hi", "instructions": LONG}
    assert prefix_key(RawRequest("m", body, path="responses")) != ""
    items = [{"role": "developer", "content": LONG}, {"role": "user", "content": "hi"}]
    one, other = ([*items[:1], {"role": "user", "content": text}] for text in "ab")
    keys = {prefix_key(RawRequest("m", {"input": given}, path="responses")) for given in (one, other, items)}
    assert len(keys) == 1 and "" not in keys


class Calls:
    """Calls that wait until they are let go; ``begun`` in the order of their starts."""

    def __init__(self, pays=lambda provider, model: True):
        self.begun, self._ahead = [], FirstAhead(pays)
        self._ends = {}

    async def make(self, request, provider="p"):
        await self._ahead.wait(provider, request)
        try:
            self.begun.append(request.messages[-1].content)
            await self._ends.setdefault(id(request), asyncio.Event()).wait()
        finally:
            self._ahead.ended(request)

    def end(self, request):
        self._ends.setdefault(id(request), asyncio.Event()).set()


async def settled(calls, count):
    async with asyncio.timeout(55):
        while len(calls.begun) < count:  # noqa: ASYNC110 - what is awaited begins in other tasks
            await asyncio.sleep(0.001)
    for _ in range(20):  # nothing else is about to begin
        await asyncio.sleep(0)


def scenario(work):
    asyncio.run(work())


def test_the_first_goes_ahead_alone_and_the_others_follow_together():
    async def work():
        calls, requests = Calls(), [chat(text) for text in "abcd"]
        async with asyncio.TaskGroup() as group:
            for request in requests:
                group.create_task(calls.make(request))
            await settled(calls, 1)
            assert calls.begun == ["a"]
            calls.end(requests[0])
            await settled(calls, 4)
            assert calls.begun == ["a", "b", "c", "d"]
            for request in requests:
                calls.end(request)
            late = chat("e")
            calls.end(late)
            await calls.make(late)

    scenario(work)


@pytest.mark.parametrize("how", ["error", "cancel"])
def test_a_first_one_that_fails_holds_nobody(how):
    async def work():
        calls, first, second = Calls(), chat("a"), chat("b")

        async def failing():
            await calls._ahead.wait("p", first)
            try:
                calls.begun.append("a")
                await asyncio.Event().wait()
            finally:
                calls._ahead.ended(first)

        lead = asyncio.ensure_future(failing())
        await settled(calls, 1)
        other = asyncio.ensure_future(calls.make(second))
        await settled(calls, 1)
        lead.cancel()
        await settled(calls, 2)
        calls.end(second)
        await other
        if how == "error":  # the first one's next try waits for nobody either
            calls.end(first)
            await calls.make(first)
        assert calls.begun == ["a", "b"] + ["a"] * (how == "error")

    scenario(work)


@pytest.mark.parametrize(
    ("requests", "provider", "pays"),
    [
        ([chat("a", system="short"), chat("b", system="short")], "p", True),
        ([chat("a", system=f"{LONG}1"), chat("b", system=f"{LONG}2")], "p", True),
        ([chat("a"), chat("b", model="n")], "p", True),
        ([chat("a"), chat("b")], "p", False),
        ([chat("a"), chat("b", listen=lambda chunk: None)], "p", True),
        ([chat("a"), chat("b")], "anthropic", True),  # which marks, and writes, with the second
    ],
)
def test_nobody_is_held_back_where_it_would_not_help(requests, provider, pays):
    async def work():
        calls = Calls(lambda *_: pays)
        async with asyncio.TaskGroup() as group:
            for request in requests:
                group.create_task(calls.make(request, provider))
            await settled(calls, 2)
            assert sorted(calls.begun) == ["a", "b"]
            for request in requests:
                calls.end(request)

    scenario(work)


def test_at_anthropic_the_third_waits_for_the_second():
    async def work():
        calls, requests = Calls(), [chat(text) for text in "abc"]
        async with asyncio.TaskGroup() as group:
            for request in requests:
                group.create_task(calls.make(request, "anthropic"))
            await settled(calls, 2)
            assert calls.begun == ["a", "b"]
            calls.end(requests[0])
            await settled(calls, 2)
            calls.end(requests[1])
            await settled(calls, 3)
            calls.end(requests[2])

    scenario(work)


def test_many_beginnings_leave_nothing_behind():
    async def work():
        ahead = FirstAhead(lambda *_: True)
        for number in range(1100):
            request = chat(system=f"{LONG}{number}")
            await ahead.wait("p", request)
            ahead.ended(request)
        assert len(ahead._seen) <= 1024 >= len(ahead._ahead) and not ahead._leaders

    scenario(work)
