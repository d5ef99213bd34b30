"""Files that keep coming take turns, quick ones do not wait, and what is emitted of a file has one time."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

from llmdo.storage.output.manifests import ShardRecord
from llmdo.transforms.elements import FileVersion, KnownShard, Leftovers, OpenFile, Written
from llmdo.transforms.lines import held_files as module
from llmdo.transforms.lines.deal import SMALLEST_STRETCH
from llmdo.transforms.lines.held_files import HELD_STRETCH, HeldFiles
from llmdo.transforms.lines.reading import NO_END, Reading
from llmdo.transforms.lines.stretches import is_quick

GAP = (500_000, 500_000 + 12 * HELD_STRETCH)  # in bytes
SHARD = ShardRecord("shard-000000000000-aa.jsonl", "answers", "0+10", 1)


class Rooms:
    """A dealer with room for a large stretch and two quick ones; ``finish`` brings back what was dealt first."""

    most, busy = 2, False

    def __init__(self):
        self.dealt, self._open, self._back = [], deque(), []

    def offer(self, element, start, stop):
        quick = is_quick(element, start, stop)
        if sum(was == quick for was, _ in self._open) >= 1 + quick:
            return False
        self.dealt.append((element.file.key, start, stop))
        self._open.append((quick, Written(element.file, blanks=((start, stop),))))
        return True

    def finish(self, quick):
        one = next(one for one in self._open if one[0] == quick)
        self._open.remove(one)
        self._back.append(one[1])

    def take(self, _):
        back, self._back = self._back, []
        return back


def file(key, size):
    return FileVersion("r2://bucket", key, "e1", size, "nonce")


def opened(key, size, content=None):
    return OpenFile(file(key, size), ((0, size),), content)


def held(now=(1_000.0,)):
    times = list(now)
    return HeldFiles(Reading(), clock=lambda: times.pop(0) if len(times) > 1 else times[0])


def test_large_files_take_turns_and_quick_ones_do_not_wait_for_them():
    files, rooms = held(), Rooms()
    files.add(opened("one", 3 * SMALLEST_STRETCH))
    files.add(opened("two", 2 * SMALLEST_STRETCH))
    for number in range(3):
        files.add(opened(f"quick-{number}", 100))
    assert files.emit(rooms, 0.0) == []
    assert [key for key, *_ in rooms.dealt] == ["quick-0", "quick-1", "one"]
    rooms.finish(quick=True)
    for _ in range(4):
        rooms.finish(quick=False)
        files.emit(rooms, 0.0)
        files.emit(rooms, 0.0)
    assert [key for key, *_ in rooms.dealt[3:]] == ["quick-2", "two", "one", "two", "one"]
    for key, size in (("one", 3 * SMALLEST_STRETCH), ("two", 2 * SMALLEST_STRETCH)):
        own = [(start, stop) for name, start, stop in rooms.dealt if name == key]
        assert (own[0][0], own[-1][1]) == (0, size)
        assert all(before[1] == after[0] for before, after in pairwise(own))


def test_each_gap_is_dealt_and_what_cannot_be_cut_is_one_stretch():
    files = held()
    files.add(OpenFile(file("gaps", GAP[1]), ((10, 20), GAP)))
    files.add(OpenFile(file("a.gz", 100), ((0, 5), (9, None))))
    files.add(OpenFile(file("empty", 0), ((0, 0),), b""))
    dealt = []

    class Everything(Rooms):
        def offer(self, element, start, stop):
            dealt.append((element.file.key, element.gaps, start, stop))
            return True

    files.emit(Everything(), 0.0)
    start, last = GAP
    assert dealt[:4] == [
        ("gaps", ((10, 20),), 10, 20),
        ("empty", ((0, 0),), 0, NO_END),
        ("gaps", (GAP,), start, start + HELD_STRETCH),
        ("a.gz", ((0, 5), (9, None)), 0, NO_END),
    ]
    assert dealt[4] == ("gaps", (GAP,), start + HELD_STRETCH, start + 2 * HELD_STRETCH)
    assert all(one[:2] == ("gaps", (GAP,)) for one in dealt[5:])
    sizes = [stop - begin for _, _, begin, stop in dealt[5:]]
    assert dealt[-1][3] == last and SMALLEST_STRETCH in sizes and sizes[:-1] == sorted(sizes[:-1], reverse=True)


def test_all_that_is_emitted_of_a_file_has_the_time_it_came_and_the_watermark_waits_for_it():
    files, rooms = held(now=(50.0, 100.0, 200.0, 5.0, 5_000.0)), Rooms()
    old, new = opened("old", 100), opened("new", 100)
    known = KnownShard(old.file, SHARD)
    files.add(known)  # at 100
    files.add(new)  # at 200
    files.add(Leftovers(old.file, ("torn",)))  # the clock goes back
    files.add(old)
    emitted = files.emit(rooms, 0.0)
    assert emitted == [
        (Written(old.file, shard=SHARD), 100.0),
        (Written(old.file, leftovers=("torn",)), 100.0),
    ]
    in_work = [old.file.work_id, new.file.work_id]
    assert files.oldest(lambda: in_work) == 100.0
    rooms.finish(quick=True)
    assert [since for _, since in files.emit(rooms, 0.0)] == [200.0]
    del in_work[0]  # it is settled
    files._look_at = 0.0
    assert files.oldest(lambda: in_work) == 200.0
    del in_work[0]
    files._look_at = 0.0
    assert files.oldest(lambda: in_work) == 5_000.0
    assert files._since == {}


def test_many_files_that_wait_do_not_keep_their_content(monkeypatch):
    monkeypatch.setattr(module, "CONTENTS", 2)
    files = held()
    for number in range(4):
        files.add(opened(str(number), 5, b"12345"))
    assert [part.element.content for part in files._quick] == [b"12345", b"12345", None, None]
