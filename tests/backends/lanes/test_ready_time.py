import contextlib
import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from llmdo.backends.lanes.ready_by import ReadyBy
from llmdo.backends.lanes.ready_time import ReadyTime, ready_time

# 2026-03-28 22:00 in Berlin: in that night 02:00 becomes 03:00.
NOW = datetime(2026, 3, 28, 21, 0, tzinfo=UTC).timestamp()


@pytest.fixture(autouse=True)
def berlin(monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "hours"),
    [
        ("06:00", 7),  # an hour is left out
        ("6:00", 7),
        ("23:30", 1.5),
        ("22:00", 23),  # now is too late for today's
        ("22:00:01", 1 / 3600),
        ("8h", 8),
        ("1.5h", 1.5),
        ("1h30m", 1.5),
        ("90m", 1.5),
        ("2d", 48),
        ("36s", 0.01),
        ("2026-03-29T06:00", 7),
        ("2026-03-29 06:00:00", 7),
        ("2026-03-29T06:00Z", 9),
        ("2026-03-29T06:00+02:00", 7),
    ],
)
def test_a_time_is_read_by_this_machines_clock_unless_it_names_a_zone(text, hours):
    assert ready_time(text, NOW) == ReadyBy(pytest.approx(NOW + 3600 * hours), NOW)


@pytest.mark.parametrize(
    "text", ["", "8", "h", "24:00", "6:60", "six", "-8h", "8h30", "30m8h", "2026-03-29", "20260329", "1e3s", "06:00Z"]
)
def test_what_is_not_a_time_is_refused_with_three_that_are(text):
    with pytest.raises(ValueError, match=r"write a time of day \(06:00\), a duration \(8h, 1h30m\) or a date"):
        ready_time(text, NOW)


@pytest.mark.parametrize("text", ["0s", "0h", "2026-03-28T21:59", "2020-01-01T00:00Z"])
def test_a_time_that_is_past_is_refused(text):
    with pytest.raises(ValueError, match=r"that was .*, and it is 22:00:00: name a later time"):
        ready_time(text, NOW)


@pytest.mark.parametrize("text", ["367d", "9999-12-31T00:00Z", "99999999999h"])
def test_a_time_that_is_far_away_is_refused(text):
    with pytest.raises(ValueError, match="more than a year"):
        ready_time(text, NOW)


@given(st.text(max_size=20))
def test_whatever_is_written_is_read_or_refused(text):
    with contextlib.suppress(ValueError):
        assert ready_time(text, NOW).at > NOW


def test_an_option_is_read_once_and_means_the_same_time_in_another_process():
    kind = TypeAdapter(ReadyTime)
    soon = kind.validate_python("8h")
    assert time.time() + 8 * 3600 - 60 < soon.at <= time.time() + 8 * 3600
    again = kind.validate_python(kind.dump_python(soon, mode="json"))
    assert again.at == pytest.approx(soon.at, abs=1e-3)
    assert kind.validate_python(soon) is soon
    with pytest.raises(ValidationError, match="write a time of day"):
        kind.validate_python("soon")


def test_tomls_own_times_are_read():
    kind = TypeAdapter(ReadyTime)
    assert kind.validate_python(datetime(2030, 1, 1).time()).at > time.time()
