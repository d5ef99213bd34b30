"""OpenAI's API on loopback that remembers all that it was sent, and lines that name pictures."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

from llmdo.runners.showing.summary import Summary
from tests.fakes.loopback import Asked, Loopback, Reply
from tests.integration.cloud import Cloud

MODEL = "openai/small"


class Seeing:
    """OpenAI's API on loopback; ``asked`` are the bodies of all calls, ``before`` may hold them up."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.before: Callable[[dict[str, Any]], None] = lambda body: None
        self._server = Loopback(self._reply)
        self.url, self.close = f"{self._server.origin}/v1", self._server.close

    def _reply(self, call: Asked) -> Reply:
        if call.method == "GET":
            return Reply({"object": "list", "data": [{"id": "small", "object": "model"}]})
        self.before(call.body)
        self.asked.append(call.body)
        if call.path.endswith("/responses"):
            said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "seen"}]}
            return Reply({"id": "r", "object": "response", "status": "completed", "model": "small", "output": [said]})
        choice = {"index": 0, "message": {"role": "assistant", "content": "seen"}, "finish_reason": "stop"}
        return Reply({"id": "c", "object": "chat.completion", "model": "small", "choices": [choice]})

    def parts(self) -> list[dict[str, Any]]:
        """The last part of each call's only message."""
        return [body["messages"][-1]["content"][-1] for body in self.asked]


def data_url(mime: str, data: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def picture(name: str, number: int = 0) -> dict[str, Any]:
    parts = [{"type": "text", "text": f"what is it? {number}"}, {"type": "image_url", "image_url": {"url": name}}]
    return {"id": number, "messages": [{"role": "user", "content": parts}]}


def as_text(part: dict[str, Any]) -> str:
    return json.dumps(part, sort_keys=True)


def lines(*documents: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(document).encode() + b"\n" for document in documents)


def answer(cloud: Cloud, **options: Any) -> Summary:
    return cloud.run(**{"files": ("r2://llmdo/input/",), "queue": None, "model": MODEL, **options})


def put(cloud: Cloud, key: str, body: bytes) -> None:
    cloud.s3.put_object(Bucket="llmdo", Key=key, Body=body)
