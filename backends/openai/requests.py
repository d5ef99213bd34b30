"""Our requests as the bodies of OpenAI's chat completions. Pure functions.

Source: platform.openai.com/docs/api-reference/chat/create.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmdo.backends.json_mode.answers import wants_json
from llmdo.backends.limits.prefixes import prefix_key
from llmdo.backends.limits.sizes import checked_token_limit
from llmdo.backends.parameters import WORKERS_AI_ONLY, Dialect, translate
from llmdo.backends.requests import ChatRequest, Message

# What OpenAI itself takes; it refuses any other name.
OPENAI_DIALECT = Dialect(
    known=frozenset(
        """audio frequency_penalty logit_bias logprobs metadata modalities moderation parallel_tool_calls prediction
        presence_penalty prompt_cache_key prompt_cache_options prompt_cache_retention reasoning_effort response_format
        safety_identifier seed service_tier stop store temperature tool_choice tools top_logprobs top_p user verbosity
        web_search_options""".split()
    ),
    bounds={"temperature": (0.0, 2.0), "presence_penalty": (-2.0, 2.0), "frequency_penalty": (-2.0, 2.0)},
    several=True,
)
# Servers that speak its API (vLLM, llama.cpp, Ollama, LM Studio, proxies) have parameters of their own.
COMPATIBLE_DIALECT = Dialect(unknown=WORKERS_AI_ONLY, several=True)

# These refuse max_tokens, and know only its successor, which older models and most servers do not know.
_NEW_LIMIT = re.compile(r"(?:^|/)(?:o\d|gpt-[5-9]|gpt-\d\d|chatgpt-|codex-)")


def chat_body(
    request: ChatRequest, dialect: Dialect, *, new_limit: bool = False, stream: bool = False
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The body of a conversation, and a sentence for each parameter that is left out or changed.

    ``new_limit``: the service takes ``max_completion_tokens`` for all models, and ``prompt_cache_key``, by which calls
    with the same long beginning find its cache. A ``stream``, and an answer in JSON that may be asked for again, is one
    answer. Raises InvalidRequest.
    """
    parameters = dict(request.parameters)
    functions = parameters.pop("functions", None)
    if functions and not parameters.get("tools"):
        parameters["tools"] = functions
    if (call := parameters.pop("function_call", None)) is not None and parameters.get("tool_choice") is None:
        parameters["tool_choice"] = {"type": "function", "function": call} if isinstance(call, Mapping) else call
    if stream or wants_json(parameters.get("response_format")):
        dialect = replace(dialect, several=False)
    body, warnings = translate(parameters, dialect, request.model)
    if isinstance(body.get("tools"), list):
        body["tools"] = [_tool(tool) for tool in body["tools"]]
    if "response_format" in body:
        body["response_format"] = _wrapped_schema(body["response_format"])
    limit = checked_token_limit(request.parameters)
    if limit is not None:
        # Of a model behind another name, such as a deployment's, only who wrote the line knows which one it takes.
        newer = new_limit or _NEW_LIMIT.search(request.model) or parameters.get("max_tokens") != limit
        body["max_completion_tokens" if newer else "max_tokens"] = limit
    if new_limit and "prompt_cache_key" not in body and (key := prefix_key(request)):
        body["prompt_cache_key"] = key
    messages = [_message(message) for message in request.messages]
    return {"model": request.model, "messages": messages, **body}, warnings


def _message(message: Message) -> dict[str, Any]:
    content = message.content
    return {**message.extra, "role": message.role, "content": list(content) if isinstance(content, tuple) else content}


def _tool(tool: Any) -> Any:
    """Workers AI also takes a tool as ``{"name", "description", "parameters"}``."""
    if isinstance(tool, dict) and "name" in tool and "function" not in tool and "type" not in tool:
        return {"type": "function", "function": tool}
    return tool


def _wrapped_schema(wanted: Any) -> Any:
    """OpenAI wants ``{"name", "schema"}`` where native Workers AI models want the bare JSON Schema."""
    schema: Mapping[str, Any] | None = wanted.get("json_schema") if isinstance(wanted, dict) else None
    if not isinstance(schema, dict):
        return wanted
    if not isinstance(schema.get("schema"), dict):
        schema = {"schema": schema}
    return {**wanted, "json_schema": {"name": "answer", **schema}}
