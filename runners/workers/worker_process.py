"""One worker of ``--processes``, as the run's process sees it."""

from __future__ import annotations

import logging
import math
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from subprocess import DEVNULL, Popen

from llmdo.backends.limits.concurrency_limit import Concurrency
from llmdo.backends.limits.shares import Share
from llmdo.pipelines.options import JsonlOptions
from llmdo.runners.servers import own_modules, start_tied
from llmdo.runners.workers.dealt_stretches import DealtStretch, counts_of
from llmdo.runners.workers.wire import Begin, Channel, LogLine, WorkerEnded, WorkerReport
from llmdo.transforms.elements import Written

# Stretches that a worker has and does not read yet; more of them, if they have fewer bytes than this together: between
# two small files a worker would often wait. Quick ones, which it reads before others, are counted by themselves.
UNREAD, MOST_UNREAD, SMALL_UNREAD = 2, 16, 64 << 10
# A worker may still run this long when the run's process is gone: see llmdo.runners.workers.working. Seconds.
_GRACE_S = 10
# What several workers log in the same trouble is shown once within this time. Seconds; lines.
_SAME_SECONDS, _SAID_KEPT = 10.0, 1_000


@dataclass(eq=False, slots=True)
class WorkerProcess:
    """A process, what it has in work, and what it reported.

    Attributes:
        share: what it may use, as it was sent last.
        dealt: its stretches in work, by number.
        written: what of ``counted`` is in shards.
        counted: the counts of its last report, which the run's state has.
        silent_s: since its last message, in seconds.
        gone: it will say nothing more.
        ended: its last message, if it ended by itself.
        reads_alone: whether it has a stretch that another worker died of, and no other one.
        idle_deals: how often in a row it was dealt no calls.
        leaving: it was asked to leave, since others make all calls; what it has and did not answer is dealt out again.
    """

    process: Popen[bytes]
    channel: Channel
    share: Share
    dealt: dict[int, DealtStretch] = field(default_factory=dict)
    written: Counter[str] = field(default_factory=Counter)
    counted: dict[str, int] = field(default_factory=dict)
    report: WorkerReport | None = None
    silent_s: float = 0.0
    gone: bool = False
    ended: WorkerEnded | None = None
    reads_alone: bool = False
    idle_deals: int = 0
    leaving: bool = False
    _unread: dict[int, DealtStretch] = field(default_factory=dict)

    def give(self, dealt: DealtStretch) -> None:
        """Sends it a stretch."""
        self.dealt[dealt.stretch.number] = self._unread[dealt.stretch.number] = dealt
        self.reads_alone = dealt.deaths > 0
        self.channel.send(dealt.stretch)

    def begins(self, number: int) -> None:
        """It begins to read a stretch."""
        dealt = self._unread.pop(number, None)
        if dealt is not None:
            dealt.begun = True

    def came_back(self, written: Written) -> None:
        """Takes note of what it has written."""
        self.written.update(counts_of(written))
        dealt = self.dealt.get(written.file.stretch or 0)
        if dealt is not None:
            dealt.add(written)
            if dealt.done:
                del self.dealt[dealt.stretch.number]
                self.reads_alone = self.reads_alone and bool(self.dealt)

    @property
    def unread(self) -> int:
        """Stretches that it has not begun to read."""
        return len(self._unread)

    def has_room(self, *, quick: bool) -> bool:
        """Whether it can have another stretch, so that it need not wait when it has read one."""
        sizes = [dealt.size for dealt in self._unread.values() if dealt.stretch.quick == quick]
        return len(sizes) < UNREAD or (len(sizes) < MOST_UNREAD and sum(sizes) < SMALL_UNREAD)

    @property
    def takes_work(self) -> bool:
        """Whether it can read stretches, as far as is known."""
        return not (self.gone or self.leaving or self.ended is not None)


def worker_for(workers: Iterable[WorkerProcess], dealt: DealtStretch, *, few_calls: bool) -> WorkerProcess | None:
    """The worker with the least to read that has room for a stretch.

    One that makes no calls gets none while there are ``few_calls``: it would wait for as long as others have work.
    """
    found = [worker for worker in workers if worker.takes_work and (worker.share.window or not few_calls)]
    if dealt.deaths:
        found = [worker for worker in found if not worker.dealt]
    else:
        found = [worker for worker in found if not worker.reads_alone and worker.has_room(quick=dealt.stretch.quick)]
    return min(found, key=lambda one: (one.unread, len(one.dealt)), default=None)


def start_worker(run_id: str, options: JsonlOptions, parts: int, share: Share) -> WorkerProcess:
    """Starts one of the workers of a run, which is killed a few seconds after this process is gone. Raises OSError."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-P", "-m", "llmdo.runners.workers.child", str(theirs.fileno())]
        process = start_tied(command, DEVNULL, None, own_modules(), pass_fds=(theirs.fileno(),), grace_s=_GRACE_S)
    worker = WorkerProcess(process, Channel(ours.detach()), share)
    window = Concurrency(-(-options.concurrency.calls // parts), options.concurrency.fixed)
    equal = options.model_copy(update={"concurrency": window, "workers": options.workers * parts})
    worker.channel.send(Begin(run_id, equal, share))
    return worker


class SaidOnce:
    """Logs what workers log, once what several of them say at about the same time. Thread-safe."""

    def __init__(self) -> None:
        self._said: dict[LogLine, float] = {}
        self._lock = threading.Lock()

    def __call__(self, line: LogLine) -> None:
        """Logs it, unless it was logged a moment ago."""
        now = time.monotonic()
        with self._lock:
            before = self._said.get(line, -math.inf)
            if len(self._said) >= _SAID_KEPT:
                self._said.clear()
            self._said[line] = now
        if now - before > _SAME_SECONDS:
            logging.getLogger(line.logger).log(line.level, "%s", line.text)
