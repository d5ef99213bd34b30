"""The whole command, against a service whose answers are failures, are odd, or are written against the standard."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import ExitStack

import pytest

from llmdo.runners.inspecting.verify import verify
from tests.fakes.loopback import Loopback, Reply
from tests.integration.called import RUN, called, write_lines

CUSTOM = {"id": "call_1", "type": "custom", "custom": {"name": "shell", "input": "ls -l"}}
THOUGHTS = [
    {"type": "thinking", "thinking": [{"type": "text", "text": "First I count."}]},
    {"type": "text", "text": "There are 7."},
]
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def completion(message, finish="stop", **more):
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    usage = {"prompt_tokens": 6, "completion_tokens": 4, "total_tokens": 10}
    return json.dumps({"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage, **more}).encode()


class Service:
    """Answers each call with ``reply`` of its prompt or its texts: bytes."""

    def __init__(self, reply):
        self.asked = Counter()
        self._reply = reply
        self._server = Loopback(self._answer)
        self.url = f"{self._server.origin}/v1"
        self.close = self._server.close

    def _answer(self, asked):
        if asked.method == "GET":
            return Reply({"object": "list", "data": [{"id": "m"}]})
        about = asked.body["messages"][0]["content"] if "messages" in asked.body else tuple(asked.body["input"])
        self.asked[about] += 1
        return Reply(self._reply(about))


@pytest.fixture
def serve():
    with ExitStack() as services:

        def start(reply):
            service = Service(reply)
            services.callback(service.close)
            return service

        yield start


def run(folder, service, lines, *options, model="openai/m"):
    """The command's exit code and summary, and the rows of its output by the line's id; the output is verified."""
    write_lines(folder, lines)
    code, summary, _, rows = called(folder, service.url, [*RUN, *options, "--model", model])
    assert verify(str(folder / "out"), [str(folder / "in.jsonl")]).ok
    return code, summary, {row["id"]: row for row in rows}


ANSWERS = {
    "broken": completion({"content": "The first"}, "error"),
    "exhausted": completion({"content": "The first"}, "insufficient_system_resource"),
    "cut": completion({"content": "The first"}, "MAX_TOKENS"),
    "unknown": completion({"content": "All of it"}, "because"),
    "thoughts": completion({"content": THOUGHTS}),
    "custom": completion({"content": None, "tool_calls": [CUSTOM]}, "tool_calls", created=17, citations=["u"]),
    "half": completion({"content": "SPLIT"}).replace(b"SPLIT", b"fine \\ud83d"),
    "latin": completion({"content": "SPLIT"}).replace(b"SPLIT", b"caf\xe9"),
    "nan": completion({"content": "fine"}, logprob="SPLIT").replace(b'"SPLIT"', b"-Infinity"),
}
FINE = completion({"content": "fine"})


def test_failures_are_tried_again_and_all_that_was_said_comes_out(tmp_path, serve):
    service = serve(lambda prompt: ANSWERS.get(prompt, FINE))
    prompts = ["a", *ANSWERS, "b"]
    code, summary, rows = run(tmp_path, service, [{"id": prompt, "prompt": prompt} for prompt in prompts])
    assert (code, summary["answered"], summary["failed"]) == (3, len(prompts) - 2, 2)
    assert service.asked == Counter({**dict.fromkeys(prompts, 1), "broken": 3, "exhausted": 3})
    assert summary["spent"]["calls"] == len(prompts) + 4
    assert summary["spent"]["output_tokens"] == 4 * (len(prompts) + 4)
    for failed in ("broken", "exhausted"):
        assert (rows[failed]["error"]["retryable"], rows[failed]["error"]["attempts"]) == (True, 3)
    first = {name: row["response"]["body"]["choices"][0] for name, row in rows.items() if "response" in row}
    assert first["cut"]["finish_reason"] == "length"
    assert "cut off" in rows["cut"]["warnings"][0]
    assert first["unknown"]["finish_reason"] == "because"
    assert "because" in rows["unknown"]["warnings"][0]
    thoughts = first["thoughts"]["message"]
    assert (thoughts["content"], thoughts["reasoning_content"]) == ("There are 7.", "First I count.")
    assert first["custom"]["message"]["tool_calls"] == [CUSTOM]
    body = rows["custom"]["response"]["body"]
    assert (body["created"], body["citations"]) == (17, ["u"])
    assert [first[name]["message"]["content"] for name in ("half", "latin")] == ["fine �", "caf�"]
    assert all("U+FFFD" in rows[name]["warnings"][0] for name in ("half", "latin"))
    assert rows["nan"]["response"]["body"]["logprob"] is None
    assert "null" in rows["nan"]["warnings"][0]
    assert "warnings" not in rows["a"]


def test_a_vector_with_nan_is_the_error_of_its_text_and_the_others_keep_theirs(tmp_path, serve):
    def vectors(texts):
        rows = ((i, "NaN, 0.5" if text == "bad" else "0.25, 0.5") for i, text in enumerate(texts))
        data = ", ".join(f'{{"object": "embedding", "index": {i}, "embedding": [{row}]}}' for i, row in rows)
        return f'{{"object": "list", "model": "e", "data": [{data}], "usage": {{"prompt_tokens": 9}}}}'.encode()

    service = serve(vectors)
    lines = [{"id": text, "text": text} for text in ("one", "bad", "two")]
    code, summary, rows = run(tmp_path, service, lines, model="openai/text-embedding-3-small")
    assert (code, summary["answered"], summary["failed"]) == (3, 2, 1)
    assert service.asked.total() == 1
    assert (rows["bad"]["error"]["class"], "NaN" in rows["bad"]["error"]["message"]) == ("BadReply", True)
    assert rows["two"]["response"]["body"]["data"][0]["embedding"] == [0.25, 0.5]
    assert summary["spent"]["input_tokens"] == 9


def test_an_answer_that_does_not_fit_the_schema_is_asked_for_once_more_by_any_provider(tmp_path, serve):
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    says = {"never": "It is 7.", "fenced": '```json\n{"n": 7}\n```', "fits": '{"n": 7}'}
    service = serve(lambda prompt: completion({"content": says[prompt]}))
    lines = [{"id": prompt, "prompt": prompt} for prompt in says]
    code, summary, rows = run(tmp_path, service, lines, "--schema", "schema.json")
    assert (code, summary["answered"], summary["failed"]) == (3, 2, 1)
    assert service.asked == Counter(never=2, fenced=1, fits=1)
    assert summary["spent"]["input_tokens"] == 4 * 6
    assert rows["never"]["error"]["class"] == "BadReply"
    for name in ("fenced", "fits"):
        assert rows[name]["response"]["body"]["choices"][0]["message"]["content"] == '{"n": 7}'
