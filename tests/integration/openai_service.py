"""A server on loopback that speaks OpenAI's API, and remembers what it was asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from llmdo.pipelines.options import check_options
from llmdo.runners.running.run import run
from llmdo.runners.showing.summary import Summary
from tests.fakes.loopback import Asked, Loopback, Reply

MODEL = "openai/small"


class Service:
    """``prompts``: the last message of each call, in the order of their coming. ``port`` 0: a free one."""

    def __init__(self, port: int = 0) -> None:
        self.prompts: list[str] = []
        self._server = Loopback(self._answer, port)
        self.url = f"{self._server.origin}/v1"
        self.close = self._server.close

    def _answer(self, call: Asked) -> Reply:
        if call.method == "GET":
            return Reply({"object": "list", "data": [{"id": "small", "object": "model"}]})
        responses = call.path.endswith("/responses")
        turns = call.body["input" if responses else "messages"]
        asked = turns if isinstance(turns, str) else turns[-1]["content"]
        self.prompts.append(asked)
        number = len(self.prompts)
        if responses:
            return Reply(_response(number, call.body["model"], f"{number}: {asked[:20]}"))
        message = {"role": "assistant", "content": f"{number}: {asked[:20]}"}
        return Reply(
            {
                "id": f"c{number}",
                "object": "chat.completion",
                "model": call.body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3},
            }
        )

    def asked(self) -> list[str]:
        """What was asked since the last look, sorted."""
        found, self.prompts[:] = sorted(self.prompts), []
        return found


def _response(number: int, model: str, text: str) -> dict[str, object]:
    part = {"type": "output_text", "text": text, "annotations": []}
    said = {"id": f"m{number}", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    used = {"input_tokens": 2, "output_tokens": 1, "total_tokens": 3}
    details = {
        "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    return {
        "id": f"r{number}",
        "object": "response",
        "created_at": 1,
        "model": model,
        "status": "completed",
        "output": [said],
        "usage": used | details,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


@contextmanager
def serving() -> Iterator[Service]:
    service = Service()
    try:
        yield service
    finally:
        service.close()


def answer(*files: object, output: object, **options: object) -> Summary:
    """Runs over local files in this process, on the direct runner."""
    given = {"model": MODEL, "runner": "direct", **options}
    named = {"files": tuple(map(str, files))} if files else {}
    return run(check_options(**named, output=str(output), **given), lambda _: nullcontext())
