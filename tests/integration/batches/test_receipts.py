"""What lanes have saved: of a run, of its files' manifests, and of the output, in status and report."""

from __future__ import annotations

import json
from contextlib import nullcontext
from datetime import UTC, datetime

from rich.console import Console

from llmdo.pipelines.options import check_options
from llmdo.runners.inspecting.report.collecting import Collector, Wanted
from llmdo.runners.inspecting.report.page import page
from llmdo.runners.inspecting.status import OutputWatch, status_shown
from llmdo.runners.running.run import run
from llmdo.storage.objects.opening import open_store
from llmdo.storage.output.costs import total
from llmdo.storage.output.receipts import receipt_of
from llmdo.storage.output.rows import done_files
from tests.integration.batches.user import MODEL


def answered(user, name, count, **options):
    """The summary of a run over a file of its own, in the same output."""
    path = user.folder / name
    path.write_text("".join(json.dumps({"id": f"{name}{at}", "prompt": f"{name} {at}"}) + "\n" for at in range(count)))
    prices = {MODEL: {"input": 0.15, "output": 0.6, "lanes": {"batch": 0.5}}}
    given = {
        "price_file": prices,
        "input": [str(path)],
        "output": str(user.folder / "out"),
        "model": MODEL,
        "runner": "direct",
    }
    return run(check_options(**given | options), lambda state: nullcontext())


def manifests(user):
    return {one.key: one for _, one in done_files(open_store(str(user.folder / "out")), "")}


def test_a_files_receipt_is_that_of_its_run_and_the_output_has_the_sum(user):
    by_batch = answered(user, "a.jsonl", 40, mode="batch")
    at_list = answered(user, "b.jsonl", 5, mode="sync")
    assert (by_batch.exit_code, at_list.exit_code, at_list.receipt) == (0, 0, None)
    batched, called = manifests(user)["a.jsonl"], manifests(user)["b.jsonl"]
    assert called.receipt is None
    assert batched.receipt is not None
    said = by_batch.as_json()["receipt"]
    assert said["saved_usd"] > 0
    assert {lane: one.lines for lane, one in batched.receipt.lanes.items()} == {"batch": 40}
    for name in ("cost_usd", "list_usd", "saved_usd", "rescue_usd"):
        assert abs(getattr(batched.receipt, name) - said[name]) < 1e-12, name

    seen = OutputWatch(str(user.folder / "out"), None).look()
    both = receipt_of(total([batched.cost, called.cost]), 45)
    assert seen.as_json()["receipt"] == both.model_dump()
    assert {lane: one.lines for lane, one in both.lanes.items()} == {"batch": 40, "list": 5}
    assert both.lanes["list"].cost_usd == called.cost_usd
    assert abs(both.cost_usd - batched.cost_usd - called.cost_usd) < 1e-12
    shown = Console(width=250, record=True)
    shown.print(status_shown(seen))
    assert "By lane: 40 by batches" in shown.export_text()

    store = open_store(str(user.folder / "out"))
    found = Collector(store, "", "out", Wanted(100, 0), lambda _: None).collect()
    html = page(found, datetime.now(UTC), with_texts=False)
    assert '<th scope="row">Batches</th><td>40</td>' in html
    assert '<th scope="row">Calls</th><td>5</td>' in html
    assert '<th scope="row">All</th><td>45</td>' in html


def test_rows_say_what_list_price_would_be_so_that_their_shards_can_be_read_again(user):
    answered(user, "a.jsonl", 3, mode="batch")
    rows = user.rows()
    assert {row["lane"] for row in rows} == {"batch"}
    assert all(0 < row["usage"]["cost_usd"] < row["usage"]["list_usd"] for row in rows)
    manifest = manifests(user)["a.jsonl"]
    (lane,) = manifest.cost.lanes
    assert (lane.lane, lane.lines) == ("batch", 3)
    assert abs(lane.list_usd - sum(row["usage"]["list_usd"] for row in rows)) < 1e-12
