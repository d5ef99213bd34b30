from datetime import UTC, datetime, timedelta

import pytest

from llmdo.pipelines.usage import UsageError
from llmdo.runners.running.cron import Cron

BERLIN, NEW_YORK, LORD_HOWE = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"


def at(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def ticks(cron, start, stop):
    found, moment = [], at(start)
    while (moment := cron.next(moment)) <= at(stop):
        found.append(moment.strftime("%d %H:%M"))
    return found


def test_ticks_are_those_of_the_expression_in_the_time_zone():
    assert ticks(Cron("*/15 14 * * *", "UTC"), "2026-11-21T00:00", "2026-11-21T23:59") == [
        f"21 14:{m:02}" for m in (0, 15, 30, 45)
    ]
    assert ticks(Cron("0 9 * * MON-FRI", BERLIN), "2026-11-20T00:00", "2026-11-23T23:59") == ["20 08:00", "23 08:00"]
    assert ticks(Cron("30 */10 0 * * *", "UTC"), "2026-11-21T00:00", "2026-11-21T00:30") == [
        "21 00:00",
        "21 00:10",
        "21 00:20",
    ]


@pytest.mark.parametrize(
    ("expression", "zone", "start", "stop", "expected"),
    [
        # Berlin skips 02:00 to 03:00 on 29 March 2026, and has it twice on 25 October.
        ("30 2 * * *", BERLIN, "2026-03-28T12:00", "2026-03-30T12:00", ["29 01:00", "30 00:30"]),
        ("15,45 2 * * *", BERLIN, "2026-03-28T12:00", "2026-03-30T00:30", ["29 01:00", "30 00:15"]),
        ("0 2,3 * * *", BERLIN, "2026-03-28T12:00", "2026-03-29T12:00", ["29 01:00"]),
        ("30 2 * * *", BERLIN, "2026-10-24T12:00", "2026-10-26T12:00", ["25 00:30", "26 01:30"]),
        ("0 2,3 * * *", BERLIN, "2026-10-24T12:00", "2026-10-25T12:00", ["25 00:00", "25 02:00"]),
        ("30 2 * * *", NEW_YORK, "2026-03-07T12:00", "2026-03-09T12:00", ["08 07:00", "09 06:30"]),
        ("30 1 * * *", NEW_YORK, "2026-10-31T12:00", "2026-11-02T12:00", ["01 05:30", "02 06:30"]),
        # Lord Howe puts its clock back by half an hour at 02:00 on 5 April 2026.
        ("45 1 * * *", LORD_HOWE, "2026-04-04T00:00", "2026-04-05T20:00", ["04 14:45", "05 15:15"]),
        # What follows the clock neither stops nor hurries.
        (
            "*/30 * * * *",
            BERLIN,
            "2026-03-29T00:00",
            "2026-03-29T02:00",
            ["29 00:30", "29 01:00", "29 01:30", "29 02:00"],
        ),
        (
            "*/30 * * * *",
            BERLIN,
            "2026-10-25T00:00",
            "2026-10-25T02:00",
            ["25 00:30", "25 01:00", "25 01:30", "25 02:00"],
        ),
    ],
)
def test_a_tick_in_an_hour_that_is_skipped_or_there_twice_comes_once(expression, zone, start, stop, expected):
    assert ticks(Cron(expression, zone), start, stop) == expected


@pytest.mark.parametrize("expression", ["30 2 * * *", "15,45 1,2 * * *", "*/20 * * * *", "5 * * * *"])
@pytest.mark.parametrize(
    ("zone", "day"),
    [(BERLIN, "2026-03-29"), (BERLIN, "2026-10-25"), (NEW_YORK, "2026-11-01"), (LORD_HOWE, "2026-04-04")],
)
def test_looking_back_finds_the_same_ticks_as_looking_forward(expression, zone, day):
    cron = Cron(expression, zone)
    start = at(day) - timedelta(hours=12)
    forward, moment = [], start
    while (moment := cron.next(moment)) <= at(day) + timedelta(hours=36):
        forward.append(moment)
    for minutes in range(0, 48 * 60, 7):
        now = start + timedelta(minutes=minutes, seconds=0.5)
        expected = max((tick for tick in forward if tick <= now), default=None)
        assert cron.latest(start, now) == expected


def test_the_latest_tick_is_after_the_last_one_and_not_after_now():
    cron = Cron("0 * * * *", "UTC")
    assert cron.latest(at("2026-11-21T10:00"), at("2026-11-21T10:59")) is None
    assert cron.latest(at("2026-11-21T10:00"), at("2026-11-21T11:00")) == at("2026-11-21T11:00")
    assert cron.latest(at("2026-11-21T10:00"), at("2026-11-21T15:30")) == at("2026-11-21T15:00")
    assert cron.latest(at("2020-01-01T00:00"), at("2026-11-21T15:30")) == at("2026-11-21T15:00")


@pytest.mark.parametrize(
    ("expression", "zone", "says"),
    [
        ("* * * *", "UTC", "--cron '* * * *': Wrong number of fields"),
        ("61 * * * *", "UTC", "Bad minute"),
        ("0 0 30 2 *", "UTC", "--cron '0 0 30 2 *'"),
        ("*/15 * * * *", "Europe/Berln", "--timezone 'Europe/Berln': no such time zone here"),
        ("*/15 * * * *", "../etc/passwd", "--timezone"),
        ("*/15 * * * *", "Europe", "--timezone"),
        ("*/15 * * * *", "", "--timezone"),
    ],
)
def test_what_is_no_cron_expression_or_time_zone_is_a_usage_error(expression, zone, says):
    with pytest.raises(UsageError) as error:
        Cron(expression, zone)
    assert says in str(error.value)


def test_both_mistakes_are_said_at_once():
    with pytest.raises(UsageError) as error:
        Cron("never", "Nowhere")
    assert len(error.value.problems) == 2
