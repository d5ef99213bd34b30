"""Who waits for the ends of calls is woken for several, and never kept waiting for what does not come."""

from __future__ import annotations

import threading
import time

from llmdo.transforms.answers.result_queue import ResultQueue

SOON = 60.0  # seconds


def taking(ended: ResultQueue[int], wanted: int, timeout_s: float) -> tuple[threading.Thread, list[list[int]]]:
    """A thread that takes once, and what it has taken."""
    taken: list[list[int]] = []
    thread = threading.Thread(target=lambda: taken.append(ended.take(wanted, timeout_s)))
    thread.start()
    return thread, taken


def test_what_is_there_is_taken_once_in_its_order():
    ended: ResultQueue[int] = ResultQueue()
    assert ended.take() == []
    for n in range(3):
        ended.put(n)
    assert ended.take() == [0, 1, 2]
    assert ended.take() == []


def test_who_waits_is_woken_when_so_many_are_there_and_not_before():
    ended: ResultQueue[int] = ResultQueue()
    thread, taken = taking(ended, 3, SOON)
    ended.put(1)
    ended.put(2)
    thread.join(0.1)
    assert thread.is_alive()
    ended.put(3)
    thread.join(SOON / 2)
    assert taken == [[1, 2, 3]]


def test_enough_is_not_waited_for():
    ended: ResultQueue[int] = ResultQueue()
    for n in range(3):
        ended.put(n)
    begin = time.monotonic()
    assert ended.take(2, SOON) == [0, 1, 2]
    assert time.monotonic() - begin < SOON / 2


def test_when_the_time_is_over_there_is_what_has_come():
    ended: ResultQueue[int] = ResultQueue()
    ended.put(1)
    assert ended.take(2, 0.01) == [1]
    assert ended.take(2, 0.01) == []


def test_nothing_is_lost_or_doubled_between_threads():
    ended: ResultQueue[int] = ResultQueue()
    putting = threading.Thread(target=lambda: [ended.put(n) for n in range(10_000)])
    putting.start()
    found: list[int] = []
    while len(found) < 10_000:
        found += ended.take(7, 0.05)
    putting.join(SOON)
    assert found == list(range(10_000))
    assert ended.take() == []
