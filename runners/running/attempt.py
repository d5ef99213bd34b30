"""One pipeline from start to end, whatever ends it."""

from __future__ import annotations

import logging
import os
import re
import socket
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineResult

import llmdo.backends.errors
import llmdo.storage.errors
from llmdo.backends.collector import spare_the_collector
from llmdo.backends.engine.registry import close_engines, close_unawaited, limits_of_engines, rescues_planned
from llmdo.backends.limits.throttle import ModelLimits
from llmdo.backends.money.money import Budget
from llmdo.backends.money.spent import Spent
from llmdo.pipelines.run_options import RunOptions
from llmdo.pipelines.usage import UsageError
from llmdo.runners import dataflow, direct
from llmdo.runners.exporting.telemetry import figures_exported, run_span
from llmdo.runners.flink import runner as flink
from llmdo.runners.prism import runner as prism
from llmdo.runners.running.checks import check_configuration
from llmdo.runners.running.following import Following, count_by_manifests, ended_when_stopped, following
from llmdo.runners.running.steering import Steering
from llmdo.runners.running.stop import Stop
from llmdo.runners.showing.budget import beside_budget, budget_now
from llmdo.runners.showing.history import Recorded, keep_history
from llmdo.runners.showing.logs import logs_of
from llmdo.runners.showing.progress import Meters
from llmdo.runners.showing.summary import Summary
from llmdo.runners.temporary import temporary_files
from llmdo.runners.workers.crew import WorkerFailed, crew_of
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import Location
from llmdo.storage.runs.members import Members
from llmdo.storage.runs.runs import Presence
from llmdo.transforms.acks import close_acks, not_acked
from llmdo.transforms.answers.batch_records import awaited_in
from llmdo.transforms.answers.leases import close_leases
from llmdo.transforms.files.settled_messages import close_pushes
from llmdo.transforms.run_state import RunAsleep, RunState, end_run, state_of
from llmdo.transforms.state_cache import measure_state_cheaply

_log = logging.getLogger(__name__)

Watch = Callable[[RunState], AbstractContextManager[None]]
Options = TypeVar("Options", bound=RunOptions)
# Puts a graph into a pipeline; the text is the run's id.
Build = Callable[[beam.Pipeline, Options, str], Any]

# runner → a context manager that starts what it needs and yields the pipeline's arguments. It takes the options of
# runs that may use it: those of chats have neither Flink's nor Dataflow's.
RUNNERS: dict[str, Callable[[Any], AbstractContextManager[list[str]]]] = {
    "direct": direct.launch,
    "prism": prism.launch,
    "flink": flink.launch,
    "dataflow": dataflow.launch,
}


def attempt(
    options: Options,
    watch: Watch,
    stop: Stop,
    build: Build[Options],
    budget: Budget | None = None,
    close: Callable[[RunState], None] = lambda _: None,
    steering: Steering | None = None,
) -> Summary:
    """Runs a graph once; ``watch`` shows its state meanwhile. Raises UsageError for another configuration.

    ``budget``: what earlier attempts of the same command have spent, and may spend all together. ``close``: closes what
    the graph has open in this process, besides acks and engines. ``steering``: the orders that hold.
    """
    run_id = new_run_id()
    budget = budget or options.new_budget()
    recorded = Recorded(budget.spent())
    with logs_of(run_id), run_span(options, run_id) as ended:
        watch = recorded.beside(watch)
        if options.budget is not None:
            watch = beside_budget(watch, options.output_location)
        summary = _attempt(options, run_id, watch, stop, build, budget, close, steering or Steering(options, stop))
        keep_history(options, recorded, summary)
        return ended(summary)


def _attempt(
    options: Options,
    run_id: str,
    watch: Watch,
    stop: Stop,
    build: Build[Options],
    budget: Budget,
    close: Callable[[RunState], None],
    steering: Steering,
) -> Summary:
    state = _begin(run_id, options, stop, budget)
    problem: str | None = None
    passing = False
    where = options.output_location
    presence: Presence | None = None
    found: Following | None = None
    try:
        steering.begin(run_id)
        tells = _telling(options, state, steering)
        presence = Presence(open_store(where.store_url), where.key, run_id, options.configuration, tells=tells)
        state.presence = presence
        if options.configuration:
            check_configuration(options, presence.is_alive)
        notes = Members(open_store(where.store_url), where.key, run_id) if options.apart else None
        with (
            temporary_files(),
            RUNNERS[options.runner](options) as arguments,
            watch(state),
            figures_exported(state),
            following(state, notes) as found,
            crew_of(options, run_id, stop.last_calls),
            steering.of(state, presence),
        ):
            pipeline = beam.Pipeline(options=PipelineOptions(arguments))
            build(pipeline, options, run_id)
            _wait(pipeline.run(), options, found)
    except UsageError:
        raise
    except Exception as error:  # noqa: BLE001  Beam wraps what a step raises in whatever its runner likes
        problem, passing = sentence(error), is_passing_failure(error)
        _log.debug("the pipeline failed", exc_info=error)
        stop.drain()
    finally:
        reason, limits = _close(state, where, patient=problem is None and state.stop_reason is None)
        close(state)
        if presence is not None:
            presence.stop()
        end_run(run_id)
    spent = budget.spent() if found is None or found.spent is None else found.spent
    return _summary(options, state, budget, problem, reason, spent=spent, limits=limits, passing=passing)


