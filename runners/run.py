"""``llmdo run``: checks what can be checked before the first call, runs the graph, and says how it ended."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

import backends.errors
import storage.errors
from backends.engine import close_engines
from pipelines import jsonl
from pipelines.options import JsonlOptions, UsageError
from runners import direct, prism
from storage.configuration import agree
from storage.environment import cloudflare_account
from storage.errors import QueueNotFound
from storage.ledger import SQLITE_SCHEME
from storage.objects import locate, open_store
from storage.queue_api import WRONG_ACCOUNT
from storage.queues import find_queue
from storage.runs import Presence
from transforms.elements import FileVersion, Settled
from transforms.infer import PaidAnswers, RunAsleep
from transforms.notices import list_inputs
from transforms.run_state import Counts, RunState, reset_run_state

_log = logging.getLogger(__name__)

# runner → a context manager that starts what it needs and gives the pipeline's arguments.
RUNNERS: dict[str, Callable[[JsonlOptions], AbstractContextManager[list[str]]]] = {
    "direct": direct.launch,
    "prism": prism.launch,
}

EXIT_ANSWERED, EXIT_FAILED, EXIT_USAGE, EXIT_SOME_ERRORS = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended.

    Attributes:
        settled: files that are done or stale, also those that were done before.
        in_work: files that this run opened and did not finish; the next run goes on with them.
        left: what was not opened, and why.
        problem: why the run stopped early, or None; ``asleep`` when it was frozen or cut off for too long.
        others: files that other runs work on, with the run's id.
    """

    run_id: str
    counts: Counts
    settled: tuple[Settled, ...]
    in_work: tuple[FileVersion, ...]
    left: dict[str, str]
    problem: str | None = None
    asleep: bool = False
    others: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 all answered; 3 finished, but some lines ended as errors or a file as stale; 1 failed or stopped."""
        if self.problem or self.in_work or self.left:
            return EXIT_FAILED
        incomplete = any(settled.failed or settled.status == "stale" for settled in self.settled)
        return EXIT_SOME_ERRORS if incomplete else EXIT_ANSWERED

    def as_json(self) -> dict[str, Any]:
        """For ``--json``; times in ISO 8601, sizes in bytes."""
        return {
            "run_id": self.run_id,
            "exit_code": self.exit_code,
            "problem": self.problem,
            "answered": self.counts.answered,
            "failed": self.counts.failed,
            "input_tokens": self.counts.input_tokens,
            "output_tokens": self.counts.output_tokens,
            "messages": {
                "passed_over": self.counts.messages_passed_over,
                "undecodable": self.counts.messages_undecodable,
            },
            "files": [
                {"file": f"{s.file.store_url}/{s.file.key}", "etag": s.file.etag, "status": s.status}
                | ({"answered": s.answered, "failed": s.failed} if s.status == "done" else {})
                | ({"reason": s.reason} if s.reason else {})
                for s in self.settled
            ],
            "in_work": [f"{file.store_url}/{file.key}" for file in self.in_work],
            "left": self.left,
            "in_work_by_others": self.others,
        }


def prepare(options: JsonlOptions) -> JsonlOptions:
    """Finds what can be found before any call: the queue's id, the buckets, the files, the ledger, the configuration.

    Raises UsageError for what the user must correct, StorageError for a service that refuses.
    """
    if options.queue is not None:
        try:
            options = options.model_copy(update={"queue": find_queue(cloudflare_account(), options.queue)})
        except QueueNotFound as error:
            if error.code in WRONG_ACCOUNT:
                raise
            raise UsageError([str(error)]) from None
    for place in (options.output, options.input):
        if place is not None and (where := locate(place)).bucket:
            next(open_store(where.store_url).list(options.output_location.key + "_runs/"), None)
    if options.files and next(list_inputs(options.source, options.output_location), None) is None:  # type: ignore[arg-type]  # files make a Listing
        raise UsageError([f"no file ends in .jsonl, .jsonl.gz or .jsonl.zst at {' '.join(options.files)}"])
    check_ledger(options.paid)
    return options


def check_ledger(paid: PaidAnswers) -> None:
    """Opens and closes the ledger, so that what is wrong with it is said before any call. Raises LedgerError."""
    if paid.ledger.startswith(SQLITE_SCHEME):
        Path(paid.ledger.removeprefix(SQLITE_SCHEME)).expanduser().parent.mkdir(parents=True, exist_ok=True)
    recall = paid.open()
    if recall is not None:
        asyncio.run(recall.aclose())


def check_configuration(options: JsonlOptions, is_alive: Callable[[str], bool]) -> None:
    """Raises UsageError where the output holds answers of another model, or by other parameters."""
    where = options.output_location
    try:
        other = agree(open_store(where.store_url), where.key, options.configuration, options.decisive, is_alive)
    except ValueError as error:
        raise UsageError([str(error)]) from None
    if other is not None:
        differences = [
            f"{name} {other.get(name)!r} there, {ours!r} now"
            for name, ours in options.decisive.items()
            if other.get(name) != ours
        ]
        said = f"{options.output} is for answers of another configuration ({'; '.join(differences)})"
        raise UsageError([f"{said}: use another --output"])


def run(options: JsonlOptions, watch: Callable[[RunState], AbstractContextManager[None]]) -> Summary:
    """Runs until nothing is left; ``watch`` shows the state while it goes on. Raises what ``prepare`` raises."""
    options = prepare(options)
    while True:
        summary = _run_once(options, watch)
        if not summary.asleep or not summary.counts.shards:  # again and again without progress would help nobody
            return summary
        _log.warning("%s; going on", summary.problem)


def _run_once(options: JsonlOptions, watch: Callable[[RunState], AbstractContextManager[None]]) -> Summary:
    state = reset_run_state()
    run_id = new_run_id()
    problem: str | None = None
    where = options.output_location
    presence = state.presence = Presence(open_store(where.store_url), where.key, run_id)
    try:
        check_configuration(options, presence.is_alive)
        with stop_on_signals(state), RUNNERS[options.runner](options) as arguments, watch(state):
            pipeline = beam.Pipeline(options=PipelineOptions(arguments))
            jsonl.build(pipeline, options, run_id)
            pipeline.run().wait_until_finish()
    except UsageError:
        raise
    except Exception as error:  # noqa: BLE001  Beam wraps what a step raises in whatever its runner likes
        problem = sentence(error)
        _log.debug("the pipeline failed", exc_info=error)
    finally:
        close_engines()
        presence.stop()
    reason = state.stop_reason
    if isinstance(reason, Exception):
        problem = sentence(reason)
    elif reason is not None:
        problem = problem or str(reason)
    return Summary(
        run_id,
        state.counts,
        tuple(state.settled.values()),
        tuple(file for name, file in state.opened.items() if name not in state.settled),
        dict(state.left),
        problem,
        isinstance(reason, RunAsleep),
        dict(state.others),
    )


def new_run_id() -> str:
    """Names one run among all: host, process and a random part."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


@contextmanager
def stop_on_signals(state: RunState) -> Iterator[None]:
    """The first SIGINT or SIGTERM stops the run cleanly, the second ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _: FrameType | None) -> None:
        if state.stop_reason is not None:
            os._exit(128 + number)
        state.stop(f"stopped by {signal.Signals(number).name}; run the same command again to go on")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_OUR_ERRORS = "|".join([*storage.errors.__all__, *backends.errors.__all__, "MissingSettings"])
_RAISED = re.compile(rf"^(?:[\w.]+\.)?(?:{_OUR_ERRORS}): (.+?)(?: \[while running .*)?$", re.MULTILINE)


def sentence(error: BaseException) -> str:
    """What happened, without the traceback that Beam puts around an error of a step."""
    if isinstance(error, storage.errors.StorageError | backends.errors.ModelError):
        return re.sub(r" \[while running .*$", "", str(error), flags=re.DOTALL)
    found = _RAISED.findall(str(error))
    return str(found[-1]) if found else str(error).strip() or type(error).__name__
