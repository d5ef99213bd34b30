"""Workers AI's asynchronous batch API: requests handed over at once, and fetched when they are done.

``POST …/ai/run/{model}?queueRequest=true`` with ``{"requests": […]}`` returns a request id, and with
``{"request_id": …}`` the state. Source: developers.cloudflare.com/workers-ai/features/batch-api; the second shape of a
reply, ``results`` with ``index``, and that items can be missing, are users' reports.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pydantic_core

from llmdo.backends.backend import BatchLimits
from llmdo.backends.errors import BadReply, ContextOverflow, InvalidRequest, ModelError, Overloaded, Retryable
from llmdo.backends.json_mode.answers import format_problem
from llmdo.backends.limits.sizes import DEFAULT_MAX_TOKENS, token_limit
from llmdo.backends.openai.shapes import answering_model, read_usage, read_vectors
from llmdo.backends.requests import BatchPlace, ChatRequest, EmbedRequest, RawRequest, Request, batch_places, sent_json
from llmdo.backends.responses import BatchState, ChatResponse, EmbedResponse, RawResponse, Response
from llmdo.backends.usage import Usage, share
from llmdo.backends.workers_ai.errors import PROVIDER, is_refusal, refusal
from llmdo.backends.workers_ai.models import Shape
from llmdo.backends.workers_ai.requests import body_of
from llmdo.backends.workers_ai.shapes import Reply, read_chat

MAX_BYTES = 10_000_000  # of one batch: "less than 10 MB"
# There is no list of batches: a kill while one is handed over may pay for at most this many requests twice. "Usually" a
# batch is answered within five minutes, but nothing is promised.
LIMITS = BatchLimits(items=1000, size=MAX_BYTES, window_s=0.0, finds=False)
_AROUND = len('{"requests":[]}')
_NUMBER = "00000000"  # what stands, with fewer digits, in place of an id that is not distinct
_WORKING = frozenset({"queued", "running", "pending", "processing"})
_LOST = "the batch came back without this request: ask for it alone"


def batch_content(model: str, requests: Sequence[Request], shape: Shape) -> bytes:
    """The body that hands requests over. Raises InvalidRequest where it is too large, or cannot be written as JSON."""
    items = [
        _content(request, shape, place.reference)
        for request, place in zip(requests, batch_places(requests), strict=True)
    ]
    content = b'{"requests":[' + b",".join(items) + b"]}"
    if len(content) >= MAX_BYTES:
        raise InvalidRequest(
            f"{model}: a batch of {len(requests)} requests has {len(content)} bytes, and at most {MAX_BYTES - 1} are"
            " taken: hand over fewer at once",
            code=3006,
        )
    return content


def share_of_batch(request: Request, shape: Shape) -> float:
    """The part of the largest batch that a request takes. Raises InvalidRequest where it cannot be written as JSON."""
    content = _content(request, shape, request.request_id + _NUMBER)
    return (len(content) + len(",")) / (MAX_BYTES - 1 - _AROUND)


def batch_name(reply: Reply, model: str) -> str:
    """The id of the batch that was handed over. Raises BadReply where the model has answered at once instead."""
    named = reply.result.get("request_id") if isinstance(reply.result, dict) else None
    if not isinstance(named, str) or not named:
        raise BadReply(
            f"{model} gave no request id for a batch: it does not take batches; use --mode sync",
            request_id=reply.request_id,
        )
    return named


def batch_state(
    reply: Reply, model: str, requests: Sequence[Request], now: float, places: Sequence[BatchPlace] = ()
) -> BatchState:
    """What a poll says. ``now``: Unix time in seconds; ``places``: where the requests stand, if they are a part of the
    batch. Raises BadReply.

    Items are matched by reference, else by number. An item that is missing, or that failed where one call would do
    better, or whose answer does not keep to its response_format, is a Retryable error; so is every item of a batch that
    failed as a whole.
    """
    result = reply.result if isinstance(reply.result, dict) else {}
    items = next((result[name] for name in ("responses", "results") if isinstance(result.get(name), list)), None)
    if items is None:
        status = str(result.get("status") or "").lower()
        if status in _WORKING:
            return BatchState(None)
        if not status:
            raise BadReply(f"{model} sent neither a batch's state nor its results: ask again later")
        failed = Overloaded(f"{model}: the batch ended as {status!r}: ask for each alone")
        return BatchState(_checked([failed] * len(requests), model, requests))
    known = [item for item in items if isinstance(item, dict)]
    if not requests:
        return BatchState(_all(known, reply, model, now))
    places = places or batch_places(requests)
    found = _matched(known, places)
    read = [
        _item(found[place.number], reply, model, request, now) if place.number in found else Retryable(_LOST)
        for place, request in zip(places, requests, strict=True)
    ]
    others = max((place.count for place in places), default=0) - len(places)
    shared = _with_shares(read, requests, others, read_usage(result, reply.neurons))
    return BatchState(_checked(shared, model, requests))


async def _all(
    items: Sequence[Mapping[str, Any]], reply: Reply, model: str, now: float
) -> AsyncIterator[tuple[int, Response | ModelError]]:
    """What every item has used, whatever it answers; where only the batch reports it, the first answer has it all."""
    read = [_item(item, reply, model, RawRequest(model, {}), now) for item in items]
    answers = [number for number, one in enumerate(read) if not isinstance(one, ModelError)]
    whole = read_usage(reply.result, reply.neurons)
    if answers and not any(one.usage not in (None, Usage()) for one in read):
        read[answers[0]].usage = whole
    for number, one in enumerate(read):
        yield number, one


async def _checked(
    results: Iterable[Response | ModelError], model: str, requests: Sequence[Request]
) -> AsyncIterator[tuple[int, Response | ModelError]]:
    for number, (result, request) in enumerate(zip(results, requests, strict=True)):
        one = await _in_format(result, model, request)
        if isinstance(one, ModelError):
            one.provider = PROVIDER
        yield number, one


async def _in_format(result: Response | ModelError, model: str, request: Request) -> Response | ModelError:
    if not (isinstance(result, ChatResponse) and isinstance(request, ChatRequest)):
        return result
    try:
        problem = await format_problem(result, request.parameters.get("response_format"))
    except ModelError as error:
        return error
    if not problem:
        return result
    return Retryable(f"{model}: {problem}: ask for it alone", code=5024, usage=result.usage)


def _content(request: Request, shape: Shape, reference: str) -> bytes:
    return sent_json(request.model, {**body_of(request, shape), "external_reference": reference})


def _matched(items: Sequence[Mapping[str, Any]], places: Sequence[BatchPlace]) -> Mapping[int, Mapping[str, Any]]:
    """The items by the numbers of their requests; those of requests that stand elsewhere are left out.

    References are not checked by the service, so one that occurs twice is ignored.
    """
    numbers = {place.reference: place.number for place in places}
    seen = Counter(one for item in items if isinstance(one := item.get("external_reference"), str))
    ours, whole = bool(seen.keys() & numbers.keys()), all(place.count == len(items) for place in places)
    found: dict[int, Mapping[str, Any]] = {}
    for position, item in enumerate(items):
        reference, number = item.get("external_reference"), None
        if isinstance(reference, str) and reference in numbers:
            number = numbers[reference] if seen[reference] == 1 else None
        elif not (ours and isinstance(reference, str)):  # else it is of a request that is not asked for
            number = next((n for n in (item.get("id"), item.get("index")) if isinstance(n, int)), None)
            # In the shape of Responses an item's id is text, and only their order distinguishes them.
            number = position if number is None and "success" not in item and whole else number
        if number is not None:
            found.setdefault(number, item)
    return found


def _item(item: Mapping[str, Any], reply: Reply, model: str, request: Request, now: float) -> Response | ModelError:
    result = item.get("result", item)
    if isinstance(result, dict) and isinstance(result.get("result"), dict):
        result = result["result"]
    for candidate in (item, result):
        if is_refusal(candidate):
            return _alone(_refused(candidate, result, model, now), request)
    try:
        of_item = Reply(result, reply.request_id)
        with of_item.reading():
            return _read(of_item, model, request)
    except ModelError as error:
        return error


def _refused(body: Any, result: Any, model: str, now: float) -> ModelError:
    if isinstance(result, dict) and not (body.get("error") or body.get("errors")):
        body = {**body, **{name: result[name] for name in ("error", "errors", "message") if name in result}}
    error = refusal(200, {}, body, model, now)
    if isinstance(error, BadReply):  # the field with the reason is not documented
        return Retryable(error.message, code=error.code)
    return error


def _alone(error: ModelError, request: Request) -> ModelError:
    """Retryable where a call of its own makes the request fit: see WorkersAI.execute."""
    ours = isinstance(request, ChatRequest) and token_limit(request.parameters) is None
    if isinstance(error, ContextOverflow) and ours:
        return Retryable(error.message, code=error.code)
    return error


def _read(reply: Reply, model: str, request: Request) -> Response:
    answered, substituted = answering_model(reply.result, model, native=True)
    warnings: list[str] = []
    body_of(request, warn=warnings.append)
    if isinstance(request, ChatRequest):
        limit = token_limit(request.parameters) or DEFAULT_MAX_TOKENS
        response = read_chat(reply, model, limit)
        return replace(response, warnings=(*warnings, *response.warnings))
    warnings += substituted
    usage = read_usage(reply.result, None)
    if isinstance(request, EmbedRequest):
        vectors = read_vectors(reply.result, model, len(request.texts), reply.neurons)
        return EmbedResponse(vectors, usage, answered, reply.request_id, tuple(warnings))
    return RawResponse(reply.result, usage, answered, reply.request_id, tuple(warnings))


def _with_shares(
    read: Sequence[Response | ModelError], requests: Sequence[Request], others: int, whole: Usage
) -> Iterator[Response | ModelError]:
    """The results; where only the batch reports its usage, each answer gets a share by the length of its input.

    ``others``: how many requests of the batch are not among these; they get theirs first, by their number.
    """
    answers = [number for number, one in enumerate(read) if not isinstance(one, ModelError)]
    reported = any(one.usage != Usage() for one in read if not isinstance(one, ModelError))
    shares: dict[int, Usage] = {}
    if answers and not reported and whole != Usage():
        whole = share(whole, [len(answers), others])[0]
        lengths = [len(pydantic_core.to_json(body_of(requests[number]))) for number in answers]
        shares = dict(zip(answers, share(whole, lengths), strict=True))
    for number, one in enumerate(read):
        yield one if isinstance(one, ModelError) or number not in shares else replace(one, usage=shares[number])
