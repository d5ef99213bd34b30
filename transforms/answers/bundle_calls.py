"""The calls of one bundle: submitted when there is room, texts to embed together, given back as they end. No Beam."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from llmdo.backends.engine.engine import Engine
from llmdo.backends.engine.jobs import Done
from llmdo.backends.errors import EngineClosed
from llmdo.backends.money.prices import Prices
from llmdo.backends.requests import EmbedRequest, Request
from llmdo.transforms.answers.result_queue import ResultQueue
from llmdo.transforms.answers.texts import Embedded, LineTexts

# How often a waiting bundle checks for room that another bundle's calls freed. Seconds.
_LOOK_AGAIN = 0.05
# A waiting bundle is woken after min(window / 8, 16) calls have ended: eight waiting bundles then all have something to
# submit, and calls of equal length do not stay in lock-step.
_PARTS, _MOST = 8, 16

J = TypeVar("J")


@dataclass(slots=True)
class _Asked(Generic[J]):
    """What a job asks for, and for texts to embed where their vectors are gathered."""

    job: J
    provider: str
    request: Request
    texts: LineTexts | None = None


class BundleCalls(Generic[J]):
    """Bundles of one process share an engine, but must not yield each other's results; each has one of these.

    Every method yields (job, result) of whatever has ended meanwhile.

    Attributes:
        refused: whether jobs have no result, since the engine was closed and took nothing more in.
    """

    def __init__(self, engine: Engine, prices: Prices) -> None:
        self._engine, self._prices = engine, prices
        self._at_once = max(1, min(engine.window // _PARTS, _MOST))
        self._finished: ResultQueue[tuple[_Asked[J], int, Done]] = ResultQueue()
        self._arrays: dict[tuple[str, str, str], list[tuple[_Asked[J], int]]] = {}
        # By provider: answers that wait for its prices, while the bundle continues.
        self._unpriced: defaultdict[str, list[tuple[_Asked[J], int, Done]]] = defaultdict(list)
        self._open = 0
        self.refused = False

    def submit(self, job: J, provider: str, request: Request) -> Iterator[tuple[J, Embedded]]:
        """Calls for one job; its texts to embed wait until there are enough for a call."""
        asked = _Asked(job, provider, request)
        if isinstance(request, EmbedRequest):
            key = (provider, request.model, repr(sorted(request.parameters.items())))
            asked.texts = LineTexts(len(request.texts))
            for index in range(len(request.texts)):
                array = self._arrays.setdefault(key, [])
                array.append((asked, index))
                if len(array) >= self._engine.array_size(provider, request.model):
                    del self._arrays[key]
                    yield from self._submit_array(array)
            return
        finished = self._finished

        def keep(done: Done) -> None:
            finished.put((asked, 0, done))

        yield from self._when_taken(1, lambda: self._engine.submit(provider, request, keep, wait=False))

    def flush(self) -> Iterator[tuple[J, Embedded]]:
        """Sends the arrays that are not full."""
        started, self._arrays = self._arrays, {}
        for array in started.values():
            yield from self._submit_array(array)

    def ended(self, *, wait: bool) -> Iterator[tuple[J, Embedded]]:
        """What has ended; with ``wait``, waits a moment for some to end."""
        wanted = min(self._open, self._at_once) if wait else 0
        for asked, index, done in (*self._finished.take(wanted, _LOOK_AGAIN), *self._priced()):
            if done.response and not self._prices.ask(asked.provider).done():
                self._unpriced[asked.provider].append((asked, index, done))
                continue
            self._open -= 1
            ended = Embedded(done) if asked.texts is None else asked.texts.add(index, done)
            if ended is not None:
                yield asked.job, ended

    def all(self) -> Iterator[tuple[J, Embedded]]:
        """Waits for everything that was submitted."""
        yield from self.flush()
        while self._open:
            yield from self.ended(wait=True)

    def _submit_array(self, array: list[tuple[_Asked[J], int]]) -> Iterator[tuple[J, Embedded]]:
        asked = array[0][0]
        requests = [one.request for one, _ in array if isinstance(one.request, EmbedRequest)]
        texts = [request.texts[index] for request, (_, index) in zip(requests, array, strict=True)]
        ids = [request.request_id for request in requests]
        finished = self._finished

        def deliver(index: int, done: Done) -> None:
            finished.put((*array[index], done))

        provider, model, parameters = asked.provider, requests[0].model, requests[0].parameters
        yield from self._when_taken(
            len(array),
            lambda: self._engine.submit_texts(provider, model, texts, parameters, deliver, line_ids=ids, wait=False),
        )

    def _when_taken(self, results: int, submit: Callable[[], bool]) -> Iterator[tuple[J, Embedded]]:
        """Submits as soon as there is room."""
        try:
            while not submit():
                if self._open:
                    yield from self.ended(wait=True)
                else:  # none of this bundle's calls could wake it when there is room
                    self._engine.wait_for_room(_LOOK_AGAIN)
        except EngineClosed:
            self.refused = True
            return
        self._open += results

    def _priced(self) -> list[tuple[_Asked[J], int, Done]]:
        """Answers whose prices have arrived."""
        there = [provider for provider in self._unpriced if self._prices.ask(provider).done()]
        return [answer for provider in there for answer in self._unpriced.pop(provider)]
