"""What a worker can be given, by what it has."""

from __future__ import annotations

from llmdo.backends.limits.shares import Share
from llmdo.runners.workers.dealt_stretches import DealtStretch
from llmdo.runners.workers.wire import LogLine
from llmdo.runners.workers.worker_process import MOST_UNREAD, SMALL_UNREAD, UNREAD, SaidOnce, WorkerProcess, worker_for
from llmdo.transforms.elements import FileVersion, OpenFile, Written
from llmdo.transforms.lines.stretches import Stretch


class Channel:
    def __init__(self):
        self.sent = []
        self.send = self.sent.append


def worker(window=1):
    return WorkerProcess(None, Channel(), Share(window))


def stretch(number, size, deaths=0):
    file = FileVersion("r2://bucket", f"{number}.jsonl", "e1", size, "nonce", stretch=number)
    return DealtStretch(Stretch(number, OpenFile(file, ((0, size),)), 0, size), deaths=deaths)


def test_a_worker_has_two_large_stretches_ahead_or_more_small_ones():
    one = worker()
    for number in range(UNREAD):
        assert one.has_room(quick=False)
        one.give(stretch(number, 4 << 20))
    assert not one.has_room(quick=False)
    assert one.has_room(quick=True)
    one.begins(0)
    assert one.has_room(quick=False) and one.unread == 1
    other = worker()
    given = 0
    while other.has_room(quick=True):
        other.give(stretch(given, 100))
        given += 1
    assert given == MOST_UNREAD
    third = worker()
    third.give(stretch(1, SMALL_UNREAD // 2))
    third.give(stretch(2, SMALL_UNREAD // 2))
    assert not third.has_room(quick=False)
    third.begins(2)
    assert third.has_room(quick=False)
    assert [sent.number for sent in third.channel.sent] == [1, 2]


def test_a_stretch_is_done_when_all_of_it_came_back_and_the_worker_is_free_again():
    one, dealt = worker(), stretch(7, 30, deaths=1)
    one.give(dealt)
    one.begins(7)
    file = dealt.stretch.element.file
    one.came_back(Written(file, blanks=((0, 10),)))
    one.came_back(Written(file, stretch_length=30))
    assert one.reads_alone and one.dealt == {7: dealt}
    one.came_back(Written(file, blanks=((10, 30),)))
    assert not one.reads_alone and one.dealt == {}
    assert one.written["bytes_done"] == 30


def test_a_stretch_goes_to_the_worker_with_the_least_to_read_but_of_few_calls_to_one_that_makes_them():
    silent, calling = worker(window=0), worker()
    calling.give(stretch(1, 100))
    new = stretch(2, 4 << 20)
    assert worker_for([silent, calling], new, few_calls=False) is silent
    assert worker_for([silent, calling], new, few_calls=True) is calling
    assert worker_for([silent, calling], stretch(3, 100, deaths=1), few_calls=True) is None
    calling.leaving = True
    assert worker_for([silent, calling], new, few_calls=True) is None
    assert worker_for([silent, calling], new, few_calls=False) is silent


def test_what_several_workers_log_at_about_the_same_time_is_logged_once(caplog):
    say, line = SaidOnce(), LogLine("llmdo.somewhere", 30, "the service does not answer")
    with caplog.at_level("WARNING", logger="llmdo.somewhere"):
        for _ in range(4):
            say(line)
        say(LogLine("llmdo.somewhere", 30, "something else"))
    assert caplog.messages == ["the service does not answer", "something else"]
