"""Workers AI's asynchronous batch API: requests handed over at once, and fetched when they are done.

``POST …/ai/run/{model}?queueRequest=true`` with ``{"requests": […]}`` gives a request id, and with
``{"request_id": …}`` the state. Source: developers.cloudflare.com/workers-ai/features/batch-api; the second shape of a
reply, ``results`` with ``index``, and that items can be missing, are users' reports.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pydantic_core

from backends.errors import BadReply, ContextOverflow, InvalidRequest, ModelError, Overloaded, Retryable
from backends.ir import BatchState, ChatRequest, EmbedRequest, EmbedResponse, RawResponse, Request, Response, Usage
from backends.jobs import share
from backends.json_answers import problem_of_answer
from backends.openai_shapes import read_usage
from backends.parameters import token_limit
from backends.workers_ai_bodies import DEFAULT_MAX_TOKENS, body_of
from backends.workers_ai_errors import PROVIDER, is_refusal, refusal
from backends.workers_ai_models import Shape
from backends.workers_ai_shapes import Reply, model_of, read_chat, read_vectors

MAX_BYTES = 10_000_000  # of one batch: "less than 10 MB"
_WORKING = frozenset({"queued", "running", "pending", "processing"})
_LOST = "the batch came back without this request: ask for it alone"


def batch_content(model: str, requests: Sequence[Request], shape: Shape) -> bytes:
    """The body that hands requests over. Raises InvalidRequest where it is too large, or is no JSON."""
    references = _references(requests)
    items = [
        {**body_of(request, shape), "external_reference": reference}
        for request, reference in zip(requests, references, strict=True)
    ]
    try:
        content = pydantic_core.to_json({"requests": items})
    except ValueError as error:
        raise InvalidRequest(f"{model}: the input cannot be written as JSON ({error})", provider=PROVIDER) from error
    if len(content) >= MAX_BYTES:
        raise InvalidRequest(
            f"{model}: a batch of {len(requests)} requests has {len(content)} bytes, and at most {MAX_BYTES - 1} are"
            " taken: hand over fewer at once",
            code=3006,
            provider=PROVIDER,
        )
    return content


def batch_name(reply: Reply, model: str) -> str:
    """The id of the batch that was handed over. Raises BadReply where the model has answered at once instead."""
    named = reply.result.get("request_id") if isinstance(reply.result, dict) else None
    if not isinstance(named, str) or not named:
        raise BadReply(
            f"{model} gave no request id for a batch: it does not take batches; use --mode sync",
            request_id=reply.request_id,
            provider=PROVIDER,
        )
    return named


def batch_state(reply: Reply, model: str, requests: Sequence[Request], now: float) -> BatchState:
    """What a poll says. ``now``: Unix time in seconds. Raises BadReply.

    Items are matched by reference, else by number. An item that is missing, or that failed where one call would do
    better, is a Retryable error; so is every item of a batch that failed as a whole.
    """
    result = reply.result if isinstance(reply.result, dict) else {}
    items = next((result[name] for name in ("responses", "results") if isinstance(result.get(name), list)), None)
    if items is None:
        status = str(result.get("status") or "").lower()
        if status in _WORKING:
            return BatchState(None)
        if not status:
            raise BadReply(f"{model} sent neither a batch's state nor its results: ask again later", provider=PROVIDER)
        failed = Overloaded(f"{model}: the batch ended as {status!r}: ask for each alone", provider=PROVIDER)
        return BatchState((failed,) * len(requests))
    found = _matched([item for item in items if isinstance(item, dict)], _references(requests))
    read = [
        _item(found[number], reply, model, request, now) if number in found else Retryable(_LOST, provider=PROVIDER)
        for number, request in enumerate(requests)
    ]
    return BatchState(tuple(_with_shares(read, requests, read_usage(result, reply.neurons))))


def _references(requests: Sequence[Request]) -> list[str]:
    """What names each request in the batch, the same on every call: its id where these tell them apart."""
    ids = [request.request_id for request in requests]
    return ids if all(ids) and len(set(ids)) == len(ids) else [str(number) for number in range(len(requests))]


def _matched(items: Sequence[Mapping[str, Any]], references: Sequence[str]) -> Mapping[int, Mapping[str, Any]]:
    """Each request's item. References are not checked by the service, so that one that stands twice says nothing."""
    numbers = {reference: number for number, reference in enumerate(references)}
    told = [item.get("external_reference") for item in items]
    given = [one if isinstance(one, str) and one in numbers else None for one in told]
    found: dict[int, Mapping[str, Any]] = {}
    for place, (item, reference) in enumerate(zip(items, given, strict=True)):
        number = numbers[reference] if reference is not None and given.count(reference) == 1 else None
        if reference is None:
            number = next((n for n in (item.get("id"), item.get("index")) if isinstance(n, int)), None)
            # In the shape of Responses an item's id is text, and nothing tells them apart but their order.
            number = place if number is None and "success" not in item else number
        if number is not None and 0 <= number < len(references):
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
        return _read(Reply(result, reply.request_id), model, request)
    except ModelError as error:
        return error


def _refused(body: Any, result: Any, model: str, now: float) -> ModelError:
    if isinstance(result, dict) and not (body.get("error") or body.get("errors")):
        body = {**body, **{name: result[name] for name in ("error", "errors", "message") if name in result}}
    error = refusal(200, {}, body, model, now)
    if isinstance(error, BadReply):  # the field with the reason is not documented
        return Retryable(error.message, code=error.code, provider=PROVIDER)
    return error


def _alone(error: ModelError, request: Request) -> ModelError:
    """Retryable where a call of its own makes the request fit: see WorkersAI.execute."""
    ours = isinstance(request, ChatRequest) and token_limit(request.parameters, PROVIDER) is None
    if isinstance(error, ContextOverflow) and ours:
        return Retryable(error.message, code=error.code, provider=PROVIDER)
    return error


def _read(reply: Reply, model: str, request: Request) -> Response | ModelError:
    answered, substituted = model_of(reply.result, model)
    warnings: list[str] = []
    body_of(request, warn=warnings.append)
    if isinstance(request, ChatRequest):
        limit = token_limit(request.parameters, PROVIDER) or DEFAULT_MAX_TOKENS
        response = read_chat(reply, model, limit)
        problem = problem_of_answer(response, request.parameters.get("response_format"))
        if problem:
            return Retryable(f"{model}: {problem}: ask for it alone", code=5024, provider=PROVIDER)
        return replace(response, warnings=(*warnings, *response.warnings))
    warnings += substituted
    usage = read_usage(reply.result, None)
    if isinstance(request, EmbedRequest):
        vectors = read_vectors(reply, model, len(request.texts))
        return EmbedResponse(vectors, usage, answered, reply.request_id, tuple(warnings))
    return RawResponse(reply.result, usage, answered, reply.request_id, tuple(warnings))


def _with_shares(
    read: Sequence[Response | ModelError], requests: Sequence[Request], whole: Usage
) -> Iterator[Response | ModelError]:
    """The results; where only the batch tells its usage, each answer gets a share by the length of its input."""
    answers = [number for number, one in enumerate(read) if not isinstance(one, ModelError)]
    told = any(one.usage != Usage() for one in read if not isinstance(one, ModelError))
    shares: dict[int, Usage] = {}
    if answers and not told and whole != Usage():
        lengths = [len(pydantic_core.to_json(body_of(requests[number]))) for number in answers]
        shares = dict(zip(answers, share(whole, lengths), strict=True))
    for number, one in enumerate(read):
        yield one if isinstance(one, ModelError) or number not in shares else replace(one, usage=shares[number])
