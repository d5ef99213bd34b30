"""The engines of a process, one for each set of CallSettings."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable

from llmdo.backends.engine.engine import Engine
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import StopRun
from llmdo.backends.lanes.records import BatchRecord
from llmdo.backends.limits.shares import Demand, Share
from llmdo.backends.limits.throttle import ModelLimits
from llmdo.backends.providers import connect, unusual
from llmdo.backends.telemetry.switch import flush_telemetry

LAST_CALLS_S = 60.0  # how long the process's end waits for calls in flight whose answers are kept
_LOOK_S = 0.02  # how often drain_engines looks whether they have ended

_log = logging.getLogger(__name__)

# A module global and not an attribute of a DoFn class: Beam pickles classes of __main__ with all that hangs on them.
_engines: dict[CallSettings, Engine] = {}
_holders: Counter[CallSettings] = Counter()
_opening = threading.Lock()


def get_engine(settings: CallSettings) -> Engine:
    """The process's engine with these settings; all threads and all DoFn instances share it.

    One that was closed is replaced. One that was stopped stays so: a later run in this process has other settings, or
    calls close_engines() first. Raises what opening the ledger raises.
    """

    with _opening:
        engine = _engines.get(settings)
        if engine is None or not engine.usable:
            how = unusual(settings.headers, settings.call_timeout_s)
            engine = _engines[settings] = Engine(
                settings,
                functools.partial(connect, gateway=settings.gateway, **how),
                settings.kept.open() if settings.kept else None,
            )
        return engine


def working_engine(settings: CallSettings) -> Engine:
    """The same, but one that was stopped, as by an earlier try of a bundle, is replaced when its calls have ended."""
    engine = get_engine(settings)
    if engine.stopped is not None:
        engine.close(LAST_CALLS_S)
        engine = get_engine(settings)
    return engine


class HeldEngine:
    """Keeps an engine open. When Python has dropped the last holder of an engine, it is closed.

    For callers that are dropped and never told so, as the models of RunInference.
    """

    def __init__(self, settings: CallSettings) -> None:
        self._settings = settings
        with _opening:
            _holders[settings] += 1
        # At exit _goodbye closes all engines.
        weakref.finalize(self, _let_go, settings).atexit = False

    def get(self) -> Engine:
        """The engine, which works: see working_engine."""
        return working_engine(self._settings)


def _let_go(settings: CallSettings) -> None:
    """Python may call it anywhere, also on the engine's own thread or under the lock: so another thread does it."""
    with contextlib.suppress(RuntimeError):  # no thread begins when Python ends: then _goodbye closes it
        threading.Thread(target=_release, args=(settings,), name="llmdo-release").start()


def _release(settings: CallSettings) -> None:
    with _opening:
        _holders[settings] -= 1
        if _holders[settings]:
            return
        del _holders[settings]
        engine = _engines.pop(settings, None)
    if engine is not None:
        engine.close(LAST_CALLS_S if engine.keeps_answers else 0.0)


def _engines_of(run_id: str | None) -> list[Engine]:
    """The engines that get_engine opened for a run; None: for anybody."""
    with _opening:
        return [engine for settings, engine in _engines.items() if run_id in (None, settings.run_id)]


def limits_of_engines(run_id: str | None = None) -> list[ModelLimits]:
    """What holds back the calls of a run's engines, by model."""
    return [limits for engine in _engines_of(run_id) for limits in engine.limits()]


def calls_made(run_id: str | None = None) -> int:
    """Calls that a run's engines have started."""
    return sum(engine.stats().calls for engine in _engines_of(run_id))


def retries_by_error(run_id: str | None = None) -> Counter[str]:
    """How often a run's engines tried a call again, by the class of the error before."""
    return sum((Counter(engine.stats().retried) for engine in _engines_of(run_id)), Counter[str]())


def calls_in_flight(run_id: str | None = None) -> int:
    """Calls of a run's engines that are under way at this moment."""
    return sum(engine.stats().in_flight for engine in _engines_of(run_id))


def requests_in_batches(run_id: str | None = None) -> int:
    """Requests of a run's engines that wait in batches at this moment; they are not calls in flight."""
    return sum(engine.stats().batched for engine in _engines_of(run_id))


def rescues_planned(run_id: str | None = None) -> dict[str, tuple[float, float]]:
    """When a run's engines cancel each batch that is out, and call its requests; see ``Rescue.planned``."""
    return {nonce: at for engine in _engines_of(run_id) for nonce, at in engine.stats().rescues.items()}


def demand_of_engines(run_id: str | None = None) -> Demand | None:
    """What a run's engine has to do; None before it has one. A run whose processes share their limits has one."""
    engines = _engines_of(run_id)
    return engines[0].demand() if engines else None


def share_with_engines(share: Share, run_id: str | None = None) -> None:
    """What a run's engine may use from now on."""
    for engine in _engines_of(run_id):
        engine.set_share(share)


def limit_engines(window: int | None, run_id: str | None = None) -> None:
    """How many calls a run's engines may have in flight from now on, each; None: as many as they were opened with."""
    for engine in _engines_of(run_id):
        engine.set_share(Share(engine.window if window is None else window))


def stop_engines(error: StopRun, run_id: str | None = None) -> None:
    """Lets a run's engines finish the calls in flight, and start none."""
    for engine in _engines_of(run_id):
        engine.stop(error)


def drain_engines(seconds: float, waiting: Callable[[int], None], run_id: str | None = None) -> int:
    """Pauses a run's engines, and waits at most ``seconds`` s until their calls in flight have ended.

    Their answers are in the ledger then. Engines without a ledger are not waited for: their answers would be
    lost. ``waiting`` gets the number of calls, if there are any. Returns how many have not ended.
    """
    engines = _engines_of(run_id)
    for engine in engines:
        engine.pause()
    kept, end, reported = [engine for engine in engines if engine.keeps_answers], time.monotonic() + seconds, False
    while not all(engine.idle for engine in kept):
        calls = sum(engine.stats().in_flight for engine in kept)
        if time.monotonic() >= end:
            return calls
        if calls and not reported:
            waiting(calls)
            reported = True
        time.sleep(_LOOK_S)
    return 0


def close_unawaited(is_awaited: Callable[[BatchRecord], bool], run_id: str | None = None) -> None:
    """Ends batches of earlier runs that no line of a run's engines waits for; see Engine."""
    for engine in _engines_of(run_id):
        engine.close_unawaited(is_awaited)


def close_engines(run_id: str | None = None) -> None:
    """Closes a run's engines, or all."""
    with _opening:
        closed = [settings for settings in _engines if run_id in (None, settings.run_id)]
        engines = [_engines.pop(settings) for settings in closed]
    for engine in engines:
        engine.close()


def _goodbye() -> None:
    """Keeps paid answers when a pipeline that is not a command's has failed, or its worker is asked to end."""
    drain_engines(
        LAST_CALLS_S, lambda calls: _log.warning("waiting for %d calls in flight, to keep their answers", calls)
    )
    if _engines:
        close_engines()
        flush_telemetry()


atexit.register(_goodbye)
