"""The REST API of Queues with HTTP pull consumers, as the official clients speak it.

Shapes and error codes: developers.cloudflare.com/queues/configuration/pull-consumers, …/queues/reference/error-codes,
and the types of the official Python client. Unlike on Cloudflare, pulling and settling works without a consumer.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field
from pydantic_core import to_json

from llmdo.local.queues.queues import ContentType, NewMessage, PullConsumer, Queue, Queues
from llmdo.local.wire import HttpCall, HttpReply, Refused, body_as, no_route, page_of, success, timestamp

# developers.cloudflare.com/queues/platform/limits; 1 KB is 1,000 bytes there.
_MAX_MESSAGE_BYTES = 128_000
_MAX_BATCH_BYTES = 256_000
_MAX_BATCH = 100
_MAX_DELAY_S = 86_400
_MAX_VISIBILITY_MS = 43_200_000


class _Pull(BaseModel):
    batch_size: int | None = None
    visibility_timeout_ms: Annotated[int, Field(ge=0, le=_MAX_VISIBILITY_MS)] | None = None


class _Ack(BaseModel):
    lease_id: str


class _Retry(BaseModel):
    lease_id: str
    delay_seconds: int | None = None


class _Settle(BaseModel):
    acks: list[_Ack] = []
    retries: list[_Retry] = []


class _Push(BaseModel):
    body: Any
    content_type: ContentType = "json"
    delay_seconds: int | None = None


class _PushBatch(BaseModel):
    messages: list[_Push]
    delay_seconds: int | None = None


class _QueueSettings(BaseModel):
    delivery_delay: Annotated[int, Field(ge=0, le=_MAX_DELAY_S)] | None = None
    delivery_paused: bool | None = None
    message_retention_period: Annotated[int, Field(ge=60, le=1_209_600)] | None = None


class _QueueBody(BaseModel):
    queue_name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")] | None = None
    settings: _QueueSettings = _QueueSettings()


class _ConsumerSettings(BaseModel):
    batch_size: Annotated[int, Field(ge=1, le=_MAX_BATCH)] | None = None
    max_retries: Annotated[int, Field(ge=0, le=100)] | None = None
    retry_delay: Annotated[int, Field(ge=0, le=_MAX_DELAY_S)] | None = None
    visibility_timeout_ms: Annotated[int, Field(ge=0, le=_MAX_VISIBILITY_MS)] | None = None


class _ConsumerBody(BaseModel):
    type: Literal["http_pull"]
    dead_letter_queue: str = ""
    settings: _ConsumerSettings = _ConsumerSettings()


class QueuesApi:
    """Answers calls below ``/accounts/{account}/queues``."""

    def __init__(self, queues: Queues) -> None:
        self._queues = queues
        self._routes: dict[tuple[str, str], Callable[[HttpCall, Queue], HttpReply]] = {
            ("GET", ""): lambda _, queue: success(self._queue_json(queue)),
            ("PUT", ""): self._update,
            ("PATCH", ""): self._update,
            ("DELETE", ""): self._delete,
            ("GET", "metrics"): lambda _, queue: success(queues.backlog(queue)),
            ("POST", "messages"): lambda call, queue: self._push(queue, [body_as(call, _Push)], None),
            ("POST", "messages/batch"): self._push_batch,
            ("POST", "messages/pull"): self._pull,
            ("POST", "messages/ack"): self._settle,
        }

    def answer(self, call: HttpCall, rest: list[str]) -> HttpReply:
        """``rest``: the path below ``queues``, in parts. Raises Refused."""
        if not rest and call.method == "GET":
            named = call.parameter("name")
            queues = [queue for queue in self._queues.queues() if named in ("", queue.name)]
            return success(**page_of([self._queue_json(queue) for queue in queues], call))
        if not rest and call.method == "POST":
            return self._create(body_as(call, _QueueBody))
        if len(rest) > 1 and rest[1] == "consumers":
            return self._consumers(call, self.find(rest[0]), rest[2:])
        route = self._routes.get((call.method, "/".join(rest[1:]))) if rest else None
        if route is None:
            raise no_route(call)
        return route(call, self.find(rest[0]))

    def find(self, queue_id: str) -> Queue:
        """The queue of an id. Raises Refused."""
        if len(queue_id) != 32 or not all(c in "0123456789abcdef" for c in queue_id):
            raise Refused(400, 10107, f"Queue ID is malformed: {queue_id} (the API takes the id, not the name)")
        queue = self._queues.by_id(queue_id)
        if queue is None:
            raise Refused(404, 10104, f"Queue not found: {queue_id}")
        return queue

    def _create(self, body: _QueueBody) -> HttpReply:
        if not body.queue_name:
            raise Refused(400, 10207, "queue_name is missing")
        try:
            queue = self._queues.create(body.queue_name)
        except ValueError as error:
            raise Refused(409, 11009, f"Queue name '{body.queue_name}' is already taken") from error
        return self._set(queue, body)

    def _update(self, call: HttpCall, queue: Queue) -> HttpReply:
        return self._set(queue, body_as(call, _QueueBody))

    def _set(self, queue: Queue, body: _QueueBody) -> HttpReply:
        return success(self._queue_json(self._queues.update(queue, body.settings.model_dump(exclude_none=True))))

    def _delete(self, _: HttpCall, queue: Queue) -> HttpReply:
        self._queues.delete(queue)
        return success(None)

    def _push_batch(self, call: HttpCall, queue: Queue) -> HttpReply:
        batch = body_as(call, _PushBatch)
        return self._push(queue, batch.messages, batch.delay_seconds)

    def _push(self, queue: Queue, pushed: list[_Push], delay_seconds: int | None) -> HttpReply:
        if not 1 <= len(pushed) <= _MAX_BATCH:
            raise Refused(400, 10206, f"A batch has 1 to {_MAX_BATCH} messages, not {len(pushed)}")
        messages = []
        for one in pushed:
            delay = delay_seconds if one.delay_seconds is None else one.delay_seconds
            _check_delay(delay)
            messages.append(NewMessage(_encode(one), one.content_type, delay))
        if max(len(m.body) for m in messages) > _MAX_MESSAGE_BYTES:
            raise Refused(400, 10204, f"A message has at most {_MAX_MESSAGE_BYTES} bytes")
        if sum(len(m.body) for m in messages) > _MAX_BATCH_BYTES:
            raise Refused(400, 10205, f"A batch has at most {_MAX_BATCH_BYTES} bytes")
        self._queues.push(queue, messages)
        return success({"metadata": {"metrics": self._queues.backlog(queue)}})

    def _pull(self, call: HttpCall, queue: Queue) -> HttpReply:
        body = body_as(call, _Pull)
        if queue.delivery_paused:
            raise Refused(429, 10252, "Queue delivery is paused")
        consumer = self._queues.consumer(queue) or PullConsumer()
        size = consumer.batch_size if body.batch_size is None else body.batch_size
        if not 1 <= size <= _MAX_BATCH:
            raise Refused(400, 10206, f"batch_size is 1 to {_MAX_BATCH}, not {size}")
        timeout = body.visibility_timeout_ms
        timeout = consumer.visibility_timeout_ms if timeout is None else timeout
        messages = [
            {
                "body": message.wire_body,
                "id": message.id,
                "timestamp_ms": message.created_ms,
                "attempts": message.attempts,
                "metadata": {"CF-Content-Type": message.content_type},
                "lease_id": message.lease_id,
            }
            for message in self._queues.pull(queue, size, timeout)
        ]
        metrics = self._queues.backlog(queue)
        return success(
            {
                "message_backlog_count": metrics["backlog_count"],
                "messages": messages,
                "metadata": {"metrics": metrics},
            }
        )

    def _settle(self, call: HttpCall, queue: Queue) -> HttpReply:
        body = body_as(call, _Settle)
        for retry in body.retries:
            _check_delay(retry.delay_seconds)
        settled = self._queues.settle(
            queue, [ack.lease_id for ack in body.acks], [(r.lease_id, r.delay_seconds) for r in body.retries]
        )
        return success({"ackCount": settled.acknowledged, "retryCount": settled.retried, "warnings": settled.warnings})

    def _consumers(self, call: HttpCall, queue: Queue, which: list[str]) -> HttpReply:
        consumer = self._queues.consumer(queue)
        if which and (consumer is None or which != [consumer.consumer_id]):
            raise Refused(404, 10104, f"No consumer {'/'.join(which)} on queue {queue.name}")
        match call.method, which:
            case "GET", []:
                return success([_consumer_json(consumer, queue)] if consumer else [])
            case "GET", [_] if consumer:
                return success(_consumer_json(consumer, queue))
            case ("POST", []) | ("PUT", [_]):
                if consumer and not which:
                    raise Refused(409, 11004, f"Queue {queue.name} has a consumer already: update or delete that one")
                body = body_as(call, _ConsumerBody)
                settings = body.settings.model_dump(exclude_none=True)
                return success(
                    _consumer_json(self._queues.set_consumer(queue, body.dead_letter_queue, settings), queue)
                )
            case "DELETE", [_]:
                self._queues.delete_consumer(queue)
                return success(None)
        raise no_route(call)

    def _queue_json(self, queue: Queue) -> dict[str, Any]:
        consumer = self._queues.consumer(queue)
        consumers = [_consumer_json(consumer, queue)] if consumer else []
        return {
            "queue_id": queue.queue_id,
            "queue_name": queue.name,
            "created_on": timestamp(queue.created_ms),
            "modified_on": timestamp(queue.modified_ms),
            "producers": [],
            "producers_total_count": 0,
            "consumers": consumers,
            "consumers_total_count": len(consumers),
            "settings": {
                "delivery_delay": queue.delivery_delay,
                "delivery_paused": bool(queue.delivery_paused),
                "message_retention_period": queue.message_retention_period,
            },
        }


def _encode(pushed: _Push) -> bytes:
    if pushed.content_type == "json":
        return to_json(pushed.body)
    if not isinstance(pushed.body, str):
        raise Refused(400, 10207, f"Request body is invalid: a {pushed.content_type} message needs a string as body")
    try:
        return pushed.body.encode() if pushed.content_type == "text" else base64.b64decode(pushed.body, validate=True)
    except ValueError as error:
        raise Refused(400, 10207, f"Request body is invalid: {error}") from error


def _check_delay(seconds: int | None) -> None:
    if seconds is not None and not 0 <= seconds <= _MAX_DELAY_S:
        raise Refused(400, 10202, f"delay_seconds is 0 to {_MAX_DELAY_S}, not {seconds}")


def _consumer_json(consumer: PullConsumer, queue: Queue) -> dict[str, Any]:
    return {
        "consumer_id": consumer.consumer_id,
        "created_on": timestamp(consumer.created_ms),
        "type": "http_pull",
        "queue_name": queue.name,
        "dead_letter_queue": consumer.dead_letter_queue,
        "settings": {name: getattr(consumer, name) for name in _ConsumerSettings.model_fields},
    }
