import asyncio
import json
import threading
import time
import tracemalloc
from dataclasses import replace

import apache_beam as beam
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from hypothesis import given
from hypothesis import strategies as st

from llmdo.backends.engine import registry
from llmdo.backends.engine.registry import close_engines
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.responses import ChatResponse, EmbedResponse
from llmdo.backends.usage import Usage
from llmdo.storage.objects.local import LocalStore
from llmdo.storage.objects.store import Location
from llmdo.storage.output.folders import list_folder
from llmdo.transforms.answers.infer import Infer
from llmdo.transforms.elements import Answer, Blank, Failure, FileVersion, Idle, OpenFile, Stale, StretchRead
from llmdo.transforms.files.batching import Batching
from llmdo.transforms.files.folders import folder_of
from llmdo.transforms.files.write_stretches import StretchBatches, WriteStretches, write_part
from llmdo.transforms.lines.reading import Reading
from llmdo.transforms.lines.stretches import Stretch, read_stretch
from llmdo.transforms.prompts.parse import Defaults
from llmdo.transforms.run import Run

FILE = FileVersion("r2://bucket", "input/a.jsonl", "e1", 10_000)
FIRST, SECOND = replace(FILE, stretch=1), replace(FILE, stretch=2)


def answer(i, file=FIRST):
    row = json.dumps({"source": {"offset": 10 * i, "length": 10}, "usage": {"input_tokens": 1}}).encode()
    return Answer(file, 10 * i, 10 * i + 10, row)


def failure(i, file=FIRST):
    return Failure(file, 10 * i, 10 * i + 10, json.dumps({"error": {"offset": 10 * i, "length": 10}}).encode())


def batched(batches, *given, now=0.0):
    return [batch for one in given for batch in batches.add(one, now)]


@given(st.lists(st.sampled_from("afb"), max_size=40), st.integers(1, 7), st.data())
def test_a_stretch_is_forgotten_when_all_is_there_whatever_its_end_comes_before(kinds, size, data):
    made = {"a": answer, "f": failure, "b": lambda i: Blank(FIRST, 10 * i, 10 * i + 10)}
    tiles = [made[kind](i) for i, kind in enumerate(kinds)]
    batches = StretchBatches(Batching(size=size, seconds=60))
    at = data.draw(st.integers(0, len(tiles)))
    end = StretchRead(FIRST, 10 * len(tiles))
    found = batched(batches, *tiles[:at], end, *tiles[at:])
    assert len(batches) == 0 and list(batches.rest()) == []
    *full, last = found
    assert last[-1] == end
    assert {len(batch) for batch in full} <= {size}
    assert all(len({type(one) for one in batch}) == 1 for batch in full)
    assert all(
        kinds.count(kind) - size * sum(type(batch[0]) is type(made[kind](0)) for batch in full) < size for kind in "afb"
    )
    assert sorted((one for batch in found for one in batch if one != end), key=lambda one: one.start) == tiles


def test_two_stretches_of_a_file_never_share_a_batch_and_one_waits_for_its_own_lines_only():
    batches = StretchBatches(Batching(size=2, seconds=60))
    assert batched(batches, answer(0), answer(5, SECOND), StretchRead(SECOND, 10)) == [
        [answer(5, SECOND), StretchRead(SECOND, 10)]
    ]
    assert batched(batches, answer(1), answer(2)) == [[answer(0), answer(1)]]
    assert list(batches.rest()) == [[answer(2)]]


def test_what_waited_long_enough_is_written_with_whatever_comes_next():
    batches = StretchBatches(Batching(size=9, seconds=60))
    assert batched(batches, answer(0), now=100.0) == batched(batches, failure(1), now=159.0) == []
    assert batched(batches, answer(7, SECOND), now=159.9) == []
    assert batched(batches, Idle(), now=160.0) == [[Idle()], [answer(0), failure(1)]]
    assert batched(batches, answer(2), now=219.0) == []
    assert batched(batches, Idle(), now=220.0) == [[Idle()], [answer(7, SECOND)]]
    assert batched(batches, StretchRead(FIRST, 30), now=221.0) == [[answer(2), StretchRead(FIRST, 30)]]
    assert len(batches) == 1


def test_what_fills_no_batch_passes():
    batches = StretchBatches(Batching(size=9, seconds=60))
    assert batched(batches, Stale(FIRST, "gone", True), Idle()) == [[Stale(FIRST, "gone", True)], [Idle()]]
    assert len(batches) == 0


def test_the_end_of_a_stretch_comes_with_its_length_even_where_it_has_no_line(tmp_path):
    run = Run("run-1", Location(str(tmp_path), ""), "c")
    *shards, end = write_part(run, [answer(0), failure(1), StretchRead(FIRST, 20)])
    assert sorted(written.shard.tiles for written in shards) == ["0+10", "10+10"]
    assert (end.file.stretch, end.stretch_length, end.shard, end.blanks) == (1, 20, None, ())
    assert [written.stretch_length for written in write_part(run, [StretchRead(FIRST, 0)])] == [0]
    assert list(write_part(run, [Idle()])) == []


