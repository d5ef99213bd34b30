import pytest

from llmdo.backends.limits.rates import NO_RATES
from llmdo.backends.limits.throttle import ModelLimits
from llmdo.backends.money.spent import Spent
from llmdo.runners.showing.summary import Summary, dollars
from llmdo.storage.output.costs import Cost, unknown
from llmdo.transforms.elements import FileVersion, Settled
from llmdo.transforms.run_state import Counts

FILE = FileVersion("r2://bucket", "a.jsonl", "e", 1)


def summary(**fields):
    return Summary(**{"run_id": "r", "counts": Counts(), "settled": (), "in_work": (), "left": {}, **fields})


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({}, 0),
        ({"settled": (Settled(FILE, "done", 5, 0),)}, 0),
        ({"counts": Counts(files_done=1, files_with_errors=1)}, 3),
        ({"counts": Counts(files_stale=1)}, 3),
        ({"counts": Counts(files_with_errors=1), "in_work": (FILE,)}, 1),
        ({"left": {"x": "why"}}, 1),
        ({"backlog": 3}, 0),
        ({"problem": "the token is wrong"}, 1),
        ({"continuous": True, "in_work": (FILE,), "left": {"x": "why"}}, 0),
        ({"continuous": True, "problem": "the token is wrong"}, 1),
    ],
)
def test_the_exit_code_says_how_it_ended(fields, code):
    assert summary(**fields).exit_code == code
    assert summary(**fields).as_json()["exit_code"] == code


def test_the_summary_tells_what_calls_used_and_what_each_file_cost():
    files = (
        Settled(FILE, "done", 5, 0, cost=Cost(0.5, 0, 3.0)),
        Settled(FILE, "done", 5, 0, cost=unknown(5)),
        Settled(FILE, "stale", reason="gone"),
    )
    said = summary(settled=files, spent=Spent(7, 100, 50, 3.0, 0.25, 1, 2, 90, 40, 0.5)).as_json()
    assert said["spent"] == {
        "calls": 7,
        "input_tokens": 100,
        "output_tokens": 50,
        "cached_tokens": 0,
        "cache_write_tokens": 0,
        "neurons": 3.0,
        "cost_usd": 0.25,
        "cost_is_lower_bound": True,
        "possibly": {"calls": 2, "input_tokens": 90, "output_tokens": 40, "cost_usd": 0.5},
    }
    assert [file.get("cost_usd") for file in said["files"]] == [0.5, None, None]
    assert [file.get("cost_is_lower_bound") for file in said["files"]] == [False, True, None]
    assert said["files"][0]["neurons"] == 3.0


def test_the_summary_tells_when_one_can_go_on_what_held_calls_back_and_what_the_queue_holds():
    limits = ModelLimits("p", "m", 41, None, NO_RATES, 0, 9, 0, 0.0, 0.0, ())
    said = summary(problem="used up", until=1_790_035_200.0, limits=(limits,), backlog=3).as_json()
    assert (said["exit_code"], said["until"], said["messages"]["backlog"]) == (1, "2026-09-22T00:00:00Z", 3)
    assert [(model["model"], model["window"]) for model in said["limits"]] == [("p/m", 41)]
    plain = summary().as_json()
    assert (plain["until"], plain["limits"], plain["messages"]["backlog"]) == (None, [], None)


@pytest.mark.parametrize(
    ("usd", "lower_bound", "text"),
    [
        (0.0, False, "$0.00"),
        (1234.5, False, "$1,234.50"),
        (0.5, True, "≥ $0.50"),
        (0.0123, False, "$0.012"),
        (0.0000000118, False, "$0.000000012"),
        (None, True, "$?"),
    ],
)
def test_dollars_have_two_digits_that_say_something(usd, lower_bound, text):
    assert dollars(usd, lower_bound=lower_bound) == text
