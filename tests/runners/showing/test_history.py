"""How a run's figures are kept while it runs, and what it leaves when it ends."""

import time
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest

from llmdo.backends.limits.rates import Rates
from llmdo.backends.limits.throttle import Change, ModelLimits
from llmdo.backends.money.spent import Spent
from llmdo.pipelines.options import check_options
from llmdo.runners.running import attempt as running
from llmdo.runners.running.stop import Stop
from llmdo.runners.showing import history as module
from llmdo.runners.showing.history import Recorded, keep_history
from llmdo.runners.showing.progress import Meters
from llmdo.runners.showing.summary import Summary
from llmdo.storage.errors import StorageUnavailable
from llmdo.storage.objects.opening import open_store
from llmdo.storage.runs.histories import MOST_CHANGES, MOST_POINTS, histories
from llmdo.transforms.run_state import Counts, RunState

ENDED = Summary("r", Counts(answered=5, failed=1), (), (), {}, spent=Spent(calls=7, cost_usd=0.5))


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a-long-secret")
    (tmp_path / "a.jsonl").write_text('{"prompt": "x"}\n')
    return check_options(
        files=(str(tmp_path / "a.jsonl"),), output=str(tmp_path / "out"), model="openai/m", runner="direct"
    )


def kept(options):
    return histories(open_store(options.output_location.store_url), "", 100)


def test_a_run_of_any_length_has_few_moments_which_reach_from_its_begin_to_its_end():
    state, recorded, meters = RunState("r"), Recorded(), Meters()
    at = 0.0
    for second in range(100_000):
        if second >= at:
            state.counts.answered = second
            recorded.take(float(second), meters.look(state))
            at = second + recorded.every_s
    moments = recorded.moments()
    assert MOST_POINTS // 2 <= len(moments.at) <= MOST_POINTS
    assert (moments.at[0], moments.lines[0]) == (0.0, 0)
    assert moments.at[-1] > 100_000 - recorded.every_s and moments.lines == [int(at) for at in moments.at]
    steps = {after - before for before, after in zip(moments.at, moments.at[1:], strict=False)}
    assert max(steps) <= 2 * min(steps)


def test_a_run_is_looked_at_when_it_begins_and_when_it_ends():
    state, recorded = RunState("r"), Recorded(every_s=1000.0)
    with recorded.of(state):
        end = time.monotonic() + 60
        while not recorded.seen and time.monotonic() < end:
            time.sleep(0.01)
        state.counts.answered = 3
    assert recorded.moments().lines == [0, 3]


def test_a_run_leaves_how_it_went_without_secrets(options):
    changes = tuple(Change(1e9 + number, number, None, 1.0, "Refused") for number in range(200))
    limits = tuple(
        ModelLimits("openai", f"m{number}", 8, None, Rates(), 0, number, 2, 3.0, 4.0, changes) for number in range(30)
    )
    keep_history(options, Recorded(), replace(ENDED, limits=limits, problem="refused sk-a-long-secret"))
    (found,) = kept(options)
    assert (found.run_id, found.command, found.models) == ("r", "run", ["openai/m"])
    assert (found.answered, found.failed, found.spent["calls"], found.spent["cost_usd"]) == (5, 1, 7, 0.5)
    assert found.problem == "refused <OPENAI_API_KEY>"
    assert [one.model for one in found.limits][:2] == ["openai/m29", "openai/m28"] and len(found.limits) == 20
    assert sum(len(one.changes) for one in found.limits) <= MOST_CHANGES
    assert found.limits[0].changes[-1].window == 199


def test_a_run_that_did_nothing_leaves_nothing(options):
    keep_history(options, Recorded(), Summary("r", Counts(files_done=3), (), (), {}))
    assert kept(options) == []


def test_a_store_that_fails_does_not_fail_the_run(options, monkeypatch, caplog):
    def broken(*_):
        raise StorageUnavailable("R2 sleeps")

    monkeypatch.setattr(module, "leave_history", broken)
    with caplog.at_level("INFO"):
        keep_history(options, Recorded(), ENDED)
    assert "how this run went is not kept: R2 sleeps" in caplog.text


def test_after_a_store_that_did_not_answer_it_is_not_even_tried(options):
    keep_history(options, Recorded(), replace(ENDED, passing=True, problem="R2 sleeps"))
    assert kept(options) == []


def test_what_a_sample_or_an_earlier_try_has_cost_is_in_its_own_history_alone(options):
    sample = Spent(calls=2, input_tokens=5, neurons=1.5, cost_usd=0.2, lost_calls=1, lost_cost_usd=0.1)
    both = sample + Spent(calls=7, input_tokens=9, neurons=2.0, cost_usd=0.5, unpriced=1)
    state = RunState("r")
    state.budget = SimpleNamespace(spent=lambda: both)
    recorded = Recorded(sample)
    recorded.take(1.0, Meters().look(state))
    keep_history(options, recorded, replace(ENDED, spent=both))
    (found,) = kept(options)
    said = found.spent
    assert (said["calls"], said["input_tokens"], said["neurons"], said["cost_usd"]) == (7, 9, 2.0, 0.5)
    assert (said["cost_is_lower_bound"], said["possibly"]["calls"], said["possibly"]["cost_usd"]) == (True, 0, 0.0)
    assert found.moments.cost_usd == [0.5]


@pytest.mark.parametrize("unpriced", [0, 7])
def test_sums_of_what_was_spent_are_taken_apart_again(unpriced):
    first = Spent(2, 5, 6, 1.5, 0.2, 1, 1, 4, 3, 0.1, 2, 1)
    cost = None if unpriced else 0.5
    second = Spent(7, 9, 8, 2.0, cost, unpriced, 2, 1, 1, 0.3, 4, 5)
    assert (first + second).since(first) == second
    assert first.since(Spent()) == first


def test_a_command_that_tries_again_or_has_sampled_leaves_what_each_run_has_spent(options, monkeypatch):
    """``attempt`` is told of a budget from which something is spent."""
    budget = options.new_budget()
    budget.add(Spent(calls=3, cost_usd=1.0))
    seen = []
    monkeypatch.setattr(running, "keep_history", lambda _, recorded, summary: seen.append((recorded.before, summary)))

    def fails(*_):
        raise StorageUnavailable("no graph")

    running.attempt(options, lambda state: nullcontext(), Stop(1.0), fails, budget)
    ((before, summary),) = seen
    assert (before, summary.spent) == (Spent(calls=3, cost_usd=1.0), Spent(calls=3, cost_usd=1.0))
