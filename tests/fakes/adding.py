"""OpenAI's API on loopback, whose models answer a number with the next one."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

from tests.fakes.loopback import Asked, Loopback, Reply


class AddingService:
    """Answers "7" with "8", and what is no number with 400. ``paid`` counts the calls with an answer, by question.

    While ``key_is_wrong``, every call is refused.
    """

    def __init__(self) -> None:
        self.paid: Counter[str] = Counter()
        self.asked: list[dict[str, Any]] = []
        self.key_is_wrong = False
        self._lock = threading.Lock()
        self._server = Loopback(self._reply)
        self.url = f"{self._server.origin}/v1"
        self.close = self._server.close

    def _reply(self, asked: Asked) -> Reply:
        if asked.method == "GET":
            return Reply({"object": "list", "data": []})
        if self.key_is_wrong:
            error = {
                "message": "Incorrect API key provided",
                "code": "invalid_api_key",
                "type": "invalid_request_error",
            }
            return Reply({"error": error}, 401)
        text = asked.body["messages"][-1]["content"]
        with self._lock:
            self.asked.append(asked.body)
            if not text.isdigit():
                return Reply({"error": {"message": "not a number", "type": "invalid_request_error"}}, 400)
            self.paid[text] += 1
        message = {"role": "assistant", "content": str(int(text) + 1)}
        return Reply(
            {
                "object": "chat.completion",
                "model": asked.body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
            }
        )
