"""/v1/responses lines by the command, of every provider that runs here: answers that OpenAI's own types read."""

from __future__ import annotations

import json

import pytest
from openai.types.responses import Response

from tests.integration.openai_service import answer

LLAMA = "@cf/meta/llama-3.3-70b-instruct-fp8-fast"
GPT_OSS = "@cf/openai/gpt-oss-20b"
SCHEMA = {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}
FORMAT = {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}
WEATHER = {"type": "function", "name": "weather", "parameters": SCHEMA}
BODIES = {
    "text": {"input": "one", "instructions": "Be short", "max_output_tokens": 50, "metadata": {"k": "v"}},
    "cut": {"input": "one two three", "max_output_tokens": 2},
    "items": {
        "input": [
            {"role": "system", "content": "Be kind"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "two"}]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "rain"},
        ]
    },
    "json": {"input": "three", "text": {"format": FORMAT}},
    "tool": {"input": "four", "tools": [WEATHER], "tool_choice": {"type": "function", "name": "weather"}},
    "hosted": {"input": "five", "tools": [{"type": "web_search"}]},
    "before": {"input": "six", "previous_response_id": "resp_1"},
}
LINES = [{"custom_id": name, "method": "POST", "url": "/v1/responses", "body": body} for name, body in BODIES.items()]
TEXT = "".join(json.dumps(line) + "\n" for line in LINES)


def check(answers, errors):
    """What must come of the lines where models are the echo stand-in."""
    read = {name: Response.model_validate(row["response"]["body"]) for name, row in answers.items()}
    assert read.keys() == {"text", "cut", "items", "json", "tool"}
    assert read["text"].output_text == "echo: one"
    assert (read["text"].instructions, read["text"].metadata) == ("Be short", {"k": "v"})
    assert (read["cut"].status, read["cut"].incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert any("raise max_output_tokens" in warning for warning in answers["cut"]["warnings"])
    assert read["items"].output_text == "echo: two"
    assert json.loads(read["json"].output_text).keys() == {"city"}
    assert [(item.type, item.name) for item in read["tool"].output] == [("function_call", "weather")]
    for name, response in read.items():
        used = answers[name]["usage"]
        assert (response.usage.input_tokens, response.usage.output_tokens) == (
            used["input_tokens"],
            used["output_tokens"],
        )
        assert used["total_tokens"] > 0
    assert any("input.2 was left out" in warning for warning in answers["items"]["warnings"])
    assert "'web_search' runs at OpenAI" in errors["hosted"]["error"]["message"]
    assert "'previous_response_id' cannot be used" in errors["before"]["error"]["message"]
    assert errors.keys() == {"hosted", "before"}


@pytest.mark.parametrize("runner", ["direct", "prism"])
@pytest.mark.parametrize("model", [LLAMA, GPT_OSS])
@pytest.mark.parametrize("mode", ["sync", "batch"])
@pytest.mark.fast("sync-*-direct", "batch-*llama*-direct")
def test_workers_ai_answers_responses_lines_by_chats(cloud, runner, model, mode, tmp_path):
    found = _answered(cloud, tmp_path, "--model", model, "--mode", mode, "--runner", runner)
    check(*found)


@pytest.mark.parametrize("runner", ["direct", "prism"])
@pytest.mark.parametrize(("model", "paid"), [(LLAMA, "chat/completions"), (GPT_OSS, "responses")])
@pytest.mark.fast("*-direct")
def test_a_server_with_openais_api_is_asked_at_responses_or_by_chats(cloud, runner, model, paid, tmp_path):
    """The local server has the route for gpt-oss alone; refusals of hosted tools are its own."""
    answers, errors = _answered(cloud, tmp_path, "--model", f"openai/{model}", "--runner", runner)
    if paid == "responses":
        assert answers["items"].get("warnings") is None  # it is passed on as it is
        answers["items"]["warnings"] = ["input.2 was left out"]
    check(answers, errors)


def test_of_a_server_that_has_the_route_an_equal_line_is_asked_once_over_versions_of_its_file(service, tmp_path):
    def line(text):
        return json.dumps({"custom_id": text, "url": "/v1/responses", "body": {"input": text}}) + "\n"

    source = tmp_path / "in.jsonl"
    source.write_text(line("one"))
    answer(source, output=tmp_path / "out")
    source.write_text(line("one") + line("two"))
    (settled,) = answer(source, output=tmp_path / "out").settled
    assert settled.answered == 2
    assert service.asked() == ["one", "two"]
    rows = [json.loads(row) for path in (tmp_path / "out").rglob("shard-*") for row in path.read_text().splitlines()]
    said = {Response.model_validate(row["response"]["body"]).output_text for row in rows}
    assert said == {"1: one", "2: two"}
    assert {row["usage"]["cached_tokens"] for row in rows} == {1}


def _answered(cloud, folder, *options):
    """Answers and errors by their ids; a second run answers nothing."""
    (folder / "in.jsonl").write_text(TEXT)
    paid = []
    for _ in range(2):
        process = cloud.command("run", str(folder / "in.jsonl"), "--output", str(folder / "out"), *options)
        _, said = process.communicate(timeout=120)
        assert process.returncode in (0, 3), said
        paid.append(cloud.stats()["paid"]["calls"])
    assert paid[0] == paid[1]
    found = {
        kind: [json.loads(row) for path in (folder / "out").rglob(f"{kind}-*") for row in path.read_text().splitlines()]
        for kind in ("shard", "errors")
    }
    return tuple({row["custom_id"]: row for row in rows} for rows in found.values())
