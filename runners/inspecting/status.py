"""``llmdo status``: what is done, in work, waiting and failed in an output, and which runs are alive."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from llmdo.backends.lanes.records import BatchRecord
from llmdo.pipelines.usage import UsageError
from llmdo.runners.showing.budget import BudgetNow, budget_now
from llmdo.runners.showing.errors import errors_table
from llmdo.runners.showing.limits import iso_time
from llmdo.runners.showing.summary import cost_json, dollars, file_receipt_text
from llmdo.runners.showing.words import counted, lasting
from llmdo.settings.environment import MissingSettings, cloudflare_account
from llmdo.storage.errors import InvalidLocation, StorageError
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import R2_SCHEME, locate_folder
from llmdo.storage.output.jobs import JobRecord
from llmdo.storage.output.overview import FileInWork, Observer, Overview, check_there
from llmdo.storage.queues.client import Backlog, QueueClient, find_queue
from llmdo.storage.runs.runs import SeenRun, run_of
from llmdo.transforms.answers.batch_records import OutputBatches, is_awaited

_log = logging.getLogger(__name__)

# Rows of each table; --json has all.
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Status:
    """An output at one moment; ``queues`` by id or name, None for one that cannot be asked. Times in Unix seconds.

    ``batches``: those that have not ended.
    """

    output: str
    at: float
    seen: Overview
    queues: dict[str, Backlog | None]
    budget: BudgetNow | None = None
    batches: tuple[BatchRecord, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For ``--json``; ages in seconds, sizes in bytes."""
        seen, alive, waiting = self.seen, self.alive(), self.waiting()
        return {
            "output": self.output,
            "files": {
                "done": seen.files_done,
                "in_work": sum(run_of(one.record.run_id) in alive for one in seen.open),
                "waiting": sum(map(waiting, seen.open)),
                "left_open": sum(run_of(one.record.run_id) not in alive and not waiting(one) for one in seen.open),
                "dead_letters": len(seen.dead),
            },
            "manifests_read": seen.read,
            "lines": {"answered": seen.answered, "failed": seen.failed, "last_hour": seen.last_hour},
            "input_tokens": seen.input_tokens,
            "output_tokens": seen.output_tokens,
            **cost_json(seen.cost),
            "receipt": None if seen.receipt is None else seen.receipt.model_dump(),
            "budget": None if self.budget is None else self.budget.as_json(),
            "runs": [_run_json(run) for run in seen.runs],
            "open": [_open_json(one, alive) | {"waiting": waiting(one)} for one in seen.open],
            "batches": [self._batch_json(one) for one in self.batches],
            "dead_letters": [{"file": _name(record), "problem": record.problem} for record in seen.dead],
            "queues": {
                name: None if found is None else {"backlog": found.messages, "oldest_s": self._age(found)}
                for name, found in self.queues.items()
            },
            "errors_read": seen.errors_read,
            "errors": [one.as_json() for one in seen.errors],
            "problems": list(seen.problems),
        }

    def alive(self) -> set[str]:
        """The runs that work."""
        return {run.beat.run_id for run in self.seen.runs if run.alive}

    def waiting(self) -> Callable[[FileInWork], bool]:
        """Tells whether nobody works on a file, since lines of it wait in batches."""
        alive, some = self.alive(), len(self.batches) > 0
        places = {place for batch in self.batches for place in batch.files}
        # The record of a batch over many small files does not name them all.
        every = any(sum(batch.files.values()) < batch.lines for batch in self.batches)
        return lambda one: some and run_of(one.record.run_id) not in alive and (every or _place(one.record) in places)

    def rescue_of(self, batch: BatchRecord) -> tuple[float, float] | None:
        """When a living run will cancel a batch, and call its lines, if it is not back before."""
        alive = (run.beat.rescues for run in self.seen.runs if run.alive)
        return next((rescues[batch.nonce] for rescues in alive if batch.nonce in rescues), None)

    def awaited(self, batch: BatchRecord) -> bool:
        """Whether a file that is in work, or that a run may open just now, can have lines in a batch."""
        return bool(self.alive()) or is_awaited(batch, {_place(one.record) for one in self.seen.open})

    def _batch_json(self, batch: BatchRecord) -> dict[str, Any]:
        rescue = self.rescue_of(batch)
        return {
            "nonce": batch.nonce,
            "batch": batch.batch or None,
            "model": f"{batch.provider}/{batch.model}",
            "lines": batch.lines,
            "age_s": round(max(0.0, self.at - (batch.handed_over_at or batch.reserved_at)), 1),
            "expected_by": iso_time(batch.expected_by) if batch.expected_by else None,
            "unclear": batch.unclear or None,
            "rescue": None if rescue is None else {"cancel_at": iso_time(rescue[0]), "call_at": iso_time(rescue[1])},
            "awaited": self.awaited(batch),
            "run_id": batch.run,
            "ledger": batch.ledger or None,
        }

    def _age(self, found: Backlog) -> float | None:
        return None if found.oldest_at is None else round(max(0.0, self.at - found.oldest_at), 1)


