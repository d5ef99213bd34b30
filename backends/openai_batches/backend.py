"""OpenAI's API with its lane of batches: a file of requests is uploaded, a batch is made of it, and its answers come in
files, too. One adapter for OpenAI and all that copy it, see llmdo.backends.openai_batches.services.

Source: developers.openai.com/api/docs/guides/batch, and the API reference of Files and Batches.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from llmdo.backends.backend import BatchLimits, naming_provider
from llmdo.backends.errors import (
    BatchUnclear,
    InvalidRequest,
    LineError,
    ModelError,
    RateLimited,
    Retryable,
)
from llmdo.backends.http.client import Incoming, Transport
from llmdo.backends.json_mode.answers import in_format
from llmdo.backends.lanes.windows import named, response_of, window_of
from llmdo.backends.limits.retry import CALL_TIMEOUT_S
from llmdo.backends.limits.sizes import likely_tokens
from llmdo.backends.openai.backend import OpenAI, Service, openai_service
from llmdo.backends.openai.raw import is_response, read_response
from llmdo.backends.openai_batches.api import BatchApi
from llmdo.backends.openai_batches.background import (
    BackgroundApi,
    alone,
    as_chat_response,
    check_background,
    in_background,
    made_later,
    reply_fields,
)
from llmdo.backends.openai_batches.jobs import BatchJob
from llmdo.backends.openai_batches.rows import custom_id, row_reply
from llmdo.backends.openai_batches.services import batch_service
from llmdo.backends.requests import BatchPlace, ChatRequest, RawRequest, Request, batch_places, sent_json
from llmdo.backends.responses import BatchState, ChatResponse, RawResponse, Response
from llmdo.backends.responses_api.from_chat import responses_body
from llmdo.backends.responses_api.native import checked_response

_AROUND = 160  # bytes of a line beside its body, at most
_LOOKED_AT = 200  # batches whose files are looked at
_SETTLES_S = 60.0  # within which a batch that has ended gets its files, and these their last lines
_FULL_S = 300.0  # until a service where too many tokens wait is asked again

_log = logging.getLogger(__name__)


def open_backend(headers: Sequence[str] = (), timeout_s: float = CALL_TIMEOUT_S) -> OpenAIWithBatches:
    """The service that OPENAI_BASE_URL names; see openai_service."""
    return OpenAIWithBatches(*openai_service(headers, timeout_s))


class OpenAIWithBatches(OpenAI):
    """See Backend and BatchBackend."""

    def __init__(
        self, service: Service, transport: Transport | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(service, transport, clock)
        self._lane = batch_service(self._service.url)
        self._api = BatchApi(self._lane, self._base, self._service.headers, self._transport, self._reader)
        self._background = BackgroundApi(self._base, self._service.headers, self._transport, self._reader)
        self._most_tokens: dict[str, int] = {}  # by model: that may wait, as refusals have told
        self._tokens: dict[str, tuple[str, float]] = {}  # by batch: its model, and those of its input
        self._ended: dict[str, float] = {}  # by batch: when it was first seen to have ended

    def takes_batches(self, model: str) -> bool:  # noqa: ARG002 - see BatchBackend
        """The service says so when a batch is handed over."""
        return True

    def batch_limits(self, model: str) -> BatchLimits:  # noqa: ARG002 - see BatchBackend
        """Those of the service, for all of its models."""
        return BatchLimits(self._lane.items, self._lane.size, self._lane.window_s, finds=True)

    @naming_provider
    async def batch_share(self, request: Request) -> float:
        """The part that a request takes of the largest batch: of its lines, bytes and tokens."""
        size = len(sent_json(request.model, self._body(request))) + _AROUND
        shares = [1 / self._lane.items, size / self._lane.size]
        if most := self._token_limit(request.model):
            shares.append(likely_tokens(request) / most)
        return max(shares)

    @naming_provider
    async def submit_batch(self, model: str, requests: Sequence[Request], nonce: str) -> str:
        """Uploads the requests and makes a batch of them; returns its id.

        The nonce is in the batch's metadata and in its file's name. Raises RateLimited, before anything is sent, where
        too many of the model's tokens wait already.
        """
        tokens = self._check_tokens(model, requests)
        routes = {self._route(request) for request in requests}
        if len(routes) > 1:
            raise InvalidRequest(f"{model}: a batch holds requests of one route, not of {' and '.join(sorted(routes))}")
        lines = (
            sent_json(model, self._lane.line(custom_id(place), self._route(request), self._body(request)))
            for request, place in zip(requests, batch_places(requests), strict=True)
        )
        file = await self._api.upload(model, lines, _file_name(nonce))
        job = await self._api.create(model, file, routes.pop(), nonce)
        self._tokens[job.name] = model, tokens
        return job.name

    @naming_provider
    async def poll_batch(
        self, model: str, batch: str, requests: Sequence[Request], places: Sequence[BatchPlace]
    ) -> BatchState:
        """Looks whether a batch is done, and streams what its files hold, also where it expired or was cancelled."""
        if window := window_of(batch):
            incoming = await self._background.look(model, response_of(batch))
            return BatchState(alone(incoming, self._answered(incoming, requests[0]), window) if incoming else None)
        job = await self._api.job(model, batch)
        if job.working:
            self._tokens.setdefault(batch, (model, sum(map(likely_tokens, requests))))
            return BatchState(None, job.answered)
        self._tokens.pop(batch, None)
        self._ended.setdefault(batch, self._clock())
        if job.answered and not job.files and self._settles(batch):
            return BatchState(None)
        if not job.succeeded or job.problems:
            self._say(job, model)
        if job.was_refused and job.token_limit is not None:
            return BatchState(self._without_room(job, model, requests))
        return BatchState(self._results(job, model, requests, places))

    @naming_provider
    async def find_batch(
        self,
        model: str,
        nonce: str,
        count: int,  # noqa: ARG002 - see BatchBackend
        since: float,
    ) -> str | None:
        """By the metadata of all batches that are listed; where these may be lost, by the names of their files."""
        others: list[BatchJob] = []
        try:
            async with aclosing(self._api.listed(model)) as jobs:
                async for job in jobs:
                    metadata = job.metadata or {}
                    if metadata.get("llmdo") == nonce and not job.was_refused:
                        return job.name
                    if "llmdo" not in metadata and (job.created is None or job.created >= since):
                        others.append(job)
        except LineError as error:
            raise BatchUnclear(f"{model}: whether a batch was handed over cannot be told: {error.message}") from error
        if self._lane.keeps_metadata:
            return None
        return await self._by_file(model, others, nonce)

    @naming_provider
    async def cancel_batch(self, model: str, batch: str) -> None:
        """Asks the service to end a batch; what it has answered by then is in its files."""
        if window_of(batch):
            await self._background.cancel(model, response_of(batch))
        else:
            await self._api.cancel(model, batch)

    def background_problem(self, request: Request) -> str:
        """See BackgroundBackend."""
        try:
            self._background_body(request)
        except InvalidRequest as error:
            return error.message
        return ""

    @naming_provider
    async def begin(self, request: Request, window: str) -> str | Response:
        """By /v1/responses, also for a chat."""
        body = in_background(self._background_body(request), window)
        incoming = await self._send(self._post("responses", body, request.model, request.request_id))
        if response := made_later(incoming):
            return named(window, response)
        return await self._answered(incoming, request)

    # Handing over.

    def _route(self, request: Request) -> str:
        path = request.path if isinstance(request, RawRequest) else "chat/completions"
        if f"/v1/{path}" not in self._lane.routes or not isinstance(request, ChatRequest | RawRequest):
            raise InvalidRequest(f"{request.model}: {self._lane.name} takes no batches of /v1/{path}: use --mode sync")
        return f"/v1/{path}"

    def _body(self, request: Request) -> Mapping[str, Any]:
        """What a call would send. Raises InvalidRequest."""
        self._route(request)
        if isinstance(request, ChatRequest):
            return self._chat_body(request)[0]
        assert isinstance(request, RawRequest)  # noqa: S101 - see _route
        return {**request.input, "model": request.model}

    def _background_body(self, request: Request) -> Mapping[str, Any]:
        """The body of /v1/responses that asks for the same. Raises InvalidRequest where there is none."""
        if isinstance(request, ChatRequest):
            body: Mapping[str, Any] = responses_body(self._chat_body(request)[0])
        elif isinstance(request, RawRequest) and request.path == "responses":
            body = self._raw_body(request)
        else:
            raise InvalidRequest("only chats and /v1/responses are answered in the background")
        check_background(body, request.model)
        return body

    def _token_limit(self, model: str) -> int | None:
        return self._most_tokens.get(model, self._lane.enqueued)

    def _check_tokens(self, model: str, requests: Sequence[Request]) -> float:
        """The tokens of requests. Raises RateLimited where they have no room beside those that wait."""
        tokens, most = sum(map(likely_tokens, requests)), self._token_limit(model)
        waiting = sum(some for of, some in self._tokens.values() if of == model)
        if most and waiting and waiting + tokens > most:
            text = f"{model}: {waiting:,.0f} tokens wait in batches, and at most {most:,} may: hand over later"
            raise RateLimited(text, retry_after=_FULL_S, lost=False)
        return tokens

    def _settles(self, batch: str) -> bool:
        """Whether a batch ended so recently that more of it may still come."""
        return self._clock() - self._ended[batch] < _SETTLES_S

    def _say(self, job: BatchJob, model: str) -> None:
        what = f"batch {job.name} ended as {job.status!r}"
        if limit := job.token_limit:
            self._most_tokens[model] = limit
            what += f": of {limit:,} tokens at most, smaller batches are handed over from now on"
        why = f"; the service said {job.words!r}" if job.words else ""
        _log.warning("%s/%s: %s%s", self.name, model, what, why)

    async def _by_file(self, model: str, jobs: Sequence[BatchJob], nonce: str) -> str | None:
        for job in jobs[:_LOOKED_AT]:
            try:
                name = await self._api.file_name(model, job.input)
            except LineError as error:
                text = f"{model}: whose batch {job.name} is cannot be told, since its file cannot be looked at"
                raise BatchUnclear(f"{text}: {error.message}") from error
            if name == _file_name(nonce):
                return None if job.was_refused else job.name
        if len(jobs) > _LOOKED_AT:
            raise BatchUnclear(f"{model}: {len(jobs)} batches may be the one that was handed over: look for it by hand")
        return None

    # Answers.

    async def _without_room(
        self, job: BatchJob, model: str, requests: Sequence[Request]
    ) -> AsyncIterator[tuple[int, Response | ModelError]]:
        text = f"{model}: too many of its tokens wait in batches: hand over later ({job.words})"
        for number in range(len(requests)):
            yield number, RateLimited(text, status=429, provider=self.name, lost=False)
        await self._api.delete(job.input)

    async def _results(
        self, job: BatchJob, model: str, requests: Sequence[Request], places: Sequence[BatchPlace]
    ) -> AsyncIterator[tuple[int, Response | ModelError]]:
        """Each request's answer, then errors of those that have none. Raises Retryable where more is to come.

        What is not of these requests, or comes twice, is left out; an answer counts more than an error.
        """
        wanted = {custom_id(place): number for number, place in enumerate(places)}
        failed: dict[int, ModelError] = {}
        seen, whole = set[str](), True
        for file in job.files:
            async with aclosing(self._api.rows(model, file)) as found:
                async for row in found:
                    if row is None:
                        whole = False
                        continue
                    name, before = str(row.get("custom_id")), len(seen)
                    seen.add(name)
                    if not requests and len(seen) > before:
                        wanted[name] = before
                    if (number := wanted.get(name)) is None:
                        continue
                    result = await self._result(row, requests[number] if requests else RawRequest(model, {}))
                    if isinstance(result, ModelError):
                        failed.setdefault(number, result)
                    elif result:
                        del wanted[name]
                        failed.pop(number, None)
                        yield number, result
        if (len(seen) < job.answered or not whole) and self._settles(job.name):
            text = f"{model}: batch {job.name} should have more answers than the {len(seen)} in its files: read later"
            raise Retryable(text, lost=False)
        for number, error in failed.items():
            yield number, error
        if job.input:
            await self._api.delete(job.input)

    async def _result(self, row: Mapping[str, Any], request: Request) -> Response | ModelError | None:
        """A row's answer or error; None where the request was not run."""
        incoming = row_reply(row)
        if incoming is None:
            return None
        try:
            return await self._answered(incoming, request)
        except ModelError as error:
            return error

    @naming_provider
    async def _answered(self, incoming: Incoming, request: Request) -> Response:
        """Reads an answer as that of a call. One that does not keep to its format is Retryable, by a call."""
        model = request.model

        async def chat(asked: ChatRequest, again: bool) -> ChatResponse:
            if again:
                raise _not_in_format(model)
            warnings = self._chat_body(asked)[1]
            if is_response(reply_fields(incoming)):
                return as_chat_response(self._read_raw(incoming, RawRequest(model, {})), warnings)
            return await self._completion(incoming, model, warnings)

        async def passed_on(asked: RawRequest) -> RawResponse:
            return self._read_raw(incoming, asked)

        async def again(_: RawRequest) -> RawResponse:
            raise _not_in_format(model)

        if isinstance(request, ChatRequest):
            return await in_format(request, chat, self.name)
        assert isinstance(request, RawRequest)  # noqa: S101 - what a batch may hold
        if request.path == "responses":
            return await checked_response(request, passed_on, again, read_response, self.name)
        return await passed_on(request)


def _file_name(nonce: str) -> str:
    return f"llmdo-{nonce}.jsonl"


def _not_in_format(model: str) -> Retryable:
    return Retryable(f"{model}: the answer of a batch does not keep to its format: ask for it alone", lost=False)
