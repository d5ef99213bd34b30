import pytest

from llmdo.backends.refusals.body import read_body
from llmdo.backends.refusals.waits import LONGEST_S, duration_s, until_s, wait_s

NOW = 1_800_000_000.0  # 2027-01-15 08:00:00 UTC


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2s", 2.0),
        ("45.578569677s", 45.578569677),
        ("120ms", 0.12),
        ("1m30s", 90.0),
        ("1h6m0s", 3960.0),
        ("6m0s", 360.0),
        ("1d2h", 93_600.0),
        ("35000 seconds", 35_000.0),
        ("250 milliseconds", 0.25),
        ("1 minute and 30 seconds", 90.0),
        ("2 hours, 5 minutes", 7500.0),
        ("00:00:30", 30.0),
        ("2.15:30:00", 228_600.0),
        ("5 months", None),
        ("soon", None),
        ("", None),
        ("1" * 5000 + "s", None),
    ],
)
def test_a_duration_is_read_however_it_is_written(text, seconds):
    assert duration_s(text) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7.5", 7.5),
        ("1800000030", 30.0),
        ("1800000030000", 30.0),
        ("2027-01-15T08:00:30Z", 30.0),
        ("2027-01-15T07:00:00Z", 0.0),
        ("nan", None),
        ("inf", None),
        ("9" * 400, None),
    ],
)
def test_a_reset_is_a_number_of_seconds_or_a_time(text, seconds):
    assert until_s(text, NOW) == seconds


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({"retry-after": "2.5"}, "", 2.5),
        ({"retry-after": "Fri, 15 Jan 2027 08:01:00 GMT"}, "", 60.0),
        ({"retry-after-ms": "1500", "retry-after": "2"}, "", 1.5),
        ({"x-ms-retry-after": "11"}, "", 11.0),
        ({"retry-after": "9"}, "Please retry in 20s", 9.0),
        ({"retry-after": "soon"}, "Please try again in 1m30s.", 90.0),
        ({}, "Please retry after 6 seconds. To raise the quota, wait.", 6.0),
        ({}, "Quota will be replenished in 02:30:00.", 9000.0),
        ({}, "Please wait before you try again.", None),
        ({}, {"error": {"message": "slow", "details": [{"retryDelay": "2s"}]}}, 2.0),
        ({}, {"error": {"message": "slow", "retry_after": 3}}, 3.0),
        ({}, {"error": {"metadata": {"headers": {"Retry-After": "4"}}}}, 4.0),
        ({}, {"metadata": {"headers": {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": 1_800_000_005_000}}}, 5.0),
        ({"x-ratelimit-remaining-tokens": "9", "x-ratelimit-reset-tokens": "1h"}, "", None),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1h"}, "Try again in 2s", 3600.0),
        ({"retry-after": "-5"}, "", 0.0),
        ({"retry-after": "1e14"}, "", LONGEST_S),
    ],
)  # fmt: skip
def test_the_wait_is_found_where_the_service_says_it(headers, body, seconds):
    assert wait_s(headers, read_body(body), NOW) == seconds