class OutputWatch:
    """Looks at an output again and again. Raises UsageError, MissingSettings and StorageError.

    ``queue``: asked besides those that live runs read.
    """

    def __init__(self, output_url: str, queue: str | None) -> None:
        try:
            where = locate_folder(output_url)
        except InvalidLocation as error:
            raise UsageError([str(error)]) from None
        store = open_store(where.store_url)
        check_there(store, where.key)
        self._url, self._where, self._queue = output_url, where, queue
        self._observer = Observer(store, where.key)
        self._batches = OutputBatches(where)

    def look(self) -> Status:
        """How it is now."""
        seen = self._observer.look()
        names = {run.beat.queue for run in seen.runs if run.alive and run.beat.queue}
        names |= {self._queue} if self._queue else set()
        queues = {name: _backlog(name) for name in sorted(names)}
        batches = tuple(self._batches.open())
        return Status(self._url, time.time(), seen, queues, budget_now(self._where), batches)


def _backlog(name: str) -> Backlog | None:
    try:
        account = cloudflare_account()
        with QueueClient(account, find_queue(account, name)) as client:
            return client.backlog_now()
    except (StorageError, MissingSettings) as error:
        _log.info("queue %s cannot be asked: %s", name, error)
        return None


def status_shown(status: Status) -> RenderableType:
    """For people."""
    return Group(*_parts(status))


def _parts(status: Status) -> Iterator[RenderableType]:
    seen = status.seen
    said = status.as_json()["files"]
    yield Text(
        f"{counted(said['done'], 'file')} done, {said['in_work']:,} in work"
        + (f", {said['waiting']:,} waiting for batches" if said["waiting"] else "")
        + (f", {said['left_open']:,} left open: the next run resumes them" if said["left_open"] else "")
        + (f", {said['dead_letters']:,} in the dead letters" if said["dead_letters"] else "")
    )
    part = "" if seen.read >= seen.files_done else f" (of {seen.read:,} manifests; --watch reads on)"
    yield Text(
        f"{counted(seen.answered, 'line')} answered, {counted(seen.failed, 'error')}, {seen.last_hour:,} in the last "
        f"hour; {counted(seen.input_tokens, 'token')} in, {seen.output_tokens:,} out, "
        f"{dollars(seen.cost.usd, lower_bound=seen.cost.unpriced > 0)}{part}"
    )
    if seen.receipt is not None:
        yield Text(f"{file_receipt_text(seen.receipt)}{part}")
    if status.budget is not None:
        yield Text(str(status.budget))
    for name, found in status.queues.items():
        yield Text(_queue_text(name, found, status.at))
    if seen.runs:
        yield _runs_table(seen.runs)
    if seen.open:
        yield _open_table(seen.open, status)
    if status.batches:
        yield _batches_table(status)
    yield from _deadline_texts(status)
    if seen.errors:
        part = "" if seen.errors_read >= seen.failed else f"of {seen.errors_read:,} of {seen.failed:,} errors"
        yield errors_table(seen.errors, part)
    for record in seen.dead[:_SHOWN]:
        yield Text(f"dead letter: {_name(record)}: {record.problem}")
    for problem in seen.problems[:_SHOWN]:
        yield Text(problem)


def _queue_text(name: str, found: Backlog | None, now: float) -> str:
    if found is None:
        return f"queue {name}: it could not be asked"
    oldest = "" if found.oldest_at is None else f", the oldest {lasting(max(0.0, now - found.oldest_at))} old"
    return f"queue {name}: about {counted(found.messages, 'message')}{oldest}"


def _runs_table(runs: tuple[SeenRun, ...]) -> Table:
    table = Table("run", "what", "state", Column("since", justify="right"), "lines", "calls", "left", "held back")
    for run in sorted(runs, key=lambda run: run.age_s)[:_SHOWN]:
        figures = run.beat.figures
        since = lasting(max(0.0, time.time() - run.beat.started_at)) if run.beat.started_at else ""
        rate = figures.get("lines_per_s")
        table.add_row(
            Text(run.beat.run_id),
            Text(run.beat.command),
            _state(run),
            since,
            Text(f"{figures['lines']:,}" + (f", {rate:,.1f}/s" if rate else "")) if "lines" in figures else "",
            Text(f"{figures.get('in_flight', 0):,} of {figures.get('window', 0):,}") if figures else "",
            lasting(figures["left_s"]) if figures.get("left_s") else "",
            Text(str(figures.get("held") or "")),
        )
    return table


def _state(run: SeenRun) -> Text:
    if not run.alive:
        return Text(f"dead for {lasting(run.age_s)}", style="red")
    return Text("paused" if run.beat.paused else "alive")


