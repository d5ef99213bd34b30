import json
from dataclasses import replace
from math import inf

import pytest

from llmdo.backends.limits.rates import NO_RATES, Rates
from llmdo.backends.limits.throttle import CHANGES, Change, ModelLimits
from llmdo.runners.showing.limits import iso_time, limits_json, limits_text, until_text

GROWN = Change(1_790_000_000.0, 64, None, 0.0, "the window was full of calls that were answered")
CUT = Change(1_790_000_060.0, 51, 17.96, 0.5, "Overloaded (code 3040, HTTP 429)")
CUT_AGAIN = Change(1_790_000_070.0, 41, 18.24, 0.5, "Overloaded (code 3040, HTTP 429)")
PLAIN = ModelLimits("workers-ai", "@cf/x", 41, 18.24, NO_RATES, 3, 1000, 12, 0.2, 0.4, (GROWN, CUT, CUT_AGAIN))
QUIET = replace(PLAIN, window=64, per_s=None, refused=0, changes=(GROWN,))


def test_a_model_that_refused_is_told_in_a_line():
    assert limits_text(PLAIN) == (
        "workers-ai/@cf/x: slowed down 2 times by refusals (12 of 1,000 calls); "
        "calls at once: 64, 41 at last; ≈ 18.2 requests/s learnt"
    )
    once = replace(PLAIN, window=64, per_s=None, changes=(CUT,))
    assert limits_text(once) == (
        "workers-ai/@cf/x: slowed down once by refusals (12 of 1,000 calls); calls at once: 64"
    )
    assert "slowed down at least 200 times" in limits_text(replace(PLAIN, changes=(CUT,) * CHANGES))


def test_a_model_that_held_nothing_back_is_not_worth_a_word():
    assert limits_text(QUIET) == ""


@pytest.mark.parametrize(
    ("rates", "by"),
    [
        (NO_RATES, ""),
        (Rates(inf, inf), ""),
        (Rates(rpm=300.0), " (allowed: 300 requests a minute)"),
        (Rates(300.0, 1e4), " (allowed: 300 requests a minute and 10000 tokens a minute)"),
    ],
)
def test_calls_that_waited_are_told_with_the_rates_that_hold(rates, by):
    said = limits_text(replace(QUIET, throttled_s=119.6, rates=rates))
    assert said == f"workers-ai/@cf/x: held back for 120 s{by}"


def test_the_json_has_every_change_with_its_time_and_reason_and_no_infinity():
    told = json.loads(json.dumps(limits_json(replace(PLAIN, rates=Rates(300.0, inf))), allow_nan=False))
    assert {name: value for name, value in told.items() if name != "changes"} == {
        "model": "workers-ai/@cf/x",
        "calls": 1000,
        "refused": 12,
        "window": 41,
        "requests_per_s": 18.24,
        "rpm": 300.0,
        "tpm": None,
        "throttled_s": 0.2,
        "waited_s": 0.4,
        "away_s": 0.0,
    }
    assert told["changes"][1] == {
        "at": "2026-09-21T14:14:20Z",
        "window": 51,
        "requests_per_s": 17.96,
        "pause_s": 0.5,
        "reason": "Overloaded (code 3040, HTTP 429)",
    }
    assert [change["window"] for change in told["changes"]] == [64, 51, 41]


@pytest.mark.parametrize(
    ("at", "time", "sentence"),
    [
        (1_790_035_200.0, "2026-09-22T00:00:00Z", "2026-09-22 00:00 UTC"),
        (1_790_035_200.4, "2026-09-22T00:00:00Z", "2026-09-22 00:01 UTC"),
        (1_790_035_259.0, "2026-09-22T00:00:59Z", "2026-09-22 00:01 UTC"),
    ],
)
def test_a_time_to_go_on_is_utc_and_never_too_early(at, time, sentence):
    assert iso_time(at) == time
    assert until_text(at) == f"It can resume from {sentence}: run the same command again then."


def test_a_time_after_the_last_one_that_there_is_is_that_one():
    assert until_text(1e300) == "It can resume from 9999-12-31 23:59 UTC: run the same command again then."
    assert iso_time(1e300) == "9999-12-31T23:59:00Z"
