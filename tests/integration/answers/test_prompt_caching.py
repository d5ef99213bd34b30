"""Lines with a long beginning in common: the first call goes ahead, and what was read from the cache is counted."""

from __future__ import annotations

import asyncio
import json
import threading

import httpx
import pytest

from llmdo.backends.openai.backend import OpenAI, Service
from llmdo.backends.openai.requests import OPENAI_DIALECT
from llmdo.backends.requests import ChatRequest, Message, RawRequest
from llmdo.backends.workers_ai.backend import WorkersAI
from llmdo.settings import environment
from llmdo.settings.environment import OPENAI_API, CloudflareAccount
from tests.backends.wire import Wire
from tests.fakes.loopback import Asked, Loopback, Reply
from tests.integration.openai_service import answer

MODEL = "openai/gpt-5.6-sol"
LONG = "Answer as a pirate. " * 1024
INPUT, READ, WRITTEN, OUTPUT = 4.0, 0.4, 5.0, 20.0  # US dollars for a million tokens


class Caching:
    """A service that writes a beginning with the first call and has it in its cache when that one has ended.

    ``others``: calls that came while the first was being answered.
    """

    def __init__(self, fails=False):
        self.calls, self.others, self.fails = 0, 0, fails
        self._cached, self._lock = set(), threading.Lock()
        self._server = Loopback(self._answer)
        self.url, self.close = f"{self._server.origin}/v1", self._server.close

    def _answer(self, call: Asked) -> Reply:
        if call.method == "GET":
            return Reply({"object": "list", "data": [{"id": "gpt-5.6-sol", "object": "model"}]})
        begins = call.body["messages"][0]["content"]
        with self._lock:
            self.calls += 1
            first, cached = self.calls == 1, begins in self._cached
            self.others += not first and not cached
        if first:
            threading.Event().wait(0.3)  # so that others would come meanwhile
        with self._lock:
            self._cached.add(begins)
        if first and self.fails:
            return Reply({"error": {"message": "no", "code": "invalid_prompt", "type": "invalid_request_error"}}, 400)
        details = {"cached_tokens": 4000} if cached else {"cache_write_tokens": 4000}
        usage = {"prompt_tokens": 5000, "completion_tokens": 10, "total_tokens": 5010, "prompt_tokens_details": details}
        choice = {"index": 0, "message": {"role": "assistant", "content": "so"}, "finish_reason": "stop"}
        return Reply(
            {"id": "c", "object": "chat.completion", "model": "gpt-5.6-sol", "choices": [choice], "usage": usage}
        )


@pytest.fixture
def serve(monkeypatch):
    services = []

    def start(**how):
        services.append(Caching(**how))
        monkeypatch.setenv("OPENAI_BASE_URL", services[0].url)
        # What OpenAI publishes holds for the stand-in.
        monkeypatch.setattr("llmdo.backends.providers.openai_base_url", lambda: environment.OPENAI_API)
        return services[0]

    yield start
    for service in services:
        service.close()


def run(tmp_path, count, system=LONG, **options):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"p{at}"}) + "\n" for at in range(count)))
    given = {"output": tmp_path / "out", "model": MODEL, "runner": "direct", "system": system, "concurrency": 8}
    return answer(path, **given | options)


def test_one_call_writes_the_beginning_and_all_others_read_it(serve, tmp_path):
    service = serve()
    summary = run(tmp_path, 20)
    assert (summary.exit_code, service.calls, service.others) == (0, 20, 0)
    spent = summary.as_json()["spent"]
    assert (spent["cached_tokens"], spent["cache_write_tokens"]) == (19 * 4000, 4000)
    usd = 20 * (1000 * INPUT + 10 * OUTPUT) + 19 * 4000 * READ + 4000 * WRITTEN
    assert spent["cost_usd"] == pytest.approx(usd / 1e6)


def test_one_line_and_none_wait_for_nobody(serve, tmp_path):
    service = serve()
    assert run(tmp_path, 0).exit_code == 0
    assert run(tmp_path, 1).exit_code == 0
    assert service.calls == 1


def test_a_first_line_that_is_refused_does_not_hold_the_rest(serve, tmp_path):
    service = serve(fails=True)
    summary = run(tmp_path, 10)
    assert (summary.exit_code, summary.counts.answered, summary.counts.failed) == (3, 9, 1)
    assert service.others == 0


@pytest.mark.parametrize("given", [{"system": "Be brief."}, {"price_file": {"openai/*": {"input": 1, "output": 1}}}])
def test_whatever_the_beginning_and_its_price_all_lines_are_answered(serve, tmp_path, given):
    service = serve()
    assert run(tmp_path, 10, **given).exit_code == 0
    assert service.calls == 10


def sent(backend_of, request):
    calls = []

    def reply(call):
        calls.append(call)
        message = {"role": "assistant", "content": "so"}
        body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        if call.url.path.endswith("/responses"):
            body = {"object": "response", "id": "r", "status": "completed", "output": [], "usage": {"output_tokens": 1}}
        return httpx.Response(200, json=body)

    backend = backend_of(Wire(reply))
    asyncio.run(backend.execute(request) if isinstance(request, ChatRequest) else backend.run(request))
    return calls[0]


def openai(wire, url=OPENAI_API, itself=True):
    dialect = {"dialect": OPENAI_DIALECT, "is_openai": True} if itself else {}
    return OpenAI(Service("openai", url, {}, "OPENAI_API_KEY", **dialect), wire)


def chat(text, system=LONG, model="gpt-5", **parameters):
    return ChatRequest(model, (Message("system", system), Message("user", text)), parameters)


def test_openai_gets_one_key_for_a_beginning_and_ones_own_stays():
    keys = [json.loads(sent(openai, chat(text)).content)["prompt_cache_key"] for text in "ab"]
    assert keys[0] == keys[1]
    other = json.loads(sent(openai, chat("a", model="gpt-4o")).content)["prompt_cache_key"]
    assert other != keys[0]
    assert json.loads(sent(openai, chat("a", prompt_cache_key="mine")).content)["prompt_cache_key"] == "mine"
    assert "prompt_cache_key" not in json.loads(sent(openai, chat("a", system="short")).content)


def test_a_body_of_responses_gets_it_too():
    body = {"input": "a", "instructions": LONG}
    assert json.loads(sent(openai, RawRequest("gpt-5", body, path="responses")).content)["prompt_cache_key"]
    mine = body | {"prompt_cache_key": "mine"}
    given = json.loads(sent(openai, RawRequest("gpt-5", mine, path="responses")).content)
    assert given["prompt_cache_key"] == "mine"


def test_other_servers_get_no_name_that_they_may_not_know():
    call = sent(lambda wire: openai(wire, "http://localhost:1/v1", itself=False), chat("a"))
    assert "prompt_cache_key" not in json.loads(call.content)


def test_workers_ai_gets_a_session_for_a_long_beginning():
    def account(wire):
        return WorkersAI(CloudflareAccount("acc", "token"), wire)

    for model in ("@cf/zai-org/glm-5.3", "@cf/meta/llama-3.3-70b-instruct-fp8-fast"):
        sessions = [sent(account, chat(text, model=model)).headers.get("x-session-affinity") for text in "ab"]
        assert sessions[0] == sessions[1] is not None
        assert "x-session-affinity" not in sent(account, chat("a", system="short", model=model)).headers
