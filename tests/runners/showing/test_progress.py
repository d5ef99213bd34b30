import asyncio
import logging
import threading
import time
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from llmdo.backends.engine import registry
from llmdo.backends.engine.registry import close_engines, get_engine
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import ConnectionFailed
from llmdo.backends.limits.rates import NO_RATES
from llmdo.backends.limits.throttle import Change, ModelLimits
from llmdo.backends.money.money import Budget, Spent
from llmdo.backends.money.prices import Prices
from llmdo.backends.requests import ChatRequest, Message
from llmdo.backends.responses import ChatResponse, ModelInfo, Models, Price
from llmdo.backends.usage import Usage
from llmdo.runners.showing.progress import ProgressDisplay, Rate, status_line, stream_line
from llmdo.runners.showing.report import show_summary
from llmdo.runners.showing.summary import Summary
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import Location
from llmdo.storage.output.manifests import Manifest, put_shard, write_manifest
from llmdo.transforms.elements import FileVersion, Settled
from llmdo.transforms.files.folders import folder_of
from llmdo.transforms.run_state import Counts, RunState


def console():
    return Console(file=StringIO(), width=200)


def test_the_status_line_has_lines_calls_tokens_errors_and_files():
    state = RunState()
    file = FileVersion("r2://bucket", "a.jsonl", "e", 10)
    state.open(file)
    state.open(FileVersion("r2://bucket", "b.jsonl", "e", 10))
    state.settle(Settled(file, "done", 3, 1))
    state.add(answered=1500, failed=1, input_tokens=2000, output_tokens=345)
    said = status_line(state, Rate())
    for part in ("1,501 lines", "calls/s", "2,345 tokens", "1 errors", "1/2 files"):
        assert part in said


def test_requests_that_wait_in_batches_are_told_where_there_are_any(monkeypatch):
    for line in (status_line, stream_line):
        monkeypatch.setattr("llmdo.runners.showing.progress.requests_in_batches", lambda run_id: 0)
        assert "batches" not in line(RunState(), Rate())
        monkeypatch.setattr("llmdo.runners.showing.progress.requests_in_batches", lambda run_id: 1234)
        assert " · 1,234 in batches · " in line(RunState(), Rate())


def test_the_rate_is_that_of_the_last_seconds(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("llmdo.runners.showing.progress.time.monotonic", lambda: now[0])
    rate = Rate()
    for second in range(1, 61):
        now[0] = float(second)
        found = rate(0 if second <= 40 else (second - 40) * 7)
    assert 6.5 <= found <= 7.5


def test_without_a_terminal_there_are_plain_lines_and_no_control_characters():
    shown = console()
    with ProgressDisplay(shown)(RunState()):
        pass
    text = shown.file.getvalue()
    assert "0 lines" in text and "\x1b" not in text


def test_the_summary_has_every_file_with_its_end_and_some_answers(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text('{"prompt": "Why [red]is[/] the sky blue?"}\n')
    info = open_store(str(tmp_path / "in")).stat("a.jsonl")
    file = FileVersion(str(tmp_path / "in"), "a.jsonl", info.etag, info.size)
    output = Location(str(tmp_path / "out"), "")
    row = (
        b'{"response": {"body": {"choices": [{"message": {"content": "Rayleigh [bold]scattering"}}]}}, '
        b'"source": {"offset": 0, "length": %d}}' % info.size
    )
    folder, store = folder_of(output, file), open_store(output.store_url)
    shard = put_shard(store, folder, "answers", [(0, info.size, row)], configuration="c")
    counts = {"answered": 1, "failed": 0, "blank": 0, "input_tokens": 1, "output_tokens": 1}
    names = {"bucket": "", "key": "a.jsonl", "etag": info.etag, "size": info.size, "length": info.size}
    listed = ({"name": shard.name, "kind": "answers", "lines": 1, "tiles": shard.tiles},)
    manifest = {**names, **counts, "configuration": "c", "run_id": "r", "created_at": "now", "shards": listed}
    write_manifest(store, folder, Manifest.model_validate(manifest))
    gone = FileVersion("r2://bucket", "gone.jsonl", "e", 1)
    late = FileVersion("r2://bucket", "late.jsonl", "e", 1)
    summary = Summary(
        "r",
        Counts(messages_passed_over=2),
        (Settled(file, "done", 1, 0), Settled(gone, "stale", reason="overwritten")),
        (late,),
        {"r2://bucket/odd.jsonl": "its manifest is torn"},
        others={"r2://bucket/other.jsonl": "run-7"},
    )
    shown = console()
    show_summary(summary, output, shown, samples=1)
    text = shown.file.getvalue()
    for part in ("a.jsonl", "stale: overwritten", "in progress: the next run resumes", "left: its manifest is torn"):
        assert part in text
    for part in ("in progress at run-7", "2 messages", "Why [red]is[/] the sky blue?", "Rayleigh [bold]scattering"):
        assert part in text
    shown = console()
    show_summary(summary, output, shown)
    assert "a.jsonl" in shown.file.getvalue() and "sky" not in shown.file.getvalue()
    assert "Rayleigh" not in shown.file.getvalue()


def test_the_status_line_has_the_cost_where_there_is_one():
    state = RunState()
    assert "$" not in status_line(state, Rate())
    listed = Models((ModelInfo("p/m", price=Price(1.0, 1.0)), ModelInfo("p/free")))
    state.budget = Budget(prices=Prices(lambda provider: listed))
    state.budget.prices.of("p", "m")
    request = ChatRequest("m", (Message("user", "x"),))
    state.budget.after("p", request, ChatResponse("x", "stop", Usage(1_000_000, 0), "m"))
    assert " · $1.00 · " in status_line(state, Rate())
    state.budget.after("p", request, ChatResponse("x", "stop", Usage(), "m"))
    assert " · ≥ $1.00 · " in status_line(state, Rate())


def test_the_end_tells_what_was_spent(tmp_path):
    shown = console()
    spent = Spent(3, 1000, 20, None, 0.0421, 1)
    show_summary(Summary("r", Counts(), (), (), {}, spent=spent), Location(str(tmp_path), ""), shown)
    assert "Spent: ≥ $0.042 at list prices, 1,000 tokens in, 20 out." in shown.file.getvalue()
    assert "Perhaps" not in shown.file.getvalue()


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ((2, 3000, 40, 0.012), "at most $0.012, 3,000 tokens in, 40 out, for 2 calls whose replies were lost."),
        ((1, 3000, 40, None), "an unknown cost, 3,000 tokens in, 40 out, for 1 call whose reply was lost."),
    ],
)
@pytest.mark.parametrize("calls", [0, 3])
def test_the_end_tells_what_lost_calls_may_have_cost_besides(tmp_path, calls, lost, said):
    shown = console()
    spent = Spent(calls, 1000 * calls, 0, None, 0.5, 0, *lost)
    show_summary(Summary("r", Counts(), (), (), {}, spent=spent), Location(str(tmp_path), ""), shown)
    text = " ".join(shown.file.getvalue().split())
    assert f"Spent: $0.50 at list prices, {1000 * calls:,} tokens in, 0 out. May also have been billed: {said}" in text


