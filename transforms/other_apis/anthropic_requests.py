"""Requests of Anthropic's Messages API as bodies of chat completions.

Source: platform.claude.com/docs/en/api/messages, and the types of Anthropic's own client. What would make another
answer is refused; what would not is left out, with a warning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmdo.backends.errors import short
from llmdo.transforms.other_apis.anthropic_messages import chat_messages, system_message
from llmdo.transforms.other_apis.translation import (
    Untranslatable,
    WarnOf,
    fields_at,
    items_at,
    kind_at,
    text_at,
    warn_of_others,
)

# Parameters with the same meaning in both, and their names in a chat.
_SAME = {
    "model": "model",
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "stop_sequences": "stop",
    "stream": "stream",
}
# What cannot be asked of another service, and without which the answer is another one.
_REFUSED = frozenset({"container", "mcp_servers"})
# Fields of requests by way of Vertex and Bedrock that say only how the request is written.
_WRITTEN = frozenset({"anthropic_version", "anthropic_beta", "betas"})
_TRANSLATED = frozenset({"messages", "system", "tools", "tool_choice", "metadata", "service_tier"}) | {
    "thinking",
    "output_config",
    "output_format",
}
# Fields of a request beside which others are the user's own; metadata may be either, and is the user's.
ANTHROPIC_FIELDS = frozenset(_SAME) | _REFUSED | _WRITTEN | _TRANSLATED - {"metadata"} | {"cache_control"}
# Blocks that no other API has by these names; images are known by their ``source``.
_BLOCKS = frozenset({"tool_use", "tool_result", "document", "search_result", "thinking", "redacted_thinking"})
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_TIERS = {"auto": None, "standard_only": "default"}


def is_for_anthropic(line: Mapping[str, Any]) -> bool:
    """Whether a line with messages has anything in it that is written so for Anthropic's API alone."""
    if isinstance(line.get("system"), list) or "anthropic_version" in line:
        return True
    messages, tools = line.get("messages"), line.get("tools")
    if isinstance(tools, list) and any(isinstance(tool, dict) and "input_schema" in tool for tool in tools):
        return True
    contents = (
        [turn.get("content") for turn in messages if isinstance(turn, dict)] if isinstance(messages, list) else []
    )
    return any(
        isinstance(block, dict)
        and (
            str(block.get("type")) in _BLOCKS
            or (block.get("type") == "image" and isinstance(block.get("source"), dict))
        )
        for content in contents
        if isinstance(content, list)
        for block in content
    )


def chat_of_messages(params: Mapping[str, Any], warn: WarnOf) -> dict[str, Any]:
    """The body of a chat that asks the same; ``warn`` gets a sentence for what is left out. Raises Untranslatable."""
    given = {name: value for name, value in params.items() if value is not None}
    for name in sorted(_REFUSED & given.keys()):
        if given[name]:
            raise Untranslatable(f"{name} is used by Anthropic's servers, and by no other: omit it")
    messages = chat_messages(given.get("messages"), warn)
    if given.get("system"):
        messages = [system_message(given["system"], warn), *messages]
    body: dict[str, Any] = {"messages": messages}
    body |= {_SAME[name]: value for name, value in given.items() if name in _SAME}
    if given.get("tools"):
        body["tools"] = [_tool(tool, f"tools.{at}", warn) for at, tool in enumerate(items_at(given["tools"], "tools"))]
    if "tool_choice" in given:
        body |= _choice(fields_at(given["tool_choice"], "tool_choice"), warn)
    body |= _about_the_caller(given, warn)
    body |= _about_the_answer(given, warn)
    warn_of_others(given, _SAME.keys() | _REFUSED | _WRITTEN | _TRANSLATED, warn)
    return body


def _tool(given: object, place: str, warn: WarnOf) -> dict[str, Any]:
    tool = fields_at(given, place)
    kind = tool.get("type")
    if kind not in (None, "custom"):
        raise Untranslatable(
            f"{place} is {short(str(kind))}, which only Anthropic runs or knows: remove it, or describe a tool of your "
            "own with name, description and input_schema"
        )
    warn_of_others(tool, ("type", "name", "description", "input_schema", "strict", "allowed_callers"), warn)
    if tool.get("allowed_callers") not in (None, [], ["direct"]):
        warn("allowed_callers was left out: tools are called by the model itself")
    function = {"name": text_at(tool.get("name"), f"{place}.name")}
    schema = fields_at(tool.get("input_schema"), f"{place}.input_schema")
    more = {name: tool[name] for name in ("description", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": {**function, **more, "parameters": schema}}


def _choice(choice: Mapping[str, Any], warn: WarnOf) -> dict[str, Any]:
    warn_of_others(choice, ("type", "name", "disable_parallel_tool_use"), warn)
    one = {"parallel_tool_calls": False} if choice.get("disable_parallel_tool_use") else {}
    kind = kind_at(choice, "tool_choice")
    if kind == "tool":
        named = {"name": text_at(choice.get("name"), "tool_choice.name")}
        return {"tool_choice": {"type": "function", "function": named}, **one}
    if kind not in _CHOICES:
        raise Untranslatable(f"tool_choice.type is {short(kind)}: write one of {', '.join([*_CHOICES, 'tool'])}")
    return {"tool_choice": _CHOICES[kind], **one}


def _about_the_caller(given: Mapping[str, Any], warn: WarnOf) -> dict[str, Any]:
    body: dict[str, Any] = {}
    metadata = fields_at(given.get("metadata", {}), "metadata")
    warn_of_others(metadata, ("user_id",), warn)
    if metadata.get("user_id"):
        body["user"] = metadata["user_id"]
    tier = text_at(given.get("service_tier", "auto"), "service_tier")
    if tier not in _TIERS:
        raise Untranslatable(f"service_tier must be auto or standard_only, not {short(tier)}")
    if _TIERS[tier]:
        body["service_tier"] = _TIERS[tier]
    return body


def _about_the_answer(given: Mapping[str, Any], warn: WarnOf) -> dict[str, Any]:
    """How long the model thinks, and the schema of its answer."""
    body: dict[str, Any] = {}
    thinking = fields_at(given.get("thinking", {}), "thinking")
    if thinking and thinking.get("type") != "disabled":
        warn("thinking was left out: other models have no budget for it; output_config.effort is translated")
    wanted = fields_at(given.get("output_config", {}), "output_config")
    warn_of_others(wanted, ("effort", "format"), warn)
    if wanted.get("effort"):
        body["reasoning_effort"] = text_at(wanted["effort"], "output_config.effort")
    form = wanted.get("format") or given.get("output_format")
    if form:
        form = fields_at(form, "output_config.format")
        if form.get("type") != "json_schema":
            raise Untranslatable("output_config.format must be of the type json_schema, with a schema")
        schema = fields_at(form.get("schema"), "output_config.format.schema")
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    return body
