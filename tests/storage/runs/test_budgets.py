"""The record of a budget: what batches have reserved, in which periods, and for how long."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from llmdo.storage.runs.budgets import BudgetRecord, ReservedRecord

NOON = datetime(2026, 12, 9, 12, tzinfo=UTC)  # a Wednesday
EMPTY = BudgetRecord().at(NOON)


def amounts(record, now):
    record = record.at(now)
    return {period: record.reserved_in(period)[0] for period in ("hour", "day", "week", "month", "ever")}


def test_lines_that_are_left_count_in_the_periods_that_they_were_left_in():
    record = EMPTY.with_reserved("b", 3, 0.3, 30, NOON)
    assert record.reserved == {"b": ReservedRecord(lines=3, usd=0.3, tokens=30, at=NOON)}
    assert set(amounts(record, NOON).values()) == {0.3}
    assert amounts(record, NOON + timedelta(hours=1)) == {
        "hour": 0.0,
        "day": 0.3,
        "week": 0.3,
        "month": 0.3,
        "ever": 0.3,
    }
    later = {"hour": 0.0, "day": 0.0, "week": 0.0, "month": 0.3, "ever": 0.3}
    assert amounts(record, NOON + timedelta(days=7)) == later


def test_lines_that_come_back_free_their_part_and_the_last_one_all():
    record = EMPTY.with_reserved("b", 3, 0.3, 30, NOON).with_reserved("c", 1, 1.0, 5, NOON)
    record = record.with_reserved("b", -2, -0.25, -20, NOON)
    assert (record.reserved["b"].lines, record.reserved["b"].usd, record.reserved["b"].tokens) == (
        1,
        pytest.approx(0.05),
        10,
    )
    record = record.with_reserved("b", -1, -0.01, -1, NOON)
    assert set(record.reserved) == {"c"}
    assert record.with_reserved("b", -1, -0.1, -1, NOON) == record
    assert record.with_reserved("c", -(1 << 40), 0.0, 0, NOON).reserved == {}


def test_what_nobody_has_fetched_for_a_month_is_spent_and_only_where_it_was_left():
    record = EMPTY.with_reserved("b", 3, 0.3, 30, NOON).at(NOON + timedelta(days=40))
    assert record.reserved == {}
    assert {period: one.usd for period, one in record.spent.items() if one.usd} == {"ever": 0.3}


def test_of_many_batches_the_oldest_are_spent():
    record = EMPTY
    for number in range(1003):
        record = record.with_reserved(f"b{number}", 1, 0.001, 1, NOON + timedelta(seconds=number))
    assert len(record.reserved) == 1000
    assert "b2" not in record.reserved
    assert "b3" in record.reserved
    assert record.spent["day"].usd == pytest.approx(0.003)


def test_a_record_of_an_earlier_version_has_nothing_reserved():
    old = BudgetRecord.model_validate_json(
        '{"version": 1, "limit": {"usd": 5.0, "period": "day"}, "spent": {}, "leases": {}}'
    )
    assert old.at(NOON).reserved_in("day") == (0.0, 0)
