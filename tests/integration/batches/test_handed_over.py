"""Batches that outlive the process that has handed them over: left with --detach, fetched by a later run."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from llmdo.backends.engine import batch_work
from llmdo.backends.openai_batches.backend import OpenAIWithBatches
from llmdo.pipelines.usage import UsageError
from llmdo.runners.exit_codes import EXIT_ANSWERED, EXIT_FAILED, EXIT_HANDED_OVER
from llmdo.runners.inspecting.status import OutputWatch, status_shown
from tests.integration.batches.user import prompts

PRICES = {"openai/gpt-4o-mini": {"input": 1.0, "output": 10.0, "lanes": {"batch": 0.5}}}


@pytest.fixture
def held(user):
    """A service that works on batches until ``release`` is called."""
    user.server.fault("openai", batch="hold", state="in_progress", share=0.0)
    user.release = user.server.clear_faults
    return user


def status(user):
    return OutputWatch(str(user.folder / "out"), None).look()


@pytest.mark.parametrize("count", [1, 30])
@pytest.mark.parametrize("later", ["batch", "auto", "sync"])
def test_what_is_handed_over_and_left_waits_and_a_later_run_in_any_mode_fetches_it(held, count, later):
    asked = prompts(count)
    summary = held.run(asked, detach=True)
    assert summary.exit_code == EXIT_HANDED_OVER
    said = summary.as_json()["handed_over"]
    assert (said["lines"], said["unclear"], said["said"][: len("handed over")]) == (count, 0, "handed over")
    assert f"{count} lines, expected by 20" in said["said"]
    seen = status(held).as_json()
    assert (seen["files"]["waiting"], seen["files"]["left_open"]) == (1, 0)
    (batch,) = seen["batches"]
    assert (batch["lines"], batch["model"], batch["unclear"]) == (count, "openai/gpt-4o-mini", None)
    assert batch["batch"].startswith("batch_")
    assert batch["expected_by"] == said["expected_by"]
    console = Console(file=io.StringIO(), width=80)
    console.print(status_shown(status(held)))
    table = [[cell.strip() for cell in line.split("│")] for line in console.file.getvalue().splitlines()]
    assert batch["batch"] in "".join(cells[1] for cells in table if len(cells) == 7)  # folded, not cut off
    assert "problem" not in console.file.getvalue().split("age")[-1]

    again = held.run(asked, detach=True)
    assert again.exit_code == EXIT_HANDED_OVER

    held.release()
    assert held.run(asked, mode=later).exit_code == EXIT_ANSWERED
    held.check(asked)
    seen = status(held).as_json()
    assert (seen["files"]["waiting"], seen["batches"]) == (0, [])
    (record,) = [json.loads(one.read_text()) for one in (held.folder / "out" / "_batches").iterdir()]
    assert (record["answered"], record["lines"]) == (count, count)
    assert record["ended_at"] >= record["handed_over_at"] >= record["reserved_at"] > 0


def test_a_run_whose_ledger_does_not_know_what_was_handed_over_pays_for_nothing(held, tmp_path):
    asked = prompts(3)
    held.run(asked, detach=True)
    held.release()
    elsewhere = f"sqlite:///{tmp_path}/elsewhere.sqlite"
    for given in ({"ledger": elsewhere}, {"ledger": elsewhere, "mode": "sync"}, {"ledger": "none", "mode": "sync"}):
        summary = held.run(asked, **given)
        assert summary.exit_code == EXIT_FAILED
        assert "would pay for them again" in summary.problem
        assert "_batches/" in summary.problem
    (record,) = (held.folder / "out" / "_batches").iterdir()
    record.unlink()
    assert held.run(asked, ledger=elsewhere, mode="sync").exit_code == EXIT_ANSWERED


def test_a_reply_that_is_lost_is_looked_for_and_nothing_is_handed_over_twice(user, monkeypatch):
    monkeypatch.setattr(batch_work, "LISTING_LAG_S", 0.2)
    user.server.fault("openai", match="/batches", drop=True, after=True, count=1)
    asked = prompts(20)
    assert user.run(asked).exit_code == EXIT_ANSWERED
    user.check(asked)


def test_without_a_ledger_or_with_several_processes_nothing_is_handed_over(user):
    with pytest.raises(UsageError, match="leave --ledger out"):
        user.run(prompts(1), ledger="none")
    with pytest.raises(UsageError, match="one process is enough for this lane"):
        user.run(prompts(1), runner="flink")


def test_a_run_with_few_calls_at_a_time_fetches_a_batch_in_few_pieces(held, monkeypatch):
    asked = prompts(600)
    assert held.run(asked, detach=True).exit_code == EXIT_HANDED_OVER
    held.release()
    fetched, poll = [], OpenAIWithBatches.poll_batch

    async def counted(self, model, batch, requests, places=()):
        fetched.append(len(requests))
        return await poll(self, model, batch, requests, places)

    monkeypatch.setattr(OpenAIWithBatches, "poll_batch", counted)
    assert held.run(asked, mode="sync", concurrency=2).exit_code == EXIT_ANSWERED
    held.check(asked)
    assert len(fetched) < 20, fetched  # each reads the whole file


def test_a_batch_whose_lines_no_file_has_any_more_is_shown_as_such_and_the_run_after_its_end_closes_it(held):
    assert held.run(prompts(3), detach=True).exit_code == EXIT_HANDED_OVER
    assert [one["awaited"] for one in status(held).as_json()["batches"]] == [True]
    changed = held.run(["something else"], mode="sync")
    assert (changed.counts.answered, changed.counts.files_stale) == (1, 1)
    (batch,) = status(held).as_json()["batches"]
    assert (batch["awaited"], batch["lines"]) == (False, 3)
    console = Console(file=io.StringIO(), width=300)
    console.print(status_shown(status(held)))
    assert "no file waits for its answers: the next run closes it" in console.file.getvalue()

    held.release()
    closing = held.run(["something else"], mode="sync", price_file=PRICES)  # has nothing to answer
    assert (closing.exit_code, closing.counts.answered, status(held).as_json()["batches"]) == (EXIT_ANSWERED, 0, [])
    assert closing.receipt.ways.keys() == {"late"}
    assert (closing.spent.calls, closing.receipt.ways["late"].calls) == (3, 3)
    assert closing.spent.cost_usd > 0
    assert closing.spent.cost_usd == pytest.approx(closing.receipt.ways["late"].list_usd / 2)
    (record,) = [json.loads(one.read_text()) for one in (held.folder / "out" / "_batches").iterdir()]
    assert (record["answered"], record["unclear"], record["ended_at"] > 0) == (3, "", True)
    assert held.run(["something else"], mode="sync").spent.calls == 0
    assert sorted(held.server.stats()["paid"]["by_prompt"].values()) == [1] * 4


def test_a_batch_that_no_file_waits_for_and_that_the_provider_does_not_know_is_closed_with_the_reason(held):
    held.run(prompts(3), detach=True)
    held.run(["something else"], mode="sync")
    held.server.fault("openai", match="#batches.retrieve", status=404)
    assert held.run(["something else"], mode="sync").exit_code == EXIT_ANSWERED
    assert status(held).as_json()["batches"] == []
    (record,) = [json.loads(one.read_text()) for one in (held.folder / "out" / "_batches").iterdir()]
    assert record["answered"] == 0
    assert record["unclear"]
