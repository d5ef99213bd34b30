"""Slow work on several elements at once, in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import apache_beam as beam
from apache_beam.utils.windowed_value import WindowedValue

from llmdo.transforms.members import join
from llmdo.transforms.run import Run

# An object's round trip to R2 takes tens of milliseconds and hardly any CPU.
AT_ONCE = 16

T = TypeVar("T")
R = TypeVar("R")


class SideBySide(beam.DoFn, Generic[T, R]):
    """Does ``work`` for up to ``at_once`` elements at the same time, and emits what each gave, in the elements' order.

    The results of the last ones come with later elements, or at the end of the bundle. An error fails the bundle.
    ``work`` runs in threads of a pool, and is pickled: a module's function, or a partial of one. Of a tuple of elements
    the work on all begins before any result is emitted: none waits for the steps behind this one.
    """

    def __init__(self, run: Run, work: Callable[[Run, T], Iterable[R]], at_once: int = AT_ONCE) -> None:
        self._run = run
        self._work = work
        self._at_once = at_once

    def setup(self) -> None:
        """Joins the run, and starts the threads."""
        join(self._run)
        self._pool = ThreadPoolExecutor(self._at_once, thread_name_prefix="llmdo-side")

    def start_bundle(self) -> None:
        """Nothing of an earlier bundle is left."""
        self._open: deque[tuple[WindowedValue, Future[list[R]]]] = deque()

    def process(
        self, element: T | tuple[T, ...], timestamp: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam
    ) -> Iterator[WindowedValue]:
        """See the class."""
        context = WindowedValue(None, timestamp, (window,))
        for one in element if isinstance(element, tuple) else (element,):
            self._open.append((context, self._pool.submit(self._results_of, one)))
        while self._open and (self._open[0][1].done() or len(self._open) >= self._at_once):
            yield from self._results()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Waits for the rest."""
        while self._open:
            yield from self._results()

    def teardown(self) -> None:
        """Lets go of the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _results_of(self, element: T) -> list[R]:
        return list(self._work(self._run, element))

    def _results(self) -> Iterator[WindowedValue]:
        context, future = self._open.popleft()
        for result in future.result():
            yield context.with_value(result)
