"""Which entry of the ledger is whose, when files grow, lines move, runs die, and an earlier version kept answers."""

import asyncio
import json

import pytest

from llmdo.backends.engine.recall import Recall
from llmdo.backends.errors import StopRun
from llmdo.backends.requests import ChatRequest, EmbedRequest, LineId, Message
from llmdo.backends.responses import ChatResponse, EmbedResponse
from llmdo.backends.usage import Usage
from tests.fakes.ledger import MemoryLedger


class Asking:
    """Answers each call with its number, over a ledger."""

    def __init__(self):
        self.ledger, self.calls = MemoryLedger(), 0
        self.recall = Recall(self.ledger, "same-line")

    def again(self):
        """As another run, with the same ledger."""
        self.recall = Recall(self.ledger, "same-line")
        return self

    async def _call(self, request):
        self.calls += 1
        number = self.calls
        await asyncio.sleep(0)
        if isinstance(request, EmbedRequest):
            return EmbedResponse(tuple((float(number), float(i)) for i in range(len(request.texts))), Usage(), "m")
        return ChatResponse(str(number), "stop", Usage(), "m")

    async def line(self, text, version, start, place="/in/q.jsonl", resumed=False):
        line = LineId.of(f"{place}@{version}:{start}", place, version, start, resumed=resumed)
        request = ChatRequest("m", (Message("user", text),), request_id=line)
        return (await self.recall.answer("p", request, self._call)).text

    def lines(self, *lines):
        async def all_at_once():
            return await asyncio.gather(*(self.line(*line) for line in lines))

        return asyncio.run(all_at_once())


@pytest.fixture
def asking():
    return Asking()


def test_a_line_at_the_same_place_of_a_later_version_has_its_answer(asking):
    first = asking.lines(("a", "v1", 0), ("b", "v1", 10))
    assert asking.again().lines(("a", "v2", 0), ("b", "v2", 10), ("c", "v2", 20)) == [*first, "3"]
    assert asking.calls == 3


def test_equal_lines_of_one_version_have_an_answer_each_in_every_run(asking):
    first = asking.lines(("a", "v1", 0), ("a", "v1", 10), ("a", "v1", 20))
    assert len(set(first)) == 3
    assert asking.again().lines(("a", "v1", 0), ("a", "v1", 10), ("a", "v1", 20)) == first
    assert [asking.again().lines(("a", "v1", at))[0] for at in (20, 10, 0)] == first[::-1]
    # Grown: each keeps its own, whatever the order in which they ask.
    assert asking.again().lines(("a", "v2", 20), ("a", "v2", 10), ("a", "v2", 0)) == first[::-1]
    assert asking.calls == 3


def test_of_equal_lines_that_have_moved_one_takes_the_answer_and_keeps_it_over_runs(asking):
    (first,) = asking.lines(("a", "v1", 0))
    moved = asking.again().lines(("a", "v2", 50), ("a", "v2", 60))
    assert moved == [first, "2"]
    assert asking.again().lines(("a", "v2", 60), ("a", "v2", 50)) == ["2", first]
    assert asking.calls == 2


def test_equal_lines_of_two_places_are_strangers(asking):
    assert asking.lines(("a", "v1", 0, "/in/l/q.jsonl"), ("a", "v1", 0, "/in/r/q.jsonl")) == ["1", "2"]


def test_an_answer_of_an_earlier_version_of_llmdo_is_found_where_its_file_goes_on(asking):
    line = LineId.of("/in/q.jsonl@v1:0", "/in/q.jsonl", "v1", 0)
    request = ChatRequest("m", (Message("user", "a"),), request_id=str(line))  # a plain id, as it was then
    asyncio.run(asking.recall.answer("p", request, asking._call))
    assert asking.again().lines(("a", "v1", 0, "/in/q.jsonl", True)) == ["1"]
    assert asking.lines(("a", "v2", 0)) == ["2"]


def test_texts_of_a_line_are_known_by_the_line_and_its_later_versions_too(asking):
    def embed(version, *texts):
        line = LineId.of(f"id {version}", "/in/q.jsonl", version, 0)
        request = EmbedRequest("m", texts, line_ids=(line,) * len(texts))
        return asyncio.run(asking.again().recall.answer("p", request, asking._call)).vectors

    first = embed("v1", "x", "y", "x")
    assert first[0] == first[2] != first[1]
    assert embed("v1", "x", "y", "x") == embed("v2", "x", "y", "x") == first
    assert asking.calls == 1
    assert embed("v3", "x", "z")[0] == first[0]
    assert asking.calls == 2


def test_a_line_whose_call_failed_leaves_its_place_to_an_equal_one(asking):
    async def fails(_):
        raise StopRun("no")

    line = LineId.of("x", "/in/q.jsonl", "v1", 0)
    with pytest.raises(StopRun):
        asyncio.run(asking.recall.answer("p", ChatRequest("m", (Message("user", "a"),), request_id=line), fails))
    assert asking.lines(("a", "v1", 10)) == ["1"]
    (value,) = asking.ledger.kept.values()
    assert json.loads(value)["line"] == ["v1", 10]


def test_a_ledger_that_cannot_note_whose_an_answer_is_stops_the_run(asking):
    asking.lines(("a", "v1", 0))
    asking.ledger.put_error = OSError("full")
    with pytest.raises(StopRun, match="cannot keep whose an answer is"):
        asking.again().lines(("a", "v2", 5))
