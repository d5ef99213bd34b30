import asyncio
import json
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
from llmdo.backends.money.money import Budget
from llmdo.backends.money.prices import Prices
from llmdo.backends.money.spent import Spent
from llmdo.backends.requests import ChatRequest, Message
from llmdo.backends.responses import ChatResponse, ModelInfo, Models, Price
from llmdo.backends.usage import Usage
from llmdo.runners.showing.progress import Meters, ProgressDisplay, Rate, open_files, status_line, stream_line
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


def said_of(line, state, meters=None):
    return line((meters or Meters()).look(state), state)


def test_the_status_line_has_lines_calls_tokens_errors_and_files():
    state = RunState()
    file = FileVersion("r2://bucket", "a.jsonl", "e", 10)
    state.open(file)
    state.open(FileVersion("r2://bucket", "b.jsonl", "e", 10))
    state.settle(Settled(file, "done", 3, 1))
    state.add(answered=1500, failed=1, input_tokens=2000, output_tokens=345)
    said = said_of(status_line, state)
    for part in ("1,501 lines · ", "/s · ", "2,345 tokens", "1 error · ", "1 of 2 files"):
        assert part in said
    state.add(failed=1)
    assert "2 errors" in said_of(status_line, state)
    assert "0 lines" in said_of(status_line, RunState()) and "0 of 0 files" in said_of(status_line, RunState())


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("llmdo.runners.showing.progress.time.monotonic", lambda: now[0])
    return now


def test_what_is_left_and_what_it_will_cost_follow_from_the_part_that_is_done(clock):
    state, meters = RunState(), Meters()
    file = FileVersion("r2://bucket", "a.jsonl", "e", 1_000)
    state.open(file)
    state.budget = paid(0.0)
    assert meters.look(state).left_s is None
    for second in range(1, 21):
        clock[0] = float(second)
        state.add_done(file, 10, answered=1)
        now = meters.look(state)
    assert (now.lines, now.lines_expected, now.part_done) == (20, 100, 0.2)
    assert now.left_s == pytest.approx(80.0, rel=0.01) and now.lines_per_s == pytest.approx(1.0, rel=0.01)
    state.budget = paid(1.5)
    now = meters.look(state)
    assert now.expected_usd == pytest.approx(7.5)
    said = status_line(now, state)
    for part in ("20 lines of ≈ 100", "1 min 20 s left", "$1.50 of ≈ $7.50"):
        assert part in said
    assert state.done_of(file.id) == 200
    state.settle(Settled(file, "done", 20, 0))
    assert state.done_of(file.id) == 0


def test_for_machines_the_same_figures_are_json(clock, monkeypatch):
    state = RunState()
    file = FileVersion("r2://bucket", "a.jsonl", "e", 100)
    state.open(file)
    state.add_done(file, 25, failed=2)
    said = Meters().look(state).as_json()
    assert json.loads(json.dumps(said)) == said
    expected = {"lines": 2, "failed": 2, "part_done": 0.25, "lines_expected": 8, "files_open": 1, "waiting": None}
    assert said | expected == said
    shown = console()
    monkeypatch.setattr("llmdo.runners.showing.progress._PLAIN_EVERY", 0.01)
    with ProgressDisplay(shown, as_json=True)(state):
        pass
    assert [json.loads(line)["failed"] for line in shown.file.getvalue().splitlines()][-1] == 2


def test_a_large_terminal_has_a_table_of_the_open_files():
    state = RunState()
    assert open_files(state, 60) is None
    for number in range(50):
        state.open(FileVersion("r2://bucket", f"[b]{number:02}.jsonl", "e", 1_000))
    state.add_done(FileVersion("r2://bucket", "[b]01.jsonl", "e", 1_000), 250)
    assert open_files(state, 20) is None
    shown = console()
    shown.print(open_files(state, 60))
    text = " ".join(shown.file.getvalue().split())
    for part in ("open file size done", "[b]00.jsonl 1.0 kB 0%", "[b]01.jsonl 1.0 kB 25%", "… and 20 more"):
        assert part in text


