from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llmdo.local.queues.queues import NewMessage, Queue, Queues
from tests.fakes.clocks import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queues(tmp_path: Path, clock: Clock) -> Iterator[Queues]:
    store = Queues(tmp_path / "queues.sqlite", clock)
    yield store
    store.close()


@pytest.fixture
def queue(queues: Queues) -> Queue:
    made = queues.create("work")
    queues.set_consumer(made, "work-dlq", {"max_retries": 3})
    return made


def push(queues: Queues, queue: Queue, *bodies: bytes, delay: int | None = None) -> None:
    queues.push(queue, [NewMessage(body, delay_seconds=delay) for body in bodies])


def pull(queues: Queues, queue: Queue, size: int = 10, timeout_ms: int = 30_000) -> list[tuple[bytes, int]]:
    return [(m.body, m.attempts) for m in queues.pull(queue, size, timeout_ms)]


def test_a_leased_message_is_hidden_until_its_visibility_timeout(queues: Queues, queue: Queue, clock: Clock) -> None:
    push(queues, queue, b"1")
    assert pull(queues, queue) == [(b"1", 1)]
    clock.now += 29.999
    assert pull(queues, queue) == []
    clock.now += 0.001
    assert pull(queues, queue) == [(b"1", 2)]


def test_messages_come_oldest_first_and_no_more_than_asked_for(queues: Queues, queue: Queue) -> None:
    push(queues, queue, b"1", b"2", b"3")
    assert pull(queues, queue, size=2) == [(b"1", 1), (b"2", 1)]
    assert pull(queues, queue, size=2) == [(b"3", 1)]


def test_a_late_ack_counts_until_the_message_is_delivered_again(queues: Queues, queue: Queue, clock: Clock) -> None:
    push(queues, queue, b"1", b"2")
    first, second = queues.pull(queue, 2, 1000)
    clock.now += 60
    assert queues.settle(queue, [first.lease_id], []).acknowledged == 1
    assert pull(queues, queue) == [(b"2", 2)]
    late = queues.settle(queue, [second.lease_id], [])
    assert late.acknowledged == 0
    assert list(late.warnings) == [second.lease_id]
    assert queues.backlog(queue)["backlog_count"] == 1


def test_a_retry_gives_back_at_once_or_after_its_delay(queues: Queues, queue: Queue, clock: Clock) -> None:
    push(queues, queue, b"now", b"later")
    leases = {m.body: m.lease_id for m in queues.pull(queue, 2, 30_000)}
    settled = queues.settle(queue, [], [(leases[b"now"], None), (leases[b"later"], 600)])
    assert settled.retried == 2
    assert pull(queues, queue) == [(b"now", 2)]
    clock.now += 600
    assert (b"later", 2) in pull(queues, queue)


def test_the_consumers_retry_delay_is_the_default(queues: Queues, queue: Queue, clock: Clock) -> None:
    queues.set_consumer(queue, "", {"retry_delay": 5})
    push(queues, queue, b"1")
    (message,) = queues.pull(queue, 1, 30_000)
    queues.settle(queue, [], [(message.lease_id, None)])
    assert pull(queues, queue) == []
    clock.now += 5
    assert pull(queues, queue) == [(b"1", 2)]


def test_a_delayed_message_counts_as_backlog_before_it_shows(queues: Queues, queue: Queue, clock: Clock) -> None:
    push(queues, queue, b"123", delay=60)
    assert pull(queues, queue) == []
    backlog = queues.backlog(queue)
    assert list(backlog.values()) == [1, 3, int(clock.now * 1000)]
    clock.now += 60
    assert pull(queues, queue) == [(b"123", 1)]


def test_the_queues_own_delay_is_the_default(queues: Queues, queue: Queue, clock: Clock) -> None:
    queues.update(queue, {"delivery_delay": 10})
    slow = queues.by_id(queue.queue_id)
    assert slow is not None
    push(queues, slow, b"1")
    push(queues, slow, b"2", delay=0)
    assert pull(queues, slow) == [(b"2", 1)]
    clock.now += 10
    assert (b"1", 1) in pull(queues, slow)


def test_after_the_last_delivery_a_message_is_a_dead_letter(queues: Queues, queue: Queue, clock: Clock) -> None:
    push(queues, queue, b"poison")
    for attempt in (1, 2, 3):
        assert pull(queues, queue, timeout_ms=1000) == [(b"poison", attempt)]
        clock.now += 1
    assert pull(queues, queue) == []
    dead = queues.by_name("work-dlq")
    assert dead is not None
    assert pull(queues, dead) == [(b"poison", 1)]


def test_a_retry_after_the_last_delivery_is_a_dead_letter_at_once(queues: Queues, queue: Queue) -> None:
    queues.set_consumer(queue, "work-dlq", {"max_retries": 1})
    push(queues, queue, b"poison")
    (message,) = queues.pull(queue, 1, 30_000)
    assert queues.settle(queue, [], [(message.lease_id, 600)]).retried == 1
    dead = queues.by_name("work-dlq")
    assert dead is not None
    assert (queues.backlog(queue)["backlog_count"], queues.backlog(dead)["backlog_count"]) == (0, 1)


def test_without_a_dead_letter_queue_an_exhausted_message_is_gone(queues: Queues, queue: Queue, clock: Clock) -> None:
    queues.set_consumer(queue, "", {"max_retries": 1})
    push(queues, queue, b"poison")
    assert pull(queues, queue, timeout_ms=1000) == [(b"poison", 1)]
    clock.now += 1
    assert pull(queues, queue) == []
    assert [q.name for q in queues.queues() if queues.backlog(q)["backlog_count"]] == []


def test_without_a_consumer_nothing_is_ever_exhausted(queues: Queues, clock: Clock) -> None:
    loose = queues.create("loose")
    push(queues, loose, b"1")
    for attempt in range(1, 8):
        assert pull(queues, loose, timeout_ms=0) == [(b"1", attempt)]


def test_messages_go_after_the_retention_period(queues: Queues, queue: Queue, clock: Clock) -> None:
    push(queues, queue, b"old")
    clock.now += 4 * 86_400 - 1
    assert queues.backlog(queue)["backlog_count"] == 1
    clock.now += 1
    assert pull(queues, queue) == []


def test_messages_and_leases_outlive_a_restart(tmp_path: Path, clock: Clock) -> None:
    before = Queues(tmp_path / "q.sqlite", clock)
    queue = before.create("work")
    push(before, queue, b"1", b"2")
    (leased,) = before.pull(queue, 1, 30_000)
    before.close()
    after = Queues(tmp_path / "q.sqlite", clock)
    same = after.by_name("work")
    assert same == queue
    assert pull(after, queue) == [(b"2", 1)]
    assert after.settle(queue, [leased.lease_id], []).acknowledged == 1
    after.close()


def test_a_lease_of_another_queue_settles_nothing(queues: Queues, queue: Queue) -> None:
    other = queues.create("other")
    push(queues, queue, b"1")
    (message,) = queues.pull(queue, 1, 30_000)
    assert queues.settle(other, [message.lease_id], []).acknowledged == 0
    assert queues.settle(queue, [message.lease_id], []).acknowledged == 1


def test_a_name_is_taken_once(queues: Queues, queue: Queue) -> None:
    with pytest.raises(ValueError, match="work"):
        queues.create("work")
    assert queues.ensure("work") == queue
