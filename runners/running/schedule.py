"""``llmdo schedule``: waits for ticks, and starts one run at a time for them, on whatever machine the others are."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from llmdo.pipelines.options import JsonlOptions
from llmdo.runners.exit_codes import EXIT_ANSWERED, EXIT_FAILED, EXIT_HANDED_OVER, EXIT_SOME_ERRORS
from llmdo.runners.prism import runner as prism
from llmdo.runners.running.attempt import new_run_id
from llmdo.runners.running.checks import prepare
from llmdo.runners.running.cron import Cron
from llmdo.runners.running.process import RunEnd, RunProcess
from llmdo.runners.running.stop import handling_signals, leave
from llmdo.settings.secrets import without_secrets
from llmdo.storage.errors import StorageError
from llmdo.storage.objects.opening import open_store
from llmdo.storage.runs.runs import Presence
from llmdo.storage.runs.schedules import ClaimBusy, ClaimHeld, Schedules, TickDone

_log = logging.getLogger(__name__)

_NAP = 0.5  # seconds; short, since clocks are set and machines sleep
# When a claim that was taken, or a store that could not be reached, is looked at again.
_AGAIN = timedelta(seconds=60)


class Stopping:
    """Whether SIGTERM or Ctrl-C came; a second one exits at once, and the current run with it."""

    asked = False

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Listens for them."""
        with handling_signals(self._handle):
            yield

    def _handle(self, number: int) -> None:
        if self.asked:
            leave(128 + number)
        self.asked = True


@dataclass(frozen=True)
class Surroundings:
    """What a schedule needs from outside.

    Attributes:
        start: starts a run.
        waits: is called with each next tick, once.
        ended: is called with each run's summary, as the output has it.
        started: is called when a run was started.
    """

    start: Callable[[], RunProcess]
    waits: Callable[[datetime], None]
    ended: Callable[[dict[str, Any]], None]
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    nap: Callable[[float], None] = time.sleep
    started: Callable[[], None] = lambda: None


def schedule(
    options: JsonlOptions,
    cron: Cron,
    command: str,
    run: Sequence[str],
    waits: Callable[[datetime], None],
    ended: Callable[[dict[str, Any]], None],
    started: Callable[[], None] = lambda: None,
) -> int:
    """Runs at each tick until SIGTERM or Ctrl-C, and returns the exit code of the last run; see ``Schedule``.

    Args:
        options: those of each run.
        cron: when.
        command: how this was started, for the summaries; without secrets there.
        run: the arguments of the command line that a run is started with.
        waits: see Surroundings.
        ended: see Surroundings.
        started: see Surroundings.

    Raises UsageError and StorageError for what would stop the first run anyway.
    """
    if not options.local_files:  # they may come later
        prepare(options)
    if options.runner == "prism":
        with prism.launch(options):  # one that is refused would be refused at each tick
            pass
    stopping = Stopping()
    surroundings = Surroundings(lambda: RunProcess(run), waits, ended, started=started)
    with stopping.on_signals():
        return Schedule(options, cron, without_secrets(command), surroundings, stopping).run()


class Schedule:
    """The schedule of one output. A run that fails does not end it.

    Ticks that pass during a run, while another machine has the claim or while no process was there are made up
    by one run, whose tick is the newest of them. A run that was cut short does not count: its tick is made up for, too.
    """

    def __init__(
        self, options: JsonlOptions, cron: Cron, command: str, surroundings: Surroundings, stopping: Stopping
    ) -> None:
        where = options.output_location
        self._store, self._prefix = open_store(where.store_url), where.key
        source = options.queue or " ".join(options.files)
        self._text = f"{cron.expression} {cron.timezone}"
        self._book = Schedules(self._store, self._prefix, f"{self._text} {source}")
        self._cron = cron
        self._command = command
        self._world = surroundings
        self._stopping = stopping
        self._skipped: datetime | None = None
        self._exit_code = EXIT_ANSWERED

    def run(self) -> int:
        """Runs until it is stopped. Raises StorageError if it cannot begin."""
        last = self._book.begin(self._world.clock())
        while not self._stopping.asked:
            now = self._world.clock()
            tick = self._cron.latest(last, now)
            if tick is None:
                following = self._cron.next(max(now, last))
                self._world.waits(following)
                self._sleep_until(following)
                continue
            try:
                done = self._turn(tick, last, now)
            except (StorageError, OSError) as error:  # if a process cannot be started
                _log.warning("no run for the tick of %s yet: %s", _iso(tick), error)
                done = None
            if done is None:
                self._sleep_until(min(now + _AGAIN, self._cron.next(now)))
            else:
                last = done
        return self._exit_code

    def _sleep_until(self, moment: datetime) -> None:
        while not self._stopping.asked and (left := (moment - self._world.clock()).total_seconds()) > 0:
            self._world.nap(min(_NAP, left))

    def _turn(self, tick: datetime, last: datetime, now: datetime) -> datetime | None:
        """Runs for a tick, if it is our turn. Returns the newest tick that is done, or None: look again later."""
        presence = Presence(self._store, self._prefix, new_run_id())
        try:
            match self._book.take(presence, tick, last, now):
                case TickDone(newest):
                    _log.info("the tick of %s was run for by another process", _iso(tick))
                    return newest
                case ClaimBusy(claim):
                    self._skip(tick, claim.tick, claim.run_id)
                    return None
                case ClaimHeld() as held:
                    return self._run(tick, held, presence)
        finally:
            presence.stop()

    def _skip(self, tick: datetime, theirs: datetime | None, run_id: str) -> None:
        if tick in (theirs, self._skipped):
            return
        why = f"{run_id} is still running" + (f" on the tick of {_iso(theirs)}" if theirs else "")
        _log.warning("no run for the tick of %s: %s", _iso(tick), why)
        self._book.write_skipped(tick, {"tick": _iso(tick), "schedule": self._text, "skipped": why})
        self._skipped = tick

    def _run(self, tick: datetime, held: ClaimHeld, presence: Presence) -> datetime | None:
        started, run = self._world.clock(), self._world.start()
        self._world.started()
        how, cut_short = self._watch(run, presence)
        ends = (EXIT_ANSWERED, EXIT_SOME_ERRORS, EXIT_HANDED_OVER)
        self._exit_code = how.exit_code if how.exit_code in ends else EXIT_FAILED
        said = {
            "tick": _iso(tick),
            "started": _iso(started, "milliseconds"),
            "ended": _iso(self._world.clock(), "milliseconds"),
            "schedule": self._text,
            "command": self._command,
            **how.summary,
            "exit_code": how.exit_code,
        }
        done = not (cut_short and self._exit_code == EXIT_FAILED)
        try:
            self._book.write(tick, said)
            self._book.release(held, done=done)
        except StorageError as error:
            _log.warning("the output does not say how the run for the tick of %s ended: %s", _iso(tick), error)
        self._world.ended(said)
        return tick if done else None

    def _watch(self, run: RunProcess, presence: Presence) -> tuple[RunEnd, bool]:
        """Waits for a run's end; also says whether it was asked to end."""
        asked = False
        while (how := run.result(_NAP)) is None:
            if not asked and (self._stopping.asked or presence.asleep):
                asked = True
                run.stop()
        return how, asked


def _iso(moment: datetime, timespec: str = "seconds") -> str:
    return moment.isoformat(timespec=timespec).replace("+00:00", "Z")
