"""What ``llmdo status`` says of a run with a deadline: until when, and what becomes of each batch at which time."""

from __future__ import annotations

import os
from datetime import datetime

import pytest
from rich.console import Console

from llmdo.backends.lanes.records import BatchRecord
from llmdo.runners.inspecting.status import Status, status_shown
from llmdo.runners.showing.limits import iso_time
from llmdo.storage.output.overview import Overview
from llmdo.storage.runs import runs
from llmdo.storage.runs.runs import Heartbeat, SeenRun

NOW = datetime(2026, 11, 30, 12, 0).timestamp()
HOUR = 3600.0


def seen(*, age_s=1.0, **told):
    beat = Heartbeat(run_id="r", host="elsewhere", pid=os.getpid(), process_start="", command="run", **told)
    assert runs.DEAD_SECONDS > 1.0
    batches = tuple(
        BatchRecord(nonce, "openai", "m", 7, NOW, batch=f"batch_{nonce}", handed_over_at=NOW - HOUR, run="r")
        for nonce in ("n1", "n2")
    )
    return Status(
        "out",
        NOW,
        Overview(runs=(SeenRun(Heartbeat.model_validate_json(beat.model_dump_json()), age_s),)),
        {},
        None,
        batches,
    )


def text(status):
    console = Console(width=300, record=True)
    console.print(status_shown(status))
    return console.export_text()


def test_the_deadline_is_shown_and_when_each_batch_is_given_up():
    status = seen(ready_by=NOW + 6 * HOUR, rescues={"n1": (NOW + HOUR, NOW + 2 * HOUR)})
    assert "run r: answers are wanted by 18:00 (in 6 h)" in text(status)
    assert "cancelled at 13:00, rescue at 14:00" in text(status)
    said = status.as_json()
    assert said["runs"][0]["ready_by"] == iso_time(NOW + 6 * HOUR)
    assert [one["rescue"] for one in said["batches"]] == [
        {"cancel_at": iso_time(NOW + HOUR), "call_at": iso_time(NOW + 2 * HOUR)},
        None,
    ]


def test_another_days_times_have_their_date_and_what_is_cancelled_only_its_rescue():
    status = seen(ready_by=NOW + 24 * HOUR, rescues={"n2": (NOW - 1, NOW + 20 * HOUR)})
    assert "wanted by 2026-12-01 12:00" in text(status)
    assert "rescue at 2026-12-01 08:00" in text(status)
    assert "cancelled at" not in text(status)


def test_a_dead_run_rescues_nothing_and_the_next_step_is_said():
    status = seen(age_s=runs.DEAD_SECONDS + 1, ready_by=NOW + HOUR, rescues={"n1": (NOW, NOW + 60)})
    assert "nothing is rescued; run the same command again" in text(status)
    assert "rescue at" not in text(status)
    assert [one["rescue"] for one in status.as_json()["batches"]] == [None, None]


@pytest.mark.parametrize("told", [{}, {"rescues": {}}])
def test_a_run_without_a_deadline_says_nothing_of_one(told):
    status = seen(**told)
    assert "wanted by" not in text(status)
    assert status.as_json()["runs"][0]["ready_by"] is None
