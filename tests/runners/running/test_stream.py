from contextlib import nullcontext
from dataclasses import replace

import pytest

from llmdo.pipelines.options import check_options
from llmdo.pipelines.usage import UsageError
from llmdo.runners.running import stream as streaming
from llmdo.runners.running.stream import stream
from llmdo.runners.showing.summary import Summary
from llmdo.transforms.run_state import Counts

OUTPUT = "r2://bucket/output/"
IDLE = Summary("r", Counts(), (), (), {}, "Prism was ended by signal 9", continuous=True)
BUSY = replace(IDLE, counts=Counts(answered=5, shards=1))


@pytest.fixture
def run(monkeypatch):
    """Streams with given ends of its pipelines; gives the summary and the waits between them."""
    for name in ("CLOUDFLARE_API_TOKEN", "R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", "a" * 32)
    monkeypatch.setattr(streaming, "find_prism", lambda location, allow_open: None)
    monkeypatch.setattr(streaming, "prepare", lambda options: options)

    def go(*ends, **options):
        left, waits = list(ends), []
        budgets = []
        monkeypatch.setattr(streaming, "attempt", lambda *_, budget, steering: budgets.append(budget) or left.pop(0))
        monkeypatch.setattr(streaming.Stop, "wait", lambda self, seconds: waits.append(seconds))
        given = {"output": OUTPUT, "queue": "q", "runner": "prism", "continuous": True, **options}
        summary = stream(check_options(**given), lambda state: nullcontext())
        assert left == []
        assert len({id(budget) for budget in budgets}) == 1  # what one pipeline spent counts for the next
        return summary, waits

    return go


def test_a_pipeline_that_ends_by_itself_was_told_to(run):
    summary, waits = run(replace(BUSY, problem=None))
    assert (summary.exit_code, summary.restarts, waits) == (0, 0, [])


def test_a_pipeline_that_fails_is_begun_again_with_growing_waits_and_given_up_in_the_end(run):
    summary, waits = run(*[IDLE] * 4, max_restarts=3)
    assert (summary.exit_code, summary.restarts, waits) == (1, 3, [1, 2, 4])


def test_progress_forgives_earlier_failures_and_counts_add_up(run):
    summary, waits = run(IDLE, IDLE, BUSY, BUSY, IDLE, IDLE, replace(BUSY, problem=None), max_restarts=2)
    assert (summary.exit_code, summary.restarts, summary.counts.answered) == (0, 6, 15)
    assert waits == [1, 2, 1, 1, 1, 2]


def test_a_service_that_does_not_answer_is_waited_for_however_long_that_takes(run):
    passing = replace(IDLE, problem="R2 sleeps", passing=True)
    summary, waits = run(*[passing] * 9, IDLE, replace(BUSY, problem=None), max_restarts=1)
    assert (summary.exit_code, summary.restarts, waits) == (0, 10, [1, 2, 4, 8, 16, 32, 60, 60, 60, 60])


def test_what_would_come_again_ends_it_at_once(run):
    summary, waits = run(replace(BUSY, problem="the token is wrong", final=True))
    assert (summary.exit_code, waits) == (1, [])


@pytest.mark.parametrize("wrong", [{"queue": None, "input": "r2://bucket/in/"}, {"runner": "direct"}])
def test_without_a_queue_or_on_a_runner_that_ends_there_is_no_stream(run, wrong):
    with pytest.raises(UsageError, match="a continuous run needs --queue"):
        run(**wrong)
