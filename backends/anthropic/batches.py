"""Anthropic's API with its lane of batches: requests go in one body, and their results come as lines, in any order.

Source: platform.claude.com/docs/en/build-with-claude/batch-processing. A batch has no metadata: it is known by the
custom ids of its requests, which only its results show.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime
from tempfile import TemporaryFile
from typing import Any, BinaryIO
from urllib.parse import quote

from llmdo.backends.anthropic.backend import Anthropic
from llmdo.backends.anthropic.errors import refusal
from llmdo.backends.anthropic.replies import raw_response, read_message, read_message_usage, without_tool
from llmdo.backends.anthropic.requests import (
    KEY_VARIABLE,
    PROVIDER,
    betas_of,
    chat_body,
    chat_without_turns,
    json_way,
    raw_message_body,
)
from llmdo.backends.backend import BatchLimits, naming_provider
from llmdo.backends.errors import (
    BadReply,
    BatchUnclear,
    ConnectionFailed,
    InvalidRequest,
    LineError,
    ModelError,
    Retryable,
    call_known,
)
from llmdo.backends.http.base_url import base_url
from llmdo.backends.http.client import Call, Network, Transport
from llmdo.backends.http.reply_json import mapping
from llmdo.backends.json_mode.answers import in_format
from llmdo.backends.limits.retry import CALL_TIMEOUT_S
from llmdo.backends.openai_batches.files import fetch_rows
from llmdo.backends.openai_batches.rows import custom_id
from llmdo.backends.requests import (
    BatchPlace,
    ChatRequest,
    EmbedRequest,
    Message,
    RawRequest,
    Request,
    batch_places,
    sent_json,
)
from llmdo.backends.responses import BatchState, ChatResponse, Response
from llmdo.settings.environment import AnthropicAccess, anthropic_access

_LIMITS = BatchLimits(items=100_000, size=256_000_000, window_s=24 * 3600.0, finds=True)
_AROUND = 128  # bytes of a request beside its params, at most
_AT_ONCE = 256  # requests that are written before others get a turn
_LISTED, _PAGES = 100, 100  # batches of a page of their list, and its pages
_CLOCKS_S = 3600.0  # by which a service's clock may differ from ours
_SETTLES_S = 60.0  # within which the results of a batch that has ended get their last lines


def open_backend(timeout_s: float = CALL_TIMEOUT_S) -> AnthropicWithBatches:
    """The service that ANTHROPIC_BASE_URL names, by default Anthropic's own. Raises MissingSettings."""
    access = anthropic_access()
    return AnthropicWithBatches(access, Network(base_url(PROVIDER, access.base_url).root, timeout_s))


