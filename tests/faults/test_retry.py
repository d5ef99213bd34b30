"""A retry that dies right after, or right before, any single write leaves a true manifest, and the next one ends it."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext, suppress
from pathlib import Path
from tempfile import mkdtemp

import pytest
from pydantic_core import from_json

from llmdo.backends.errors import Retryable
from llmdo.backends.limits.retry import set_instant
from llmdo.backends.workers_ai import backend as workers_ai
from llmdo.runners.inspecting.verify import verify
from llmdo.runners.running.retry import retry, retry_options
from llmdo.storage.output.manifests import MANIFEST_NAME, counts_as_output, read_manifest
from llmdo.storage.runs.histories import is_history
from tests.faults.recorder import OUTPUT, SOAK, Death, Died, InstantModel, Process, World

# Two lines fail for a while; the broken one shares a shard with the first, and stays as it is.
LINES = b'{"prompt": "well"}\n{broken\n\n{"prompt": "fails 1"}\r\n{"prompt": "fails 2"}\n{"prompt": "also well"}'
FAILING = {"fails 1", "fails 2"}
SETTINGS = {"batch_size": 2, "concurrency": 1}


class Failing(InstantModel):
    """Is out of capacity for some prompts while it is ``down``; only answers are counted."""

    down = True

    async def execute(self, request):
        if self.down and str(request.messages[-1].content) in FAILING:
            raise Retryable("no JSON")
        return await super().execute(request)


KINDS = {
    "_runs/": "heartbeat",
    "_retry/": "record",
    MANIFEST_NAME: "manifest",
    "/shard-": "shard",
    "/errors-": "errors",
}


def kind_of(write) -> str:
    """What a write is to the design."""
    if write.operation == "keep":
        return "keep"
    kind = next((kind for part, kind in KINDS.items() if part in write.key), write.key)
    if is_history(write.key.rpartition("/")[2]):
        kind = "history"
    return f"{kind} removed" if write.operation == "delete" else kind


# How often a whole retry writes each kind.
EACH = Counter(
    {
        "heartbeat": 1,
        "record": 1,
        "errors": 1,
        "keep": 2,
        "shard": 1,
        "manifest": 1,
        "errors removed": 2,
        "record removed": 1,
        "heartbeat removed": 1,
        "history": 1,
    }
)


class RetryWorld(World):
    kind_of = staticmethod(kind_of)

    def retry(self, dies=None, **options):
        """One process of ``llmdo retry``; None where it died."""
        process = self.process = Process(self.history, dies, self.kind_of)
        summary = None
        with suppress(Died):
            given = retry_options(OUTPUT, "retryable", **{"ledger": self._ledger} | SETTINGS | options)
            summary = retry(given, lambda _: nullcontext())
        self.clock.now += 3600
        self.process = Process(self.history)
        return None if process.dead else summary


@pytest.fixture
def new_world(tmp_path, monkeypatch):
    """Makes a world with a file that was answered while the model failed; it takes the place of the one before."""

    def new(**settings) -> RetryWorld:
        monkeypatch.undo()
        set_instant(True)
        world = RetryWorld(Path(mkdtemp(dir=tmp_path)), **settings)
        world.install(monkeypatch)
        monkeypatch.setattr(workers_ai, "open_backend", lambda: Failing(world.calls, world.process))
        world.upload("a.jsonl", LINES)
        assert world.run(**SETTINGS).exit_code == 3
        assert check(world) == (2, 3)
        monkeypatch.setattr(Failing, "down", False)
        world.history.clear()
        world.calls.clear()
        return world

    yield new
    set_instant(False)


def check(world) -> tuple[int, int]:
    """The manifest is true, each line is in it once; answered and failed."""
    found = verify(OUTPUT, ["r2://llmdo/input/"])
    assert (found.differences, found.files, found.compared, found.blank) == ((), 1, 1, 1)
    return found.answered, found.failed


def check_end(world) -> None:
    assert check(world) == (4, 1)
    assert set(world.calls) == FAILING
    left = {info.key for info in world.bucket.list("output/")}
    (folder,) = {key.removesuffix(MANIFEST_NAME) for key in left if key.endswith(MANIFEST_NAME)}
    named = {folder + shard.name for shard in read_manifest(world.bucket, folder).shards}
    assert {key for key in left if counts_as_output(key)} == named | {folder + MANIFEST_NAME}
    assert not [key for key in left if key.startswith(("output/_open/", "output/_retry/"))]


def test_a_whole_retry_writes_record_shards_manifest_and_only_then_deletes(new_world):
    world = new_world()
    assert world.retry().exit_code == 3
    check_end(world)
    assert world.calls == Counter(FAILING)
    kinds = [kind_of(write) for write in world.history]
    assert Counter(kinds) == EACH
    one_after_the_other = ("record", "errors", "shard", "manifest", "errors removed", "record removed")
    assert sorted(one_after_the_other, key=kinds.index) == list(one_after_the_other)


@pytest.mark.fast("shard-before-False", "manifest-before-False", "errors removed-before-False", "record-after-True")
@pytest.mark.parametrize(("moment", "keeps_metadata"), [("after", True), ("before", False)])
@pytest.mark.parametrize("kind", EACH)
def test_a_death_at_a_write_of_any_kind_leaves_a_true_manifest_and_costs_only_calls_in_flight(
    new_world, kind, moment, keeps_metadata
):
    # Before a write there is what was there after the one before: the short form has one of each kind.
    for number in range(1, EACH[kind] + 1) if SOAK or moment == "after" else [EACH[kind]]:
        world = new_world(keeps_metadata=keeps_metadata)
        assert world.retry(Death(moment, number, kind)) is None
        assert moment == "before" or kind_of(world.history[-1]) == kind
        in_flight = world.calls.total() - sum(write.operation == "keep" for write in world.history)
        switched = any(kind_of(write) == "manifest" for write in world.history)
        assert check(world) == ((4, 1) if switched else (2, 3))
        summary = world.retry()
        assert (summary.problem, summary.in_work, summary.left, summary.others, summary.exit_code) == (
            None,
            (),
            {},
            {},
            3,
        ), f"{moment} {kind} {number}"
        check_end(world)
        assert world.calls.total() == len(FAILING) + in_flight
        assert in_flight <= SETTINGS["concurrency"]


def test_what_a_retry_left_when_it_died_is_removed_also_where_no_line_is_left_to_try(new_world):
    world = new_world()
    assert world.retry(Death("after", 1, "manifest")) is None
    assert check(world) == (4, 1)
    assert world.retry().counts.answered == 0
    check_end(world)


def test_lines_that_fail_again_have_their_old_shard_back_and_it_is_not_deleted(new_world, monkeypatch):
    world = new_world()
    monkeypatch.setattr(Failing, "down", True)
    before = {info.key: world.bucket.read(info.key)[0] for info in world.bucket.list("output/llmdo/")}
    summary = world.retry(batch_size=1)
    assert (summary.exit_code, summary.counts.failed) == (3, 2)
    assert check(world) == (2, 3)
    errors = [body for key, body in before.items() if "/errors-" in key]
    rows = {row for body in errors for row in body.splitlines()}
    after = [world.bucket.read(info.key)[0] for info in world.bucket.list("output/") if "/errors-" in info.key]
    assert {row for body in after for row in body.splitlines()} == rows
    assert {from_json(row)["error"]["class"] for row in rows} == {"BadLine", "Retryable"}
