"""Answers that were paid for before: looked up before a call, kept right after it, so that a killed run pays again for
the calls in flight at most.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal, Protocol

from pydantic import TypeAdapter

from llmdo.backends.engine.settings import SAME_MESSAGE, Reuse
from llmdo.backends.errors import StopRun
from llmdo.backends.kept.line_answers import OWNER, Keys, LineAnswers
from llmdo.backends.kept.submissions import Submissions
from llmdo.backends.limits.arrays import joined, one_each
from llmdo.backends.openai.vectors import PLACE, filled_in, kept_json, kept_vectors, with_vectors
from llmdo.backends.requests import ChatRequest, EmbedRequest, LineId, RawRequest, Request
from llmdo.backends.responses import ChatResponse, EmbedResponse, RawResponse, Response
from llmdo.backends.usage import Usage

MakeCall = Callable[[Request], Awaitable[Response]]

# Part of every key. Raise it when your change means that an answer kept so far cannot be read, or is read as another
# one: a field of a Response or of Usage removed, renamed, of another type or meaning, or added
# without a default. What was kept before is then paid again; it is never taken for something else.
FORMAT = 1
# To be kept together with others, an answer may wait for this part of the time since its request, and at most this many
# seconds: at 300 answers a second, keeping each by itself would take a quarter of the CPU time.
PATIENCE, MOST_PATIENCE_S = 0.02, 0.02
_ANSWERS: dict[type[Request], TypeAdapter[Any]] = {
    ChatRequest: TypeAdapter(ChatResponse),
    EmbedRequest: TypeAdapter(EmbedResponse),
    RawRequest: TypeAdapter(RawResponse),
}
# All but those that depend on who asks; and vectors and the lane, which are written by themselves.
_BY_THEMSELVES = frozenset({"shared", "parts", "vectors", "lane", "rescued"})
_KEPT = {
    kind: tuple(one.name for one in fields(kind) if one.name not in _BY_THEMSELVES)
    for kind in (ChatResponse, EmbedResponse, RawResponse)
}
_USAGE = tuple(one.name for one in fields(Usage))
_PAYER = "paid_by"  # the line, beside a response's fields
# json.dumps would make an encoder each time. Other writers refuse half a surrogate pair, or make null of NaN.
_json = json.JSONEncoder(default=dict).encode
_sorted_json = json.JSONEncoder(sort_keys=True).encode
_log = logging.getLogger(__name__)


class Ledger(Protocol):
    """Where answers are kept, by sha256 keys. Used from one event loop."""

    async def get(self, key: str) -> bytes | None:
        """What was kept, or None."""

    async def put(self, key: str, value: bytes, patience_s: float) -> None:
        """Returns when the value is durable; it may wait for others, to be kept together with them."""

    async def aclose(self) -> None:
        """Closes it."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """An answer; ``payer`` is the line whose call brought it, or "", and ``new`` means that the call was made now.

    ``line``: whose it is, where each line has answers of its own.
    """

    response: Response
    payer: str
    new: bool = False
    line: LineId | None = None

    def of(self, line: str, *, joined: bool = False) -> Response:
        """The answer for a line: shared where another one paid. ``joined``: the line waited for another's call."""
        shared = self.payer != line if self.payer else joined and self.new
        return replace(self.response, shared=True) if shared else self.response


