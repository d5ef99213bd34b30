"""Lines handed over to the asynchronous batch API of the local server, by HTTP: paid once, whatever goes wrong."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.testing.test_pipeline import TestPipeline

from llmdo.backends.engine import batch_polls, batches
from llmdo.backends.engine.registry import close_engines
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.limits.retry import Retry
from llmdo.storage.objects.store import Location
from llmdo.transforms.answers.infer import Infer
from llmdo.transforms.answers.ledger_settings import LedgerSettings
from llmdo.transforms.elements import Answer, Failure, FileVersion, Line, Outcome
from llmdo.transforms.prompts.parse import Defaults
from llmdo.transforms.run import Run
from tests.local.cloudflare import Running
from tests.states import fresh_state

LLAMA = "@cf/meta/llama-3.3-70b-instruct-fp8-fast"  # its items come as `responses`, with references
GEMMA = "@cf/google/gemma-4-26b-a4b-it"  # as `results`, without
FILE = FileVersion("r2://bucket", "input/a.jsonl", "e1", 100_000_000)

# A module global, since Beam pickles closures: what a step puts into a local list is never seen here.
FOUND: list[Outcome] = []


def collect(element: Outcome) -> None:
    FOUND.append(element)


@pytest.fixture
def answer(
    cloudflare: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., list[Outcome]]]:
    """Answers prompts by Infer on FnApiRunner; gives the outcomes in the order of the prompts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(batches, "LINGER_S", 1.0)
    monkeypatch.setattr(batch_polls, "FIRST_POLL_S", 0.05)
    monkeypatch.setattr(batch_polls, "LONGEST_POLL_S", 0.2)

    def run(prompts: list[str], model: str = LLAMA, **settings: Any) -> list[Outcome]:
        documents = [json.dumps({"id": number, "prompt": prompt}).encode() for number, prompt in enumerate(prompts)]
        tiles = [Line(FILE, number, number + 1, document) for number, document in enumerate(documents)]
        given = {
            "window": 8,
            "mode": "batch",
            "kept": LedgerSettings(f"sqlite:///{tmp_path}/ledger.sqlite"),
            **settings,
        }
        fresh_state()
        FOUND.clear()
        with TestPipeline(runner="FnApiRunner") as pipeline:
            _ = (
                pipeline
                | beam.Create(tiles, reshuffle=False)
                | Infer(Defaults(f"workers-ai/{model}"), CallSettings(**given), Run("run-1", Location("out", "")))
                | beam.Map(collect)
            )
        return sorted(FOUND, key=lambda outcome: getattr(outcome, "start", -1))

    yield run
    close_engines()


def said(outcome: Outcome) -> str:
    assert isinstance(outcome, Answer)
    return str(json.loads(outcome.row)["response"]["body"]["choices"][0]["message"]["content"])


def names_kept(ledger: Path) -> int:
    with suppress(sqlite3.OperationalError), sqlite3.connect(f"file:{ledger}?mode=ro", uri=True) as db:
        return int(db.execute("SELECT count(*) FROM answers").fetchone()[0])
    return 0  # it is not made yet


