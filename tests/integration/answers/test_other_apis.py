"""Batch files of other services, by the command: what a server with OpenAI's API is asked, and what the rows hold."""

import json

import pytest
from openai.types.chat import ChatCompletion
from openai.types.moderation_create_response import ModerationCreateResponse

from llmdo.runners.inspecting.verify import verify
from tests.fakes.loopback import Loopback, Reply
from tests.integration.called import RUN, called, write_lines

HI = [{"role": "user", "content": "hi"}]
CONTENTS = [{"role": "user", "parts": [{"text": "ho"}]}]
LINES = [
    {"custom_id": "claude", "params": {"max_tokens": 9, "system": [{"type": "text", "text": "A"}], "messages": HI}},
    {"custom_id": "named", "params": {"model": "claude-x", "max_tokens": 9, "messages": HI}},
    {"key": 3, "request": {"contents": CONTENTS, "generationConfig": {"topK": 4}, "safetySettings": [{"a": 1}]}},
    {"request": {"contents": CONTENTS}, "row": 4},
    {"custom_id": "search", "params": {"messages": HI, "tools": [{"type": "web_search_20250305", "name": "w"}]}},
    {"key": "video", "request": {"contents": [{"parts": [{"inlineData": {"mimeType": "video/mp4", "data": ""}}]}]}},
    {"custom_id": "judge", "url": "/v1/moderations", "body": {"model": "omni-moderation-latest", "input": ["a", "b"]}},
    {"custom_id": "tokens", "url": "/v1/embeddings", "body": {"input": [[1, 2], [3]]}},
    {"custom_id": "image", "url": "/v1/images/generations", "body": {"prompt": "a fox"}},
]


class Service:
    def __init__(self):
        self.calls = []
        self._server = Loopback(self._answer)
        self.url = f"{self._server.origin}/v1"
        self.close = self._server.close

    def _answer(self, asked):
        if asked.method == "GET":
            return Reply(None, 501)
        route, body = asked.path.removeprefix("/v1/"), asked.body
        self.calls.append((route, body))
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        if route == "chat/completions":
            choice = {"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}
            return Reply({"object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage})
        if route == "moderations":
            verdict = {"flagged": False, "categories": {"hate": False}, "category_scores": {"hate": 0.01}}
            return Reply({"id": "modr-1", "model": body["model"], "results": [verdict for _ in body["input"]]})
        data = [{"object": "embedding", "index": at, "embedding": [1.0]} for at in range(len(body["input"]))]
        return Reply({"object": "list", "data": data, "model": body["model"], "usage": {"prompt_tokens": 3}})


@pytest.fixture
def service():
    service = Service()
    yield service
    service.close()


@pytest.mark.fast("direct")
@pytest.mark.parametrize("runner", ["direct", pytest.param("prism", marks=pytest.mark.prism)])
def test_batch_files_of_other_services_are_answered_or_refused_line_by_line(service, tmp_path, runner):
    write_lines(tmp_path, LINES)
    command = [runner if word == "direct" else word for word in RUN]
    code, summary, _, rows = called(tmp_path, service.url, command)
    assert (code, summary["answered"], summary["failed"]) == (3, 6, 3)
    answers = {row["id"]: row for row in rows if row["error"] is None}
    place = next(name for name in answers if str(name).startswith("in.jsonl:"))
    assert [row["custom_id"] for row in answers.values()] == [str(name) for name in answers]
    assert answers.keys() == {"claude", "named", 3, place, "judge", "tokens"}
    for name in ("claude", "named", 3):
        assert ChatCompletion.model_validate(answers[name]["response"]["body"]).choices[0].message.content == "yes"
    assert answers[3]["warnings"] == ["safetySettings was left out: a chat request has no place for it"]
    assert (answers["named"]["model"], answers["claude"]["model"]) == ("openai/claude-x", "openai/m")
    assert answers[place]["metadata"] == {"row": 4}
    judged = ModerationCreateResponse.model_construct(**answers["judge"]["response"]["body"])
    assert len(judged.results) == 2
    assert answers["judge"]["usage"]["total_tokens"] == 0
    assert len(answers["tokens"]["response"]["body"]["data"]) == 2
    asked = sorted(json.dumps([route, body], sort_keys=True) for route, body in service.calls)
    expected = [
        ["chat/completions", {"model": "m", "messages": [{"role": "system", "content": "A"}, *HI], "max_tokens": 9}],
        ["chat/completions", {"model": "claude-x", "messages": HI, "max_tokens": 9}],
        ["chat/completions", {"model": "m", "messages": [{"role": "user", "content": "ho"}], "top_k": 4}],
        ["chat/completions", {"model": "m", "messages": [{"role": "user", "content": "ho"}]}],
        ["moderations", {"model": "omni-moderation-latest", "input": ["a", "b"]}],
        ["embeddings", {"model": "m", "input": [[1, 2], [3]]}],
    ]
    assert asked == sorted(json.dumps(one, sort_keys=True) for one in expected)
    errors = {row.get("custom_id", row.get("key")): row for row in rows if row["error"] is not None}
    assert "tools.0 is 'web_search_20250305'" in errors["search"]["error"]["message"]
    assert "inlineData is 'video/mp4'" in errors["video"]["error"]["message"]
    assert "'/v1/images/generations' is not one that can be answered" in errors["image"]["error"]["message"]
    assert {name: {**row, "error": None} for name, row in errors.items()} == {
        line.get("custom_id", line.get("key")): {**line, "error": None}
        for line in LINES
        if line.get("custom_id", line.get("key")) in errors
    }
    assert verify(str(tmp_path / "out"), [str(tmp_path / "in.jsonl")]).differences == ()


def test_lines_that_name_a_model_of_anthropic_are_answered_by_workers_ai_with_ignore(cloud):
    line = {"custom_id": "a", "params": {"model": "claude-sonnet-4-5", "max_tokens": 9, "messages": HI}}
    lines = [line, {"key": "b", "request": {"contents": CONTENTS}}]
    cloud.upload("a.jsonl", b"".join(json.dumps(one).encode() + b"\n" for one in lines))
    first = cloud.run()
    assert (first.exit_code, first.counts.answered, first.counts.failed) == (3, 1, 1)
    failed = next(row for row in cloud.rows("a.jsonl") if row["error"])
    assert failed["error"]["retryable"] is True
    assert "--line-models ignore" in failed["error"]["message"]
    process = cloud.command("retry", "r2://llmdo/output/", "--line-models", "ignore")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    rows = cloud.rows("a.jsonl")
    answers = [row["response"]["body"]["choices"][0]["message"]["content"] for row in rows]
    assert ([row["custom_id"] for row in rows], answers) == (["a", "b"], ["echo: hi", "echo: ho"])
    assert rows[0]["warnings"] == ["model 'claude-sonnet-4-5' was left out: --line-models ignore asks the run's own"]
    cloud.check()
