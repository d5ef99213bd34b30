"""A server on loopback that speaks OpenAI's API, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from llmdo.pipelines.options import check_options
from llmdo.runners.running.run import run
from llmdo.runners.showing.summary import Summary

MODEL = "openai/small"


class Service:
    """``prompts``: the last message of each call, in the order of their coming."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                asked = body["messages"][-1]["content"]
                service.prompts.append(asked)
                number = len(service.prompts)
                message = {"role": "assistant", "content": f"{number}: {asked[:20]}"}
                self._send(
                    {
                        "id": f"c{number}",
                        "object": "chat.completion",
                        "model": body["model"],
                        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                        "usage": {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3},
                    }
                )

            def do_GET(self) -> None:
                self._send({"object": "list", "data": [{"id": "small", "object": "model"}]})

            def _send(self, body: object) -> None:
                content = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

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
        service.server.shutdown()
        service.server.server_close()


def answer(*files: object, output: object, **options: object) -> Summary:
    """Runs over local files in this process, on the direct runner."""
    given = {"model": MODEL, "runner": "direct", **options}
    named = {"files": tuple(map(str, files))} if files else {}
    return run(check_options(**named, output=str(output), **given), lambda _: nullcontext())