@pytest.mark.parametrize("model", [LLAMA, GEMMA])
def test_a_run_that_is_killed_after_its_hand_over_is_gone_on_with_and_each_line_is_paid_once(
    cloudflare: Running, answer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    prompts = [f"line {number}" for number in range(2500)]
    for pause in ("FIRST_POLL_S", "LONGEST_POLL_S"):
        monkeypatch.setattr(batch_polls, pause, 1000)
    killed = threading.Thread(target=answer, args=(prompts, model))
    killed.start()
    end = time.monotonic() + 120
    while names_kept(tmp_path / "ledger.sqlite") < len(prompts) + 1 + 2 * cloudflare.stats()["batches"]["submitted"]:
        assert time.monotonic() < end, "the names of the batches are not in the ledger"
        time.sleep(0.05)
    close_engines()
    killed.join(60)
    assert FOUND == []
    handed_over = cloudflare.stats()["batches"]["submitted"]  # where lines come slowly, in more than three
    monkeypatch.setattr(batch_polls, "FIRST_POLL_S", 0.05)
    monkeypatch.setattr(batch_polls, "LONGEST_POLL_S", 0.2)
    assert [said(outcome) for outcome in answer(prompts, model)] == [f"echo: {prompt}" for prompt in prompts]
    stats = cloudflare.stats()
    assert stats["batches"]["submitted"] == handed_over
    assert (len(stats["paid"]["by_prompt"]), set(stats["paid"]["by_prompt"].values())) == (2500, {1})


@pytest.mark.parametrize("model", [LLAMA, GEMMA])
def test_items_that_are_missing_or_failed_are_called_and_the_others_are_not(
    cloudflare: Running, answer: Any, model: str
) -> None:
    cloudflare.fault("ai", match="lost", drop=True, count=1)
    cloudflare.fault("ai", match="busy", status=429, code=3040, count=1)
    cloudflare.fault("ai", match="flagged", status=400, code=3030)
    found = answer(["good", "lost", "busy", "flagged", *(f"line {number}" for number in range(20))], model)
    assert [type(outcome) for outcome in found] == [Answer] * 3 + [Failure] + [Answer] * 20
    assert [said(outcome) for outcome in found[:3]] == ["echo: good", "echo: lost", "echo: busy"]
    assert [json.loads(outcome.row)["attempts"] for outcome in found[:3]] == [1, 2, 2]
    stats = cloudflare.stats()
    assert stats["batches"]["submitted"] == 1
    assert set(stats["paid"]["by_prompt"].values()) == {1}


def test_a_batch_that_is_never_done_is_given_up_at_its_deadline(cloudflare: Running, answer: Any) -> None:
    cloudflare.fault("ai", match="#batch-item", latency_s=1000)
    found = answer(["a", "b", "c"], retry=Retry(deadline_s=1.0))
    assert [said(outcome) for outcome in found] == ["echo: a", "echo: b", "echo: c"]
    assert cloudflare.stats()["batches"]["submitted"] == 1
    assert cloudflare.stats()["paid"]["calls"] == 3


def test_a_batch_that_nobody_knows_is_called_line_by_line(cloudflare: Running, answer: Any) -> None:
    cloudflare.fault("ai", match="#batch-poll", status=404, code=5006)
    assert [said(outcome) for outcome in answer(["a", "b"])] == ["echo: a", "echo: b"]
    assert cloudflare.stats()["batches"] == {"submitted": 1, "polled": 0}


def test_faults_of_hand_over_and_poll_are_waited_out(cloudflare: Running, answer: Any) -> None:
    cloudflare.fault("ai", match="#batch-submit", status=429, code=3040, count=2)
    cloudflare.fault("ai", match="#batch-poll", drop=True, count=1)
    cloudflare.fault("ai", match="#batch-poll", status=503, count=1)
    assert [said(outcome) for outcome in answer(["a", "b"])] == ["echo: a", "echo: b"]
    stats = cloudflare.stats()
    assert (stats["batches"]["submitted"], stats["paid"]["calls"]) == (1, 2)


def test_a_model_that_refuses_batches_is_asked_once_in_a_run(cloudflare: Running, answer: Any) -> None:
    cloudflare.fault("ai", match="#batch-submit", status=400, code=5006)
    assert len(answer([f"line {number}" for number in range(1500)], window=64)) == 1500
    stats = cloudflare.stats()
    assert (stats["ai"]["by_status"]["400"], stats["paid"]["calls"]) == (1, 1500)


def test_a_model_that_the_list_says_takes_no_batches_is_not_asked(cloudflare: Running, answer: Any) -> None:
    model = "@cf/meta/llama-3.1-8b-instruct-fast"
    assert len(answer(["a", "b"], model)) == 2
    assert cloudflare.stats()["batches"] == {"submitted": 0, "polled": 0}


def test_lines_of_more_than_ten_megabytes_go_in_several_batches(cloudflare: Running, answer: Any) -> None:
    prompts = [f"{number} " + "x" * 200_000 for number in range(60)]
    found = answer(prompts, GEMMA)
    assert [said(outcome) for outcome in found] == [f"echo: {prompt}" for prompt in prompts]
    stats = cloudflare.stats()
    assert (stats["batches"]["submitted"], stats["paid"]["calls"]) == (2, 60)
    assert stats["ai"]["by_status"].keys() == {"200"}