def test_a_service_that_holds_calls_back_is_told(clock, monkeypatch):
    held = ModelLimits("p", "m", 20, 4.9, NO_RATES, 5, 100, 9, 0.0, 0.0, ())
    found = [held]
    monkeypatch.setattr("llmdo.runners.showing.progress.limits_of_engines", lambda run_id: found)
    meters, state = Meters(), RunState()
    for second in range(1, 12):
        clock[0] = float(second)
        found[0] = replace(held, throttled_s=0.1 * second)
        assert "held back" not in said_of(status_line, state, meters)
    for second in range(12, 30):
        clock[0] = float(second)
        found[0] = replace(held, throttled_s=0.9 * second)
        said = said_of(status_line, state, meters)
    assert "0 of 20 calls in flight · held back to 4.9 requests/s · " in said


def paid(usd):
    """A budget of which so much is spent."""
    listed = Models((ModelInfo("p/m", price=Price(1.0, 1.0)), ModelInfo("p/free")))
    budget = Budget(prices=Prices(lambda provider: listed))
    budget.prices.of("p", "m")
    request = ChatRequest("m", (Message("user", "x"),))
    budget.after("p", request, ChatResponse("x", "stop", Usage(round(usd * 1_000_000), 0), "m"))
    return budget


def test_requests_that_wait_in_batches_are_told_where_there_are_any(monkeypatch):
    for line in (status_line, stream_line):
        monkeypatch.setattr("llmdo.runners.showing.progress.requests_in_batches", lambda run_id: 0)
        assert "batches" not in said_of(line, RunState())
        monkeypatch.setattr("llmdo.runners.showing.progress.requests_in_batches", lambda run_id: 1234)
        assert " · 1,234 in batches · " in said_of(line, RunState())


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


SCATTERING = "Rayleigh [bold]scattering"
CHAT = ('{"prompt": "Why [red]is[/] the sky blue?"}\n', {"choices": [{"message": {"content": SCATTERING}}]})
RESPONSE = (
    '{"url": "/v1/responses", "body": {"input": "Why [red]is[/] the sky blue?"}}\n',
    {
        "object": "response",
        "output": [{"type": "message", "content": [{"type": "output_text", "text": SCATTERING}]}],
    },
)


@pytest.mark.parametrize(("line", "body"), [CHAT, RESPONSE], ids=["chat", "response"])
def test_the_summary_has_every_file_with_its_end_and_some_answers(tmp_path, line, body):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text(line)
    info = open_store(str(tmp_path / "in")).stat("a.jsonl")
    file = FileVersion(str(tmp_path / "in"), "a.jsonl", info.etag, info.size)
    output = Location(str(tmp_path / "out"), "")
    row = json.dumps({"response": {"body": body}, "source": {"offset": 0, "length": info.size}}).encode()
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
    assert "$" not in said_of(status_line, state)
    state.budget = paid(1.0)
    assert " · $1.00 · " in said_of(status_line, state)
    request = ChatRequest("m", (Message("user", "x"),))
    state.budget.after("p", request, ChatResponse("x", "stop", Usage(), "m"))
    assert " · ≥ $1.00 · " in said_of(status_line, state)


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
    while part not in (said := said_of(line, RunState())):
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
        assert "not answered" not in said_of(line, RunState())
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
        assert "not answered" not in said_of(line, RunState())
        assert [one.error for one in done] == [None] * 3
        told = [record.getMessage() for record in caplog.records]
        assert "openai/m does not answer, calls pause: m: openai could not be reached" in told
        assert [text.rpartition(",")[0] for text in told if "again" in text] == ["openai/m answers again"]
    finally:
        backend.back.set()
        backend.held.set()
        close_engines()