def _batches_table(status: Status) -> Table:
    shown = sorted(status.batches, key=lambda one: one.reserved_at)[:_SHOWN]
    told = any(_rescue_text(status, one) for one in shown), any(_batch_problem(one, status) for one in shown)
    # Names are folded, not cut off: by them a provider's list is searched. In 80 columns there is no room to waste.
    table = Table(
        *(Column("batch", overflow="fold"), Column("model", overflow="fold"), Column("lines", justify="right")),
        *(Column("age", justify="right"), "expected"),
        *(name for name, some in zip(("if not back", "problem"), told, strict=True) if some),
    )
    for one in shown:
        age = lasting(max(0.0, status.at - (one.handed_over_at or one.reserved_at)))
        left_s = one.expected_by - status.at
        due = "" if not one.expected_by else f"in {lasting(left_s)}" if left_s > 0 else f"{lasting(-left_s)} ago"
        name = one.batch or f"{one.nonce} (perhaps not submitted)"
        model = f"{one.provider}/{one.model}"
        more = Text(_rescue_text(status, one)), Text(_batch_problem(one, status))
        cells = [text for text, some in zip(more, told, strict=True) if some]
        table.add_row(Text(name), Text(model), f"{one.lines:,}", age, due, *cells)
    if len(status.batches) > _SHOWN:
        table.add_row(f"… and {len(status.batches) - _SHOWN:,} more")
    return table


def _deadline_texts(status: Status) -> Iterator[Text]:
    """Of runs with ``--ready-by``."""
    for run in status.seen.runs:
        if (at := run.beat.ready_by) and (run.alive or at > status.at):
            left_s = at - status.at
            when = f"in {lasting(left_s)}" if left_s > 0 else f"{lasting(-left_s)} ago"
            dead = "" if run.alive else ": it is dead, so nothing is rescued; run the same command again"
            yield Text(f"run {run.beat.run_id}: answers are wanted by {_clock(at, status.at)} ({when}){dead}")


def _rescue_text(status: Status, batch: BatchRecord) -> str:
    rescue = status.rescue_of(batch)
    if rescue is None:
        return ""
    cancel_at, call_at = rescue
    cancelled = f"cancelled at {_clock(cancel_at, status.at)}, " if cancel_at > status.at else ""
    return f"{cancelled}rescue at {_clock(call_at, status.at)}"


def _clock(at: float, now: float) -> str:
    """By this machine's clock; with the date where that is not today."""
    then = datetime.fromtimestamp(at)
    return f"{then:%H:%M}" if then.date() == datetime.fromtimestamp(now).date() else f"{then:%Y-%m-%d %H:%M}"


def _batch_problem(batch: BatchRecord, status: Status) -> str:
    if batch.unclear or status.awaited(batch):
        return batch.unclear
    return "no file waits for its answers: the next run closes it"


def _open_table(files: tuple[FileInWork, ...], status: Status) -> Table:
    alive, waits, now = status.alive(), status.waiting(), status.at
    table = Table("file in work", "by", Column("since", justify="right"), Column("shards", justify="right"), "problem")
    for one in sorted(files, key=lambda one: one.record.opened_at)[:_SHOWN]:
        run = run_of(one.record.run_id)
        who = run if run in alive else "waiting for batches" if waits(one) else f"{run or 'nobody'} (not alive)"
        since = lasting(max(0.0, now - _opened(one.record)))
        table.add_row(Text(_name(one.record)), Text(who), since, f"{one.shards:,}", Text(one.record.problem))
    if len(files) > _SHOWN:
        table.add_row(f"… and {len(files) - _SHOWN:,} more", "", "", "", "")
    return table


def _run_json(run: SeenRun) -> dict[str, Any]:
    beat = run.beat
    return {
        "run_id": beat.run_id,
        "command": beat.command or None,
        "alive": run.alive,
        "heartbeat_age_s": round(run.age_s, 1),
        "started_at": beat.started_at or None,
        "queue": beat.queue or None,
        "paused": beat.paused,
        "ready_by": iso_time(beat.ready_by) if beat.ready_by else None,
        "obeys": beat.obeys,
        "refuses": beat.refuses or None,
        "figures": beat.figures or None,
    }


def _open_json(one: FileInWork, alive: set[str]) -> dict[str, Any]:
    run = run_of(one.record.run_id)
    return {
        "file": _name(one.record),
        "size": one.record.size,
        "run_id": run or None,
        "run_alive": run in alive,
        "opened_at": one.record.opened_at,
        "shards": one.shards,
        "bytes_written": one.bytes_written,
        "failures": one.record.failures,
        "problem": one.record.problem or None,
    }


def _name(record: JobRecord) -> str:
    return f"{record.store_url}/{record.key}" if record.store_url.startswith(R2_SCHEME) else record.key


def _place(record: JobRecord) -> str:
    return f"{record.store_url}/{record.key}"


def _opened(record: JobRecord) -> float:
    try:
        return datetime.fromisoformat(record.opened_at).timestamp()
    except ValueError:
        return time.time()