class Recall:
    """Answers requests from a ledger where it can, and keeps every answer that had to be paid for.

    Only successes are kept. With "same-request", equal requests that are in flight share one call too, and so do equal
    texts of one array; those of two arrays do not. An answer is kept with the line that paid for it: for any other line
    it is ``shared``, in this run and in later ones, so that its usage counts once.
    """

    def __init__(self, ledger: Ledger, reuse: Reuse | Literal["same-message"]) -> None:
        self._ledger = ledger
        self._reuse = reuse
        self._in_flight: dict[str, asyncio.Future[_Kept]] = {}
        self._lines = LineAnswers(self._look_up, ledger.put)
        self.submissions = Submissions(self._look_up, self._keep)
        self.shares = reuse == "same-request"  # other runs, which live, may ask the same
        self.broken: StopRun | None = None  # an answer could not be kept: no further one must be paid for

    async def answer(self, provider: str, request: Request, call: MakeCall) -> Response:
        """The kept answer, or that of ``call``. Raises what ``call`` raises, and StopRun for a ledger that fails."""
        if isinstance(request, EmbedRequest):
            return await self._embed(provider, request, call)
        line = request.request_id
        if self._reuse == "same-line" and isinstance(line, LineId):
            return await self._line(provider, request, line, call)
        key = self._key(provider, request, line)
        if self._reuse != "same-request":
            return (await self._one(key, request, call)).response
        if key in self._in_flight:
            kept = await asyncio.shield(self._in_flight[key])
            return kept.of(request.request_id, joined=True)
        # The look-up is shared too: one that began before the answer was kept would not find it, and pay again.
        paying = self._in_flight[key] = asyncio.ensure_future(self._one(key, request, call))
        paying.add_done_callback(lambda _: self._in_flight.pop(key))
        return (await paying).of(request.request_id)

    def answer_key(self, provider: str, request: Request) -> str:
        """The key under which ``submissions`` finds a request."""
        return self._key(provider, request, request.request_id)

    async def aclose(self) -> None:
        """Closes the ledger."""
        await self._ledger.aclose()

    async def _line(self, provider: str, request: ChatRequest | RawRequest, line: LineId, call: MakeCall) -> Response:
        keys = self._keys(provider, request, line)
        try:
            key, value = await self._lines.find(line, keys)
            if (found := self._read(value, request)) is not None:
                return found.response
            began = time.monotonic()
            paid = self._paid(await call(request), line)
            await self._put({key: paid}, _patience_s(began))
            return paid.response
        finally:
            self._lines.release(line, keys)

    async def _one(self, key: str, request: ChatRequest | RawRequest, call: MakeCall) -> _Kept:
        found = self._read(await self._look_up(key), request)
        if found is not None:
            return found
        began = time.monotonic()
        paid = self._paid(await call(request), request.request_id)
        await self._put({key: paid}, _patience_s(began))
        return paid

    def _paid(self, response: Response, line: str) -> _Kept:
        if self._reuse == "same-request":
            return _Kept(response, line, new=True)
        return _Kept(response, "", new=True, line=line if isinstance(line, LineId) else None)

    async def _embed(self, provider: str, request: EmbedRequest, call: MakeCall) -> EmbedResponse:
        """One call for the texts whose vectors are not known; each text is kept by itself."""
        lines = request.line_ids or [""] * len(request.texts)
        alone = [replace(request, texts=(text,), line_ids=()) for text in request.texts]
        held: list[tuple[LineId, Keys]] = []
        try:
            found = await asyncio.gather(
                *(self._find_text(provider, one, line, held) for one, line in zip(alone, lines, strict=True))
            )
            return await self._vectors(request, lines, found, call)
        finally:
            for line, keys in held:
                self._lines.release(line, keys)

    async def _find_text(
        self, provider: str, text: EmbedRequest, line: str, held: list[tuple[LineId, Keys]]
    ) -> tuple[str, bytes | None]:
        if self._reuse == "same-line" and isinstance(line, LineId):
            held.append((line, self._keys(provider, text, line)))
            return await self._lines.find(*held[-1])
        key = self._key(provider, text, line)
        return key, await self._look_up(key)

    async def _vectors(
        self, request: EmbedRequest, lines: Sequence[str], found: Sequence[tuple[str, bytes | None]], call: MakeCall
    ) -> EmbedResponse:
        keys = [key for key, _ in found]
        places: dict[str, int] = {}  # of the first text with each key: equal texts share a call
        for i, key in enumerate(keys):
            places.setdefault(key, i)
        read = {key: self._read(found[i][1], request) for key, i in places.items()}
        kept = {key: one for key, one in read.items() if one is not None}
        missing = [key for key in places if key not in kept]
        if missing:
            part = replace(request, texts=tuple(request.texts[places[key]] for key in missing), line_ids=())
            began = time.monotonic()
            paid = await call(part)
            assert isinstance(paid, EmbedResponse)  # noqa: S101 - what a backend returns for an EmbedRequest
            for key, response in zip(missing, one_each(paid, part.texts), strict=True):
                kept[key] = self._paid(response, lines[places[key]])
            good = {key: kept[key] for key in missing if _is_usable(kept[key])}
            await self._put(good, _patience_s(began))
        parts, counted = [], set[str]()
        for key, line in zip(keys, lines, strict=True):
            one = kept[key].of(line)
            assert isinstance(one, EmbedResponse)  # noqa: S101 - see above
            parts.append(replace(one, shared=True) if key in counted else one)
            if not one.shared:
                counted.add(key)
        return replace(joined(parts), parts=tuple(parts) if len(parts) > 1 else ())

    def _keys(self, provider: str, request: Request, line: LineId) -> Keys:
        asked: dict[str, Any] = {"format": FORMAT, "provider": provider, "model": request.model, "place": line.place}
        asked |= _content(request)
        own = partial(_hash, asked | {"start": line.start})
        return Keys(_hash(asked), own, partial(self._key, provider, request, line))

    def _key(self, provider: str, request: Request, line: str) -> str:
        asked: dict[str, Any] = {"format": FORMAT, "provider": provider, "model": request.model}
        if self._reuse == SAME_MESSAGE:
            asked["message"] = line
        else:
            if self._reuse == "same-line":
                asked["line"] = line
            asked |= _content(request)
        return _hash(asked)

    async def _look_up(self, key: str) -> bytes | None:
        try:
            return await self._ledger.get(key)
        except Exception as error:
            raise StopRun(f"the ledger cannot be asked, and what it holds would be paid again: {error}") from error

    async def _keep(self, key: str, value: bytes) -> None:
        try:
            await self._ledger.put(key, value, 0.0)
        except Exception as error:
            problem = f"the ledger cannot keep what is handed over, and it would be paid again: {error}"
            raise StopRun(problem) from error

    def _read(self, value: bytes | None, request: Request) -> _Kept | None:
        if value is None:
            return None
        try:
            entry = with_vectors(value, json.loads) if isinstance(request, EmbedRequest) else json.loads(value)
            payer = entry.pop(_PAYER, "") if isinstance(entry, dict) else ""
            if isinstance(entry, dict):
                entry.pop(OWNER, None)
            response = _response(type(request), entry)
        except ValueError:
            _log.warning("the ledger holds an answer that this version cannot read: its call is made again")
            return None
        return _Kept(response, payer if self._reuse == "same-request" and isinstance(payer, str) else "")

    async def _put(self, answers: Mapping[str, _Kept], patience_s: float) -> None:
        """Keeps answers; one that cannot be kept is not lost, but it is the last one."""
        try:
            values = {}
            for key, one in answers.items():
                values[key] = _entry(one)
                if len(answers) > 1:
                    await asyncio.sleep(0)  # 256 vectors take 0.3 s, which the loop must not stand still for
            puts = [self._ledger.put(key, value, patience_s) for key, value in values.items()]
            await (puts[0] if len(puts) == 1 else asyncio.gather(*puts))
        except Exception as error:  # noqa: BLE001 - the answer that was paid for must get through
            self.broken = StopRun(f"the ledger cannot keep answers, and they would be paid again: {error}")