def test_the_end_tells_what_held_calls_back_and_what_the_queue_still_holds(tmp_path):
    limits = ModelLimits("p", "[m]", 41, None, NO_RATES, 0, 9, 2, 0.0, 0.0, (Change(0.0, 41, None, 1.0, "refused"),))
    quiet = replace(limits, model="quiet", changes=())
    shown = console()
    summary = Summary("r", Counts(), (), (), {}, limits=(limits, quiet), backlog=1200)
    show_summary(summary, Location(str(tmp_path), ""), shown)
    text = shown.file.getvalue()
    assert "p/[m]: slowed down once by refusals (2 of 9 calls)" in text and "quiet" not in text
    assert "The queue still holds about 1,200 messages" in text
    assert "Run again after 300 s." in " ".join(text.split())
    shown = console()
    show_summary(Summary("r", Counts(), (), (), {}, backlog=0), Location(str(tmp_path), ""), shown)
    assert "queue" not in shown.file.getvalue()


class Away:
    """A provider that cannot be reached until ``back`` is set; ``held``: a probe is under way until it is set."""

    name = "openai"

    def __init__(self):
        self.back, self.held = threading.Event(), threading.Event()
        self.held.set()
        self.calls = 0

    async def execute(self, request):
        self.calls += 1
        while not self.held.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # the event is another thread's
        if not self.back.is_set():
            raise ConnectionFailed("m: openai could not be reached", lost=False)
        return ChatResponse("x", "stop", Usage(1, 1), request.model)

    async def aclose(self):
        pass


def seen(line, part):
    """The first progress line that has a part, within a minute."""
    end = time.monotonic() + 60
    while part not in (said := line(RunState(), Rate())):
        assert time.monotonic() < end, said
        time.sleep(0.02)
    return said


@pytest.mark.parametrize("line", [status_line, stream_line])
def test_who_looks_sees_that_a_service_is_away_when_it_is_tried_next_and_that_it_is_back(monkeypatch, caplog, line):
    close_engines()
    backend, done = Away(), []
    monkeypatch.setattr(registry, "connect", lambda *_, **__: backend)
    try:
        engine = get_engine(CallSettings(4))
        assert "not answered" not in line(RunState(), Rate())
        with caplog.at_level(logging.WARNING):
            for number in range(3):
                engine.submit("openai", ChatRequest("m", (Message("user", str(number)),)), done.append)
            said = seen(line, "next try in")
            assert "openai/m has not answered for " in said and " s, next try in " in said
            backend.held.clear()
            assert "openai/m has not answered for " in seen(line, "trying now")
            backend.back.set()
            backend.held.set()
            end = time.monotonic() + 60
            while len(done) < 3:
                assert time.monotonic() < end
                time.sleep(0.02)
        assert "not answered" not in line(RunState(), Rate())
        assert [one.error for one in done] == [None] * 3
        told = [record.getMessage() for record in caplog.records]
        assert "openai/m does not answer, calls pause: m: openai could not be reached" in told
        assert [text.rpartition(",")[0] for text in told if "again" in text] == ["openai/m answers again"]
    finally:
        backend.back.set()
        backend.held.set()
        close_engines()
