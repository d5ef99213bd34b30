"""Lines as people have them, by the command, asked of a server with OpenAI's API on a port of this machine."""

import json

import pytest
from openai.types.responses import Response

from tests.fakes.loopback import Loopback, Reply
from tests.integration.called import in_this_process


class Service:
    """Answers every call; one whose messages hold ``broken`` gets a 500 while ``refuses``."""

    def __init__(self):
        self.calls = []
        self.refuses = True
        self.has_responses = True
        self._server = Loopback(self._answer)
        self.url = f"{self._server.origin}/v1"
        self.close = self._server.close

    def _answer(self, asked):
        if asked.method == "GET":
            return Reply(None, 501)
        route = asked.path.removeprefix("/v1/")
        self.calls.append((route, asked.body))
        status, reply = self.reply(route, asked.body)
        return Reply(reply, status)

    def reply(self, route, body):
        if self.refuses and "broken" in json.dumps(body):
            return 400, {"error": {"message": "this cannot be asked", "type": "invalid_request_error"}}
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        if route == "chat/completions":
            choice = {"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}
            return 200, {"object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage}
        if route == "completions":
            choice = {"index": 0, "text": "Once upon a time", "logprobs": {"tokens": ["Once"]}, "finish_reason": "stop"}
            return 200, {"object": "text_completion", "model": body["model"], "choices": [choice], "usage": usage}
        if route == "responses" and not self.has_responses:
            return 404, {"detail": "Not Found"}
        if route == "responses":
            part = {"type": "output_text", "text": "hi"}
            output = [{"type": "message", "role": "assistant", "content": [part]}]
            used = {"input_tokens": 7, "output_tokens": 4, "output_tokens_details": {"reasoning_tokens": 1}}
            said = {"object": "response", "status": "completed", "error": None, "model": body["model"]}
            return 200, {**said, "output": output, "usage": used}
        data = [{"index": at, "embedding": [1.0, 2.0]} for at in range(len(body["input"]))]
        return 200, {"object": "list", "data": data, "model": body["model"], "usage": {"prompt_tokens": 1}}


@pytest.fixture
def service():
    service = Service()
    yield service
    service.close()


@pytest.fixture
def llmdo(service, tmp_path):
    """Runs a command in a folder with the lines; returns its summary, the rows of answers and those of errors."""

    def run(lines, *options, command=("run", "in.jsonl", "--output", "out", "--model", "openai/m")):
        if lines is not None:
            text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
            (tmp_path / "in.jsonl").write_text(text, encoding="utf-8")
        code, out, said = in_this_process(tmp_path, service.url, [*command, *options, "--json"])
        assert code in (0, 3), said
        rows = {
            kind: [
                json.loads(row)
                for path in sorted((tmp_path / "out").rglob(f"{kind}-*.jsonl"))
                for row in path.read_text().splitlines()
            ]
            for kind in ("shard", "errors")
        }
        return json.loads(out), rows["shard"], rows["errors"]

    return run


def asked(service):
    return [body["messages"] for _, body in service.calls]


def canonical(value):
    return json.dumps(value, sort_keys=True)


def test_with_a_template_a_lines_fields_are_its_own_whatever_they_are_called(llmdo, service):
    data = {
        "model": "Canon EOS R5",
        "temperature": 38.5,
        "max_tokens": "a lot",
        "user": {"name": "Ann"},
        "stop": "Main St",
        "seed": "pumpkin",
        "tools": "hammer",
        "system": "lymphatic",
        "messages": ["one", "two"],
        "prompt": "asap",
        "url": "https://example.org/a",
        "body": "human",
        "error": "E17",
        "metadata": {"k": 1},
        "raw": "x",
        "usage": 3,
        "answer": "42",
    }
    line = {"id": 5, "text": "It rains.", **data}
    summary, (row,), errors = llmdo([line], "--prompt", "Translate: {text}", "--max-tokens", "9")
    assert (summary["exit_code"], errors) == (0, [])
    assert service.calls == [
        (
            "chat/completions",
            {"model": "m", "messages": [{"role": "user", "content": "Translate: It rains."}], "max_tokens": 9},
        )
    ]
    assert row["metadata"] == data
    assert (row["id"], row["error"], row.get("warnings")) == (5, None, None)


def test_line_parameters_lets_them_count_again_also_for_retry(llmdo, service):
    lines = [{"text": "fine", "model": "n", "temperature": 0.5, "team": "x"}, {"text": "broken", "seed": 1}]
    _, (row,), (error,) = llmdo(lines, "--prompt", "Say {text}", "--line-parameters")
    sent = {body["messages"][0]["content"]: body for _, body in service.calls}
    assert (sent["Say fine"]["model"], sent["Say fine"]["temperature"]) == ("n", 0.5)
    assert (row["metadata"], error["error"]["class"]) == ({"team": "x"}, "InvalidRequest")
    service.refuses, service.calls[:] = False, []
    summary, _, errors = llmdo(None, command=("retry", "out", "--all"))
    assert (summary["answered"], errors) == (1, [])
    assert [body["seed"] for _, body in service.calls] == [1]


def test_a_lines_own_error_is_asked_about_again_by_retry_and_by_a_run_over_the_error_file(llmdo, service, tmp_path):
    lines = [
        '{"custom_id": "a", "service": "pay", "error": "broken: NullPointerException \\u00e9"}',
        '{"custom_id": "b", "service": "x", "error": "Timeout"}',
    ]
    options = ("--prompt", "Explain {error} of {service}")
    _, (answered,), (failed,) = llmdo(lines, *options)
    assert (answered["custom_id"], answered["error"]) == ("b", None)
    assert (failed["custom_id"], failed["service"], failed["error"]["line"]) == ("a", "pay", lines[0])
    assert "this cannot be asked" in failed["error"]["message"]
    first = service.calls[0 if "broken" in str(service.calls[0]) else 1][1]
    service.refuses, service.calls[:] = False, []
    (fed,) = tmp_path.joinpath("out").rglob("errors-*.jsonl")
    tmp_path.joinpath("fed.jsonl").write_bytes(fed.read_bytes())
    summary, _, errors = llmdo(None, command=("retry", "out", "--all"))
    assert (summary["answered"], errors) == (1, [])
    llmdo(None, *options, command=("run", "fed.jsonl", "--output", "fed", "--model", "openai/m"))
    assert [body for _, body in service.calls] == [first, first]
    verified = llmdo(None, command=("verify", "out", "--input", "in.jsonl"))
    assert verified[0]["ok"]


def test_conversations_of_every_kind_are_asked_as_they_are(llmdo, service):
    user = {"role": "user", "content": "weather?"}
    called = {"name": "w", "arguments": "{}"}
    calls = [{"id": "c1", "type": "function", "function": called}]
    conversations = [
        [{"role": "system", "content": "Translate: Hello"}],
        [{"role": "developer", "content": "Say hi"}],
        [
            user,
            {"role": "assistant", "content": None, "function_call": called},
            {"role": "function", "name": "w", "content": "sunny"},
        ],
        [
            user,
            {"role": "assistant", "content": "", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "c1", "content": ""},
        ],
        [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "One, two,"}],
        [{"role": "user", "name": "Ann", "content": "a"}, {"role": "user", "name": "Bob", "content": "b"}],
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_audio", "input_audio": {}}]}],
    ]
    summary, rows, errors = llmdo([{"id": at, "messages": one} for at, one in enumerate(conversations)])
    assert (summary["answered"], errors) == (len(conversations), [])
    assert sorted(map(canonical, asked(service))) == sorted(map(canonical, conversations))
    assert sorted(row["id"] for row in rows) == list(range(len(conversations)))


def test_lines_that_do_not_say_what_to_ask_make_no_call_and_what_to_write_works(llmdo, service):
    data_set = {"instruction": "Give three tips", "input": "", "output": "1. Eat"}
    texts = {"text": "lovely", "label": 1}
    api = {"input": "hi", "instructions": "Be short", "max_output_tokens": 9}
    summary, answers, errors = llmdo([data_set, texts, api, {"conversations": [{"from": "human", "value": "x"}]}])
    assert (summary["failed"], answers, service.calls) == (4, [], [])
    said = [row["error"]["message"] for row in errors]
    assert "--prompt '{instruction} {input} {output}'" in said[0] and '{"url": "/v1/embeddings"' in said[1]
    assert '{"url": "/v1/responses"' in said[2] and "(conversations) does not say what to ask openai/m" in said[3]
    # The remedies.
    given = [{"url": "/v1/embeddings", "body": {"input": ["lovely"]}}, {"url": "/v1/responses", "body": api}]
    remedied = ("run", "in.jsonl", "--output", "out2", "--model", "openai/m")
    assert llmdo(given, command=remedied)[0]["failed"] == 0
    assert {route for route, _ in service.calls} == {"embeddings", "responses"}
    template = ("--prompt", "{instruction} {input} {output}")
    assert llmdo([data_set], *template, command=(*remedied[:3], "out3", *remedied[4:]))[0]["failed"] == 0


def test_an_evaluations_messages_are_asked_as_a_chat(llmdo, service):
    messages = [{"role": "system", "content": "Answer."}, {"role": "user", "content": "2+2?"}]
    _, (row,), errors = llmdo([{"input": messages, "ideal": "4"}])
    assert errors == []
    assert service.calls == [("chat/completions", {"model": "m", "messages": messages})]
    assert row["metadata"] == {"ideal": "4"}


def test_batch_files_of_other_routes_and_services_are_asked_as_they_say(llmdo, service):
    hi = [{"role": "user", "content": "hi"}]
    lines = [
        {"custom_id": "0", "body": {"max_tokens": 100.0, "messages": hi}},
        {
            "custom_id": "1",
            "url": "/v1/chat/completions",
            "body": {"model": "openai/gpt-oss-20b", "messages": hi, "max_completion_tokens": 500},
        },
        {
            "custom_id": "2",
            "url": "/v1/completions",
            "body": {"model": "m", "prompt": "Once", "logprobs": 5, "echo": True},
        },
        {
            "custom_id": "3",
            "url": "/v1/responses",
            "body": {"model": "m", "instructions": "Be short", "input": "hi", "max_output_tokens": 160, "stream": True},
        },
        {"custom_id": "4", "url": "/v1/fim/completions", "body": {"prompt": "def f("}},
    ]
    summary, rows, errors = llmdo(lines)
    assert summary["answered"] == 4
    sent = {(route, body["model"]): body for route, body in service.calls}
    assert sent == {
        ("chat/completions", "m"): {"model": "m", "messages": hi, "max_tokens": 100},
        ("chat/completions", "openai/gpt-oss-20b"): {
            "model": "openai/gpt-oss-20b",
            "messages": hi,
            "max_completion_tokens": 500,
        },
        ("completions", "m"): {"model": "m", "prompt": "Once", "logprobs": 5, "echo": True},
        ("responses", "m"): {"model": "m", "instructions": "Be short", "input": "hi", "max_output_tokens": 160},
    }
    by_id = {row["custom_id"]: row for row in rows}
    assert by_id["2"]["response"]["body"] == service.reply("completions", {"model": "m"})[1]
    response, sent = by_id["3"]["response"]["body"], service.reply("responses", {"model": "m"})[1]
    assert Response.model_validate(response).output_text == "hi"  # with what this server leaves out
    assert {name: response[name] for name in sent if name not in ("output", "usage")} == {
        name: value for name, value in sent.items() if name not in ("output", "usage")
    }
    assert by_id["3"]["usage"]["input_tokens"] == 7 and by_id["3"]["usage"]["reasoning_tokens"] == 1
    assert by_id["3"]["warnings"] == ["stream was left out: an answer is written when it is complete"]
    assert by_id["1"]["model"] == "openai/openai/gpt-oss-20b"
    assert "'/v1/fim/completions' is not one that can be answered" in errors[0]["error"]["message"]


RESPONSES = [
    {"custom_id": "text", "body": {"input": "hi", "instructions": "Be short", "max_output_tokens": 160}},
    {
        "custom_id": "items",
        "body": {
            "model": "m",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "42"},
            ],
            "tools": [{"type": "function", "name": "f", "parameters": {}}],
            "store": True,
        },
    },
    {"custom_id": "hosted", "body": {"input": "hi", "tools": [{"type": "web_search"}]}},
    {"custom_id": "before", "body": {"input": "hi", "previous_response_id": "resp_1"}},
]