def _entry(kept: _Kept) -> bytes:
    answer = kept.response
    written: dict[str, Any] = {name: getattr(answer, name) for name in _KEPT[type(answer)]}
    used = {name: getattr(answer.usage, name) for name in _USAGE}
    written |= {"lane": answer.lane} if answer.lane else {}
    written |= {"rescued": True} if answer.rescued else {}
    written["usage"] = {name: count for name, count in used.items() if count or name == "neurons"}
    written |= {} if kept.line is None else {OWNER: (kept.line.version, kept.line.start)}
    written |= {_PAYER: kept.payer} if kept.payer else {}
    if not isinstance(answer, EmbedResponse):
        return _json(written).encode()
    written["vectors"] = [PLACE] * len(answer.vectors)
    return filled_in(_json(written).encode(), map(kept_json, answer.vectors))


def _response(kind: type[Request], entry: Any) -> Response:
    """Raises ValueError for what is not a response to such a request."""
    if kind is not EmbedRequest or not isinstance(entry, dict):
        response: Response = _ANSWERS[kind].validate_python(entry)
        return response
    embedded: EmbedResponse = _ANSWERS[kind].validate_python({**entry, "vectors": ()})
    return replace(embedded, vectors=kept_vectors(entry.get("vectors")))


def _is_usable(kept: _Kept) -> bool:
    """Whether a text has its vector: one that has none is asked for again by the next run."""
    return isinstance(kept.response, EmbedResponse) and all(kept.response.vectors)


def _patience_s(began: float) -> float:
    return min(PATIENCE * (time.monotonic() - began), MOST_PATIENCE_S)


def _hash(asked: Mapping[str, Any]) -> str:
    return hashlib.sha256(_sorted_json(asked).encode("utf-8", "surrogatepass")).hexdigest()


def _content(request: Request) -> dict[str, Any]:
    match request:
        case ChatRequest():
            messages = [(m.role, m.content, m.extra) for m in request.messages]
            return {"messages": messages, "parameters": request.parameters}
        case EmbedRequest():
            return {"texts": request.texts, "parameters": request.parameters}
        case RawRequest():
            # Embeddings were passed on before there were other routes: what was kept of them is still found.
            route = {} if request.path in ("", "embeddings") else {"path": request.path}
            return {"input": request.input, **route}
