"""The REST API of R2 event notifications, as wrangler speaks it (workers-sdk: …/src/r2/helpers/notification.ts)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, Field

from llmdo.local.queues.notifications import ACTIONS, Action, Rules
from llmdo.local.queues.queues import Queue, Queues
from llmdo.local.wire import HttpCall, HttpReply, body_as, no_route, success, timestamp


class _RuleBody(BaseModel):
    prefix: str = ""
    suffix: str = ""
    actions: Annotated[tuple[Action, ...], Field(min_length=1)] = ACTIONS
    description: str = ""


class _RulesBody(BaseModel):
    rules: Annotated[list[_RuleBody], Field(min_length=1)]


class _RuleIds(BaseModel):
    ruleIds: list[str] | None = None  # the API's own spelling


class NotificationsApi:
    """Answers calls below ``/accounts/{account}/event_notifications/r2``.

    For buckets without rules of their own, the default ones are shown and apply.
    """

    def __init__(self, rules: Rules, queues: Queues, find: Callable[[str], Queue], clock: Callable[[], float]) -> None:
        self._rules = rules
        self._queues = queues
        self._find = find
        self._clock = clock

    def answer(self, call: HttpCall, rest: list[str]) -> HttpReply:
        """``rest``: the path below ``r2``, in parts. Raises Refused."""
        match call.method, rest:
            case "GET", [bucket, "configuration"]:
                return success({"bucketName": bucket, "queues": self._configuration(bucket)})
            case "GET", [bucket, "configuration", "queues", queue_id]:
                queue = self._find(queue_id)
                found = [entry for entry in self._configuration(bucket) if entry["queueId"] == queue.queue_id]
                return success(found[0] if found else {"queueId": queue_id, "queueName": queue.name, "rules": []})
            case "PUT", [bucket, "configuration", "queues", queue_id]:
                given = [rule.model_dump() for rule in body_as(call, _RulesBody).rules]
                self._rules.add(bucket, self._find(queue_id), given, self._clock())
                return success({})
            case "DELETE", [bucket, "configuration", "queues", queue_id]:
                self._rules.remove(bucket, self._find(queue_id), body_as(call, _RuleIds).ruleIds)
                return success({})
        raise no_route(call)

    def _configuration(self, bucket: str) -> list[dict[str, Any]]:
        by_queue: dict[str, list[dict[str, Any]]] = {}
        for rule in self._rules.of(bucket):
            by_queue.setdefault(rule.queue_id, []).append(
                {
                    "ruleId": rule.rule_id,
                    "createdAt": timestamp(rule.created_ms),
                    "prefix": rule.prefix,
                    "suffix": rule.suffix,
                    "actions": list(rule.actions),
                    "description": rule.description,
                }
            )
        return [
            {"queueId": queue.queue_id, "queueName": queue.name, "rules": by_queue[queue.queue_id]}
            for queue in self._queues.queues()
            if queue.queue_id in by_queue
        ]