class _ManyStretches(beam.DoFn):
    """One bundle of stretches of 10 lines; PEAKS has the memory in use after each tenth of them. Bytes."""

    def process(self, count):
        tracemalloc.start()
        for number in range(count):
            file = replace(FILE, stretch=number)
            for i in range(10):
                yield Blank(file, 10 * i, 10 * i + 10)
            yield StretchRead(file, 100)
            if (number + 1) % (count // 10) == 0:
                PEAKS.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()


PEAKS: list[int] = []


def test_an_endless_bundle_holds_as_much_after_many_stretches_as_after_few(tmp_path):
    PEAKS.clear()
    with TestPipeline(runner="FnApiRunner") as pipeline:
        (
            pipeline
            | beam.Create([5_000], reshuffle=False)
            | beam.ParDo(_ManyStretches())
            | WriteStretches(Run("run-1", Location(str(tmp_path), ""), "c"))
        )
    assert len(PEAKS) == 10
    assert PEAKS[-1] - PEAKS[1] < 200_000  # 4,000 stretches of 50 bytes


class Blocked:
    """Answers at once, except for a prompt "wait": that waits until it is released."""

    name = "workers-ai"

    def __init__(self):
        self.released = threading.Event()

    async def execute(self, request):
        if request.messages[-1].content == "wait":
            await asyncio.to_thread(self.released.wait, 20.0)
        return ChatResponse("fine", "stop", Usage(3, 2), request.model)

    async def embed(self, request):
        return EmbedResponse(tuple((1.0,) for _ in request.texts), Usage(len(request.texts)), request.model)

    def max_texts(self, model):
        return 10 if "bge" in model else 1

    async def aclose(self):
        pass


@pytest.fixture
def provider(monkeypatch):
    blocked = Blocked()
    monkeypatch.setattr(registry, "connect", lambda name, gateway: blocked)
    yield blocked
    blocked.released.set()
    close_engines()


class _ReadStretches(beam.DoFn):
    """Reads all stretches in one bundle, then waits in it for ``shards``; FOUND holds those that were there."""

    def __init__(self, stretches, run, shards):
        self.stretches, self.run, self.shards = stretches, run, shards

    def process(self, _):
        for stretch in self.stretches:
            yield from read_stretch(stretch, Reading(), self.run)
        folder, patience = folder_of(self.run.output, self.stretches[0].element.file), time.monotonic() + 60.0
        while len(FOUND) < self.shards and time.monotonic() < patience:
            yield Idle()
            FOUND[:] = sorted(info.key.rpartition("/")[2] for info in list_folder(self.run.store, folder).shards)
            time.sleep(0.01)
        RELEASE[0].set()


FOUND: list[str] = []
RELEASE: list[threading.Event] = []


def stretches_of(folder, lines):
    """A file of two stretches with as many lines each, its lines being JSON objects."""
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    (folder / "a.jsonl").write_bytes(content)
    info = LocalStore(folder).stat("a.jsonl")
    half = sum(len(json.dumps(line)) + 1 for line in lines[: len(lines) // 2])
    element = OpenFile(FileVersion(str(folder), "a.jsonl", info.etag, info.size), ((0, info.size),))
    return half, [Stretch(1, element, 0, half), Stretch(2, element, half, info.size)]


WRITTEN = []


def collect(written):
    WRITTEN.append(written)


def answered(run, stretches, shards, defaults):
    """What the steps of a process that reads stretches emit."""
    WRITTEN.clear()
    FOUND.clear()
    with TestPipeline(runner="FnApiRunner") as pipeline:
        (
            pipeline
            | beam.Impulse()
            | beam.ParDo(_ReadStretches(stretches, run, shards))
            | Infer(defaults, CallSettings(window=4), run)
            | WriteStretches(run, Batching(size=100, seconds=60))
            | beam.Map(collect)
        )
    return list(WRITTEN)


def test_shards_of_a_stretch_are_there_while_a_call_of_another_one_is_in_flight(provider, tmp_path):
    (tmp_path / "in").mkdir()
    prompts = ["hello", "wait", "hello", "hello", "hello", "hello"]
    half, stretches = stretches_of(tmp_path / "in", [{"prompt": prompt} for prompt in prompts])
    RELEASE[:] = [provider.released]
    run = Run("run-1", Location(str(tmp_path / "out"), ""), "c")
    written = answered(run, stretches, 1, Defaults("workers-ai/@cf/chat"))
    (name,) = FOUND
    assert name.startswith(f"shard-{half:012}")
    ends = {one.file.stretch: one.stretch_length for one in written if one.stretch_length is not None}
    assert ends == {1: half, 2: stretches[1].stop - half}
    tiles = {one.file.stretch: (one.shard.lines, one.shard.tiles) for one in written if one.shard}
    assert tiles == {1: (3, f"0+{half}"), 2: (3, f"{half}+{ends[2]}")}


def test_texts_that_fill_no_array_are_sent_when_there_is_nothing_to_read(provider, tmp_path):
    (tmp_path / "in").mkdir()
    half, stretches = stretches_of(tmp_path / "in", [{"text": f"number {i}"} for i in range(10, 16)])
    RELEASE[:] = [provider.released]
    run = Run("run-1", Location(str(tmp_path / "out"), ""), "c")
    answered(run, stretches, 2, Defaults("workers-ai/@cf/bge"))
    assert [name[:18] for name in FOUND] == [f"shard-{start:012}" for start in (0, half)]
