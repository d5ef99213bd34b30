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
    """``prompts``: the last message of each call, in the order of their coming."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self._server = Loopback(self._answer)
        self.url = f"{self._server.origin}/v1"
        self.close = self._server.close

    def _answer(self, call: Asked) -> Reply:
        if call.method == "GET":
            return Reply({"object": "list", "data": [{"id": "small", "object": "model"}]})
        asked = call.body["messages"][-1]["content"]
        self.prompts.append(asked)
        number = len(self.prompts)
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
