"""Receipts of files: what each lane had, from rows, metadata and manifests."""

from __future__ import annotations

import json

import pytest

from llmdo.storage.objects.opening import open_store
from llmdo.storage.output.costs import UNPAID, Cost, LaneCost, total
from llmdo.storage.output.manifests import Manifest, ManifestShard, put_shard, read_shard
from llmdo.storage.output.merging import merged
from llmdo.storage.output.receipts import AT_LIST, LaneLines, read_lanes, receipt_of
from tests.memory_store import MemoryStore

BATCH = LaneCost("batch", 1, 0.5, 1.0)
CALLED = LaneCost("rescued", 1, 1.0, 1.0, 0.5)
COST = total(
    [Cost(0.5, lanes=(BATCH,)), Cost(0.5, lanes=(BATCH,)), Cost(1.0, lanes=(CALLED,)), Cost(1.0), Cost(None, 1)]
)


def row(lane="", *, usd=1.0, list_usd=None, rescue_usd=None, **more):
    usage = {"cost_usd": usd, "list_usd": list_usd, "rescue_usd": rescue_usd}
    usage = {name: value for name, value in usage.items() if value is not None}
    return {
        "id": "x",
        "usage": {"input_tokens": 1, "output_tokens": 1, **usage},
        **({"lane": lane} if lane else {}),
        **more,
    }


def test_what_is_not_in_a_lane_was_paid_at_list_price():
    receipt = receipt_of(COST, 5)
    assert receipt is not None
    assert receipt.lanes == {
        "batch": LaneLines(lines=2, cost_usd=1.0, list_usd=2.0),
        AT_LIST: LaneLines(lines=1, cost_usd=1.0, list_usd=1.0),
        "rescued": LaneLines(lines=1, cost_usd=1.0, list_usd=1.0),
    }
    assert (receipt.cost_usd, receipt.list_usd, receipt.saved_usd, receipt.rescue_usd) == (3.0, 4.0, 1.0, 0.5)


def test_a_dearer_lane_saves_less_than_nothing():
    receipt = receipt_of(Cost(2.0, lanes=(LaneCost("priority", 1, 2.0, 1.0),)), 1)
    assert receipt is not None
    assert (receipt.saved_usd, receipt.rescue_usd, list(receipt.lanes)) == (-1.0, 0.0, ["priority"])


@pytest.mark.parametrize("lanes", [(), (LaneCost(UNPAID, 3),)])
def test_there_is_none_where_nothing_was_paid_in_another_lane(lanes):
    assert receipt_of(Cost(1.0, lanes=lanes), 5) is None


def test_answers_that_others_paid_for_are_no_lines_at_list_price():
    receipt = receipt_of(Cost(0.5, lanes=(BATCH, LaneCost(UNPAID, 3))), 4)
    assert receipt is not None
    assert {lane: (one.lines, one.cost_usd) for lane, one in receipt.lanes.items()} == {
        "batch": (1, 0.5),
        UNPAID: (3, 0),
    }


@pytest.mark.parametrize("kept", ["metadata", "rows"])
def test_a_shard_that_is_read_again_has_the_lanes_that_were_written(kept, tmp_path):
    store = MemoryStore() if kept == "metadata" else open_store(str(tmp_path))
    found = [
        row("batch", usd=0.5, list_usd=1.0),
        row("batch", usd=0.5, list_usd=1.0),
        row(list_usd=1.0, rescue_usd=0.5),
        row(),
        row(usd=None),
    ]
    rows = [
        (at, at + 1, json.dumps({**one, "source": {"offset": at, "length": 1}}).encode())
        for at, one in enumerate(found)
    ]
    assert store.keeps_metadata == (kept == "metadata")
    written = put_shard(store, "f/", "answers", rows, configuration="c", cost=COST)
    (info,) = store.list("f/")
    again = read_shard(store, info)
    assert again is not None
    assert (again.cost, written.cost) == (COST, COST)


def test_rows_that_nobody_paid_for_and_of_earlier_versions_are_counted(tmp_path):
    store = open_store(str(tmp_path))
    found = [
        row("batch", usd=0.5, list_usd=1.0, shared=True),
        row(usd=0.0, details={"cache_status": "HIT"}),
        row("flex", usd=0.5),
    ]
    rows = [
        (at, at + 1, json.dumps({**one, "source": {"offset": at, "length": 1}}).encode())
        for at, one in enumerate(found)
    ]
    put_shard(store, "f/", "answers", rows, configuration="c")
    (info,) = store.list("f/")
    again = read_shard(store, info)
    assert again is not None
    assert again.cost.lanes == (LaneCost("flex", 1, 0.5, 0.5), LaneCost(UNPAID, 2))


@pytest.mark.parametrize("text", ["{", "[[]]", "[[1]]", '[["batch","x",1,1,1]]', "3"])
def test_foreign_metadata_is_not_a_sum(text):
    with pytest.raises((ValueError, TypeError)):
        read_lanes(text)


def manifest(cost, answered):
    return Manifest(
        bucket="b", key="k", etag="e", size=100, length=100, configuration="c", run_id="r", created_at="then",
        answered=answered, failed=1, blank=0, input_tokens=0, output_tokens=0, cost_usd=cost.usd,
        unpriced=cost.unpriced, neurons=cost.neurons, receipt=receipt_of(cost, answered),
        shards=(
            ManifestShard(name="shard-000000000000-0.jsonl", kind="answers", lines=answered, tiles="0+10"),
            ManifestShard(name="errors-000000000010-0.jsonl", kind="errors", lines=1, tiles="10+90"),
        ),
    )  # fmt: skip


def test_a_manifest_keeps_the_sum_and_names_no_receipt_where_there_is_none():
    said = manifest(COST, 5).model_dump_json()
    assert Manifest.model_validate_json(said).cost == COST
    assert "receipt" not in json.loads(manifest(Cost(1.0), 5).model_dump_json())


def test_a_retry_adds_its_lanes_to_those_of_its_file():
    store = MemoryStore()
    new = put_shard(store, "f/", "answers", [(10, 100, b"{}")], configuration="c", cost=Cost(0.5, lanes=(BATCH,)))
    after = merged(manifest(COST, 5), {"errors-000000000010-0.jsonl"}, [new], "run-2")
    assert after.receipt == receipt_of(total([COST, new.cost]), 6)
    assert after.receipt.lanes["batch"].lines == 3