def _begin(run_id: str, options: RunOptions, stop: Stop, budget: Budget) -> RunState:
    """Makes the run's state, and this process ready for it."""
    spare_the_collector()
    measure_state_cheaply()
    state = state_of(run_id)
    state.budget, state.queue = budget, options.queue or ""
    stop.apply(state)
    return state


def _telling(options: RunOptions, state: RunState, steering: Steering) -> Callable[[], dict[str, Any]]:
    """What the run's heartbeats tell people."""
    told = {"command": options.command, "queue": options.queue or "", "started_at": time.time()}
    meters, deadline = Meters(), getattr(options, "ready_by", None)  # chats have none
    told |= {"ready_by": deadline.at} if deadline else {}
    return lambda: {
        **told,
        **steering.told(),
        "figures": meters.look(state).as_json(),
        "rescues": rescues_planned(state.run_id),
    }


def _close(
    state: RunState, where: Location, *, patient: bool
) -> tuple[BaseException | str | None, tuple[ModelLimits, ...]]:
    """Closes what the run has open in this process: acks, for which it waits if it is ``patient``, and engines.

    Returns why the run stopped, if it did, and what held its calls back.
    """
    close_pushes(state)
    for queue, count in close_acks(state, patient=patient).items():
        if patient:
            state.report_undone(f"queue {queue}", not_acked(count))
    reason = state.stop_reason  # before engines report their end to what may still run
    limits = (*limits_of_engines(state.run_id), *state.elsewhere().limits)
    if patient and reason is None:
        close_unawaited(awaited_in(where, state.run_id), state.run_id)
    close_engines(state.run_id)
    close_leases(state)
    return reason, limits


def _summary(
    options: RunOptions,
    state: RunState,
    budget: Budget,
    problem: str | None,
    reason: BaseException | str | None,
    *,
    spent: Spent,
    limits: tuple[ModelLimits, ...],
    passing: bool,
) -> Summary:
    if isinstance(reason, Exception):
        problem = sentence(reason)
    elif reason is not None and not options.continuous and not state.handed_over.lines:
        problem = problem or str(reason)
    if state.handed_over.unclear and not problem:
        lines = state.handed_over.unclear
        problem = f"{lines:,} lines stay open, as nobody can tell whether their batch was submitted (see the log)"
    return Summary(
        state.run_id,
        state.counts,
        tuple(state.settled.values()),
        tuple(state.in_work()),
        dict(state.left),
        problem,
        isinstance(reason, RunAsleep),
        isinstance(reason, Exception) and not isinstance(reason, RunAsleep),
        dict(state.others),
        continuous=options.continuous,
        spent=spent,
        prices={**state.elsewhere().prices, **budget.prices.used()},
        until=until_of(reason),
        budget=None if options.budget is None else budget_now(options.output_location),
        limits=limits,
        passing=passing,
        handed_over=state.handed_over,
        receipt=budget.receipt(),
    )


def _wait(result: PipelineResult, options: RunOptions, found: Following) -> None:
    """Waits for a job's end. A continuous one on Flink has to be ended."""
    if options.runner == "flink" and options.continuous:
        with ended_when_stopped(result, found, options.drain_seconds):
            result.wait_until_finish()
    else:
        result.wait_until_finish()
        if options.runner == "flink" and not options.apart:
            count_by_manifests(found.state)


def new_run_id() -> str:
    """A unique name for a run: host, process and a random part."""
    host = re.sub("[^A-Za-z0-9.-]", "-", socket.gethostname())[:64].lstrip(".")
    return f"{host}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def until_of(reason: BaseException | str | None) -> float | None:
    """When a run that stopped for this reason can resume, as Unix time in seconds."""
    if not isinstance(reason, llmdo.backends.errors.StopRun | llmdo.backends.errors.ModelUnusable):
        return None
    if reason.until is None and reason.retry_after is not None:
        return time.time() + reason.retry_after
    return reason.until


_NAMED = {**vars(llmdo.storage.errors), **vars(llmdo.backends.errors)}
_KINDS = [name for name, kind in _NAMED.items() if isinstance(kind, type) and issubclass(kind, Exception)]
_OUR_ERRORS = "|".join([*_KINDS, "MissingSettings", WorkerFailed.__name__])
_RAISED = re.compile(rf"^(?:[\w.]+\.)?({_OUR_ERRORS}): (.+?)(?: \[while running .*)?$", re.MULTILINE)


def sentence(error: BaseException) -> str:
    """What happened, without the traceback that Beam puts around an error of a step."""
    if isinstance(error, llmdo.storage.errors.StorageError | llmdo.backends.errors.ModelError):
        return re.sub(r" \[while running .*$", "", str(error), flags=re.DOTALL)
    found = _RAISED.findall(str(error))
    return str(found[-1][1]) if found else str(error).strip() or type(error).__name__


def is_passing_failure(error: BaseException) -> bool:
    """Whether a pipeline failed because a service did not answer, which may be over soon."""
    if isinstance(error, llmdo.storage.errors.StorageError):
        return llmdo.storage.errors.is_passing(error)
    found = _RAISED.findall(str(error))
    return bool(found) and found[-1][0] == llmdo.storage.errors.StorageUnavailable.__name__