def test_a_server_without_responses_answers_them_by_chats_and_once(llmdo, service):
    service.has_responses = False
    lines = [{"method": "POST", "url": "/v1/responses", **line} for line in RESPONSES]
    summary, rows, errors = llmdo(lines)
    assert (summary["answered"], summary["failed"]) == (2, 2)
    found = {row["custom_id"]: row for row in rows}
    for row in found.values():
        assert Response.model_validate(row["response"]["body"]).output_text == "yes"
        assert (row["usage"]["input_tokens"], row["usage"]["output_tokens"]) == (3, 2)
    assert found["items"]["warnings"] == ["store was left out: no response is kept by the service"]
    asked = [body for route, body in service.calls if route == "chat/completions"]
    assert sorted(len(body["messages"]) for body in asked) == [2, 3]
    said = {row["custom_id"]: row["error"]["message"] for row in errors}
    assert "'web_search' runs at OpenAI" in said["hosted"]
    assert "'previous_response_id' cannot be used" in said["before"]
    calls = len(service.calls)
    assert llmdo(None)[0]["answered"] == 0
    assert len(service.calls) == calls


def test_a_servers_own_id_is_asked_for_as_it_is_named(llmdo, service):
    lines = [{"prompt": "a"}, {"prompt": "b", "model": "openai/gpt-oss-20b"}, {"prompt": "c", "model": "qwen"}]
    model = ("run", "in.jsonl", "--output", "out", "--model", "openai/openai/gpt-oss-20b")
    summary, _, errors = llmdo(lines, command=model)
    assert (summary["answered"], errors) == (3, [])
    assert sorted(body["model"] for _, body in service.calls) == ["openai/gpt-oss-20b", "openai/gpt-oss-20b", "qwen"]