class AnthropicWithBatches(Anthropic):
    """See Backend and BatchBackend."""

    def __init__(
        self, access: AnthropicAccess, transport: Transport | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(access, transport, clock)
        self._nonces: dict[str, str] = {}  # by batch, of those that were handed over here
        self._ended: dict[str, float] = {}  # by batch: when it was first seen to have ended

    def takes_batches(self, model: str) -> bool:  # noqa: ARG002 - see BatchBackend
        """All models do, as far as is known; the list of models says it, too."""
        return True

    def batch_limits(self, model: str) -> BatchLimits:  # noqa: ARG002 - see BatchBackend
        """100,000 requests, 256 MB, 24 hours."""
        return _LIMITS

    @naming_provider
    async def batch_share(self, request: Request) -> float:
        """The part that a request takes of the largest batch: of its requests, or of its bytes."""
        size = len(sent_json(request.model, _params(request))) + _AROUND
        return max(1 / _LIMITS.items, size / _LIMITS.size)

    @naming_provider
    async def submit_batch(self, model: str, requests: Sequence[Request], nonce: str) -> str:
        """Hands requests over by one call; each custom id begins with the nonce."""
        with TemporaryFile() as file:  # nobody else can open it, and a kill leaves nothing
            await _write(file, self._items(requests, nonce))
            call = replace(self._batches, method="POST", file=file)
            try:
                batch = _read_batch(await self._ask(call, model), model)
            except BadReply as error:  # it may have been made
                raise ConnectionFailed(error.message, lost=True) from error
        self._nonces[batch["id"]] = nonce
        return str(batch["id"])

    @naming_provider
    async def poll_batch(
        self, model: str, batch: str, requests: Sequence[Request], places: Sequence[BatchPlace]
    ) -> BatchState:
        """Looks whether a batch has ended, and streams its results, also where it expired or was canceled."""
        found = _read_batch(await self._ask(self._of_batch("GET", batch), model), model)
        counts = mapping(found.get("request_counts"))
        if found.get("processing_status") != "ended":
            return BatchState(None, _count(counts, "succeeded"))
        self._ended.setdefault(batch, self._clock())
        answered = sum(_count(counts, name) for name in ("succeeded", "errored"))
        return BatchState(self._results(model, batch, answered, requests, places))

    @naming_provider
    async def find_batch(self, model: str, nonce: str, count: int, since: float) -> str | None:
        """By the list, and the custom ids in the results of each batch of as many requests.

        Raises BatchUnclear for one of them that has not ended, since only its results tell whose it is.
        """
        unclear = ""
        async with aclosing(self._listed(model)) as batches:
            async for batch in batches:
                name, created = str(batch["id"]), _seconds(batch.get("created_at"))
                if created is not None and created < since - _CLOCKS_S:
                    break
                known = self._nonces.get(name)
                if known == nonce:
                    return name
                if known or sum(_count(batch["request_counts"], one) for one in batch["request_counts"]) != count:
                    continue
                if batch.get("processing_status") != "ended":
                    unclear = f"{model}: batch {name} may be the one that was handed over, and tells when it has ended"
                    continue
                if await self._begins_with(model, name, nonce):
                    return name
        if unclear:
            raise BatchUnclear(f"{unclear}: run it again then")
        return None

    @naming_provider
    async def cancel_batch(self, model: str, batch: str) -> None:
        """Asks for the end of a batch; what was answered by then is in its results."""
        await self._ask(self._of_batch("POST", batch, "/cancel"), model)

    # Handing over.

    def _items(self, requests: Sequence[Request], nonce: str) -> Iterable[bytes]:
        for request, place in zip(requests, batch_places(requests), strict=True):
            params = _params(request)
            if isinstance(request, ChatRequest):
                params = self._prefixes.marked(params, request.parameters)
            yield sent_json(request.model, {"custom_id": f"{nonce}-{custom_id(place)}", "params": params})

    async def _ask(self, call: Call, model: str) -> Any:
        return self._reader.read(await self._send(call), model, lambda _: None)

    def _of_batch(self, method: str, batch: str, rest: str = "", **how: Any) -> Call:
        path = f"v1/messages/batches/{quote(batch, safe='')}{rest}"
        return replace(self._batches, method=method, url=self._base.at(path), **how)

    async def _listed(self, model: str) -> AsyncGenerator[Mapping[str, Any], None]:
        """All batches, the newest first. Raises BatchUnclear where the list has no end."""
        query: dict[str, str | int] = {"limit": _LISTED}
        for _ in range(_PAGES):
            url = self._batches.url.update_query(query)
            try:
                page = mapping(await self._ask(replace(self._batches, url=url), model))
            except LineError as error:
                raise BatchUnclear(f"{model}: the list of batches cannot be read: {error.message}") from error
            listed = page.get("data")
            for one in listed if isinstance(listed, list) else ():
                yield _read_batch(one, model)
            if not page.get("has_more") or not page.get("last_id"):
                return
            query["after_id"] = str(page["last_id"])
        raise BatchUnclear(f"{model}: the list of batches cannot be read to its end")

    async def _begins_with(self, model: str, batch: str, nonce: str) -> bool:
        """Whether the requests of a batch that has ended were handed over with a nonce, by its first result."""
        try:
            async with aclosing(self._rows(model, batch)) as rows:
                async for row in rows:
                    if row is not None:
                        return str(row.get("custom_id")).startswith(f"{nonce}-")
        except LineError as error:
            text = f"{model}: whose batch {batch} is cannot be told, since its results cannot be read"
            raise BatchUnclear(f"{text}: {error.message}") from error
        raise BatchUnclear(f"{model}: whose batch {batch} is cannot be told, since it has no results")

    # Answers.

    def _rows(self, model: str, batch: str) -> AsyncGenerator[Mapping[str, Any] | None, None]:
        """See fetch_rows."""
        call = self._of_batch("GET", batch, "/results", most=sys.maxsize)
        return fetch_rows(self._transport, call, self._base.root, self._reader, model)

    async def _results(
        self, model: str, batch: str, answered: int, requests: Sequence[Request], places: Sequence[BatchPlace]
    ) -> AsyncIterator[tuple[int, Response | ModelError]]:
        """Each request's answer, then errors of those that have none. Raises Retryable where more is to come.

        What is not of these requests, or comes twice, is left out; an answer counts more than an error.
        """
        wanted = {custom_id(place): number for number, place in enumerate(places)}
        failed: dict[int, ModelError] = {}
        seen, whole = set[str](), True
        async with aclosing(self._rows(model, batch)) as rows:
            async for row in rows:
                if row is None:
                    whole = False
                    continue
                name, before = str(row.get("custom_id")), len(seen)
                seen.add(name)
                if not requests and len(seen) > before:
                    wanted[name.partition("-")[2]] = before
                if (number := wanted.get(name.partition("-")[2])) is None:
                    continue
                asked = requests[number] if requests else ChatRequest(model, (Message("user", "?"),))
                result = await self._result(mapping(row.get("result")), asked)
                if isinstance(result, ModelError):
                    failed.setdefault(number, result)
                elif result:
                    del wanted[name.partition("-")[2]]
                    failed.pop(number, None)
                    yield number, result
        if (len(seen) < answered or not whole) and self._clock() - self._ended.get(batch, 0.0) < _SETTLES_S:
            text = f"{model}: batch {batch} should have more results than the {len(seen)} that came: read later"
            raise Retryable(text, lost=False)
        for number, error in failed.items():
            yield number, error

    async def _result(self, result: Mapping[str, Any], request: Request) -> Response | ModelError | None:
        """A request's answer or error; None where it was not run."""
        try:
            with call_known(provider=PROVIDER):
                if result.get("type") == "succeeded":
                    return await self._answered(result.get("message"), request)
                if result.get("type") == "errored":
                    error = refusal(200, {}, result.get("error"), request.model, PROVIDER, KEY_VARIABLE, self._clock())
                    return _by_a_call(error, request)
        except ModelError as error:
            return error
        return None

    async def _answered(self, message: Any, request: Request) -> Response:
        """Reads an answer as that of a call. One that does not keep to its format is Retryable, by a call."""
        model, warnings = request.model, list[str]()

        async def read(_: ChatRequest, again: bool) -> ChatResponse:
            if again:
                raise Retryable(f"{model}: the answer in its batch does not fit its format: ask for it alone")
            usage = read_message_usage(mapping(message).get("usage"))
            with call_known(usage=lambda: usage):
                response = read_message(message, model)
            return without_tool(replace(response, warnings=(*warnings, *response.warnings)))

        if isinstance(request, ChatRequest):
            chat_body(request, warnings.append)
            return await in_format(request, read, PROVIDER)
        assert isinstance(request, RawRequest)  # noqa: S101 - what a batch may hold
        return raw_response(await in_format(chat_without_turns(request), read, PROVIDER), request.request_id)


def _params(request: Request) -> dict[str, Any]:
    """What a call would send. Raises InvalidRequest."""
    if isinstance(request, EmbedRequest):
        raise InvalidRequest(f"{request.model}: Anthropic has no embeddings")
    if isinstance(request, ChatRequest):
        return chat_body(request)
    if betas_of(request):
        raise InvalidRequest(f"{request.model}: betas are a header, which the requests of a batch have in common")
    return raw_message_body(request)


def _by_a_call(error: ModelError, request: Request) -> ModelError:
    """Retryable where a call of its own may find another way: see Anthropic.execute."""
    if isinstance(error, BadReply) or (
        isinstance(error, InvalidRequest) and isinstance(request, ChatRequest) and json_way(request) == "format"
    ):
        return Retryable(error.message, code=error.code, lost=False)
    return error


async def _write(file: BinaryIO, items: Iterable[bytes]) -> None:
    """Writes the body that hands requests over: never in memory whole."""
    file.write(b'{"requests":[')
    for number, item in enumerate(items):
        file.write(b"," + item if number else item)
        if number % _AT_ONCE == 0:
            await asyncio.sleep(0)
    file.write(b"]}")
    file.flush()


def _read_batch(body: Any, model: str) -> Mapping[str, Any]:
    """A ``message_batch``. Raises BadReply for anything else."""
    found = mapping(body)
    if not isinstance(found.get("id"), str) or not isinstance(found.get("request_counts"), dict):
        raise BadReply(f"{model}: the service sent no batch of messages: check that it has Message Batches")
    return found


def _count(counts: Mapping[str, Any], name: str) -> int:
    value = counts.get(name)
    return value if isinstance(value, int) else 0


def _seconds(text: Any) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None
