"""The local OpenAI answers a chat and the body of /v1/responses that it becomes alike."""

from __future__ import annotations

from typing import Any

import pytest

from llmdo.backends.responses_api.from_chat import responses_body
from tests.local.cloudflare import Running
from tests.local.openai.batching import MODEL, client_of

USER = {"role": "user", "content": "a b"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.mark.parametrize(
    "chat",
    [
        {"messages": [USER]},
        {"messages": [{"role": "system", "content": "Be kind"}, {"role": "user", "content": [
            {"type": "text", "text": "a"}, {"type": "text", "text": "b c"}]}], "temperature": 0.5},
        {"messages": [{"role": "user", "content": "a " * 40}], "max_completion_tokens": 16},
        {"messages": [USER], "response_format": {
            "type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
        {"messages": [USER], "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
        {"messages": [USER, {"role": "assistant", "content": "c", "tool_calls": [CALL]},
                      {"role": "tool", "tool_call_id": "c1", "content": "rain"}], "tools": [TOOL]},
    ],
)  # fmt: skip
def test_a_chat_is_answered_as_its_response_is(cloudflare: Running, chat: dict[str, Any]) -> None:
    client = client_of(cloudflare)
    whole = {"model": MODEL, **chat}
    answer = client.chat.completions.create(**whole)
    response = client.responses.create(**responses_body(whole))
    (choice,) = answer.choices
    calls = [(one.function.name, one.function.arguments) for one in choice.message.tool_calls or []]  # type: ignore[union-attr]
    assert choice.message.content or calls
    assert response.output_text == (choice.message.content or "")
    assert [(one.name, one.arguments) for one in response.output if one.type == "function_call"] == calls
    assert (response.status == "incomplete") == (choice.finish_reason == "length")
    assert answer.usage
    assert response.usage
    assert (response.usage.input_tokens, response.usage.output_tokens) == (
        answer.usage.prompt_tokens,
        answer.usage.completion_tokens,
    )
