"""Writes the tables of docs/parameters.md: each parameter of OpenAI's API is given to each provider, and what it makes
of it is looked at.

SAMPLES and EMBEDDING_SAMPLES have a value for each parameter of OpenAI's own types: where these have one more,
tests/pages/test_parameters.py fails.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llmdo.backends.anthropic import requests as anthropic
from llmdo.backends.limits.sizes import TOKEN_LIMITS
from llmdo.backends.llama_cpp.backend import EMBEDDED_DIALECT, EMBEDDED_EMBEDDINGS
from llmdo.backends.openai.backend import EMBEDDINGS_DIALECT
from llmdo.backends.openai.requests import COMPATIBLE_DIALECT, OPENAI_DIALECT, chat_body
from llmdo.backends.parameters import Dialect, translate
from llmdo.backends.requests import ChatRequest, EmbedRequest, Message
from llmdo.backends.responses_api.chat_request import FIELDS
from llmdo.backends.workers_ai import requests as workers_ai
from llmdo.backends.workers_ai.models import DIALECTS, Shape
from llmdo.transforms.prompts.fields import NEVER, RequestTarget

PAGE = Path(__file__).resolve().parents[1] / "parameters.md"
Made = tuple[Mapping[str, Any], tuple[str, ...]]  # the body, and the warnings
Make = Callable[[Mapping[str, Any]], Made]

_FUNCTION = {"name": "f", "parameters": {"type": "object"}}
# A value for each parameter of a chat, within all bounds, that asks for something.
SAMPLES: Mapping[str, Any] = {
    "audio": {"voice": "alloy", "format": "wav"},
    "frequency_penalty": 0.5,
    "function_call": {"name": "f"},
    "functions": [_FUNCTION],
    "logit_bias": {"17": 1},
    "logprobs": True,
    "max_completion_tokens": 17,
    "max_tokens": 17,
    "metadata": {"k": "v"},
    "modalities": ["text"],
    "moderation": {"model": "omni-moderation-latest"},
    "n": 2,
    "parallel_tool_calls": True,
    "prediction": {"type": "content", "content": "x"},
    "presence_penalty": 0.5,
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "low",
    "response_format": {"type": "json_object"},
    "safety_identifier": "s",
    "seed": 17,
    "service_tier": "flex",
    "stop": ["x"],
    "store": True,
    "stream": True,
    "stream_options": {"include_usage": True},
    "temperature": 0.5,
    "tool_choice": "required",
    "tools": [{"type": "function", "function": _FUNCTION}],
    "top_logprobs": 2,
    "top_p": 0.5,
    "user": "u",
    "verbosity": "low",
    "web_search_options": {"search_context_size": "low"},
}
# Of other services, which many servers with OpenAI's API take.
_OTHERS: Mapping[str, Any] = {
    "chat_template_kwargs": {"enable_thinking": False},
    "lora": "l",
    "min_p": 0.1,
    "raw": True,
    "repetition_penalty": 1.1,
    "top_k": 17,
}
EMBEDDING_SAMPLES: Mapping[str, Any] = {"dimensions": 17, "encoding_format": "base64", "user": "u"}
_CHAT, _NATIVE = "@cf/google/gemma-4-26b-a4b-it", "@cf/meta/llama-3.3-70b-instruct-fp8-fast"
_BGE = "@cf/baai/bge-m3"
_CLAUDE = "claude-sonnet-4-6"


def _openai(parameters: Mapping[str, Any]) -> Made:
    return chat_body(_request("gpt-4o", parameters), OPENAI_DIALECT, new_limit=True)


def _compatible(parameters: Mapping[str, Any]) -> Made:
    return chat_body(_request("m", parameters), COMPATIBLE_DIALECT)


def _workers_ai(model: str, shape: Shape) -> Make:
    def make(parameters: Mapping[str, Any]) -> Made:
        warnings: list[str] = []
        body = workers_ai.chat_body(_request(model, parameters), shape, warnings.append)
        return body, tuple(warnings)

    return make


def _anthropic(parameters: Mapping[str, Any]) -> Made:
    warnings: list[str] = []
    other = {"tools": [{"type": "function", "function": {"name": "g"}}]}  # without any there is nothing to choose
    given = parameters if "functions" in parameters else {**other, **parameters}
    body = anthropic.chat_body(_request(_CLAUDE, given), warnings.append)
    return body, tuple(warnings)


def _embedded(parameters: Mapping[str, Any]) -> Made:
    body, warnings = translate(parameters, EMBEDDED_DIALECT, "m")
    limits = [value for name, value in parameters.items() if name in TOKEN_LIMITS]
    return body | ({"max_tokens": limits[0]} if limits else {}), warnings


def _request(model: str, parameters: Mapping[str, Any]) -> ChatRequest:
    return ChatRequest(model, (Message("user", "x"),), parameters)


def _workers_ai_embeddings(parameters: Mapping[str, Any]) -> Made:
    warnings: list[str] = []
    body = workers_ai.embed_body(EmbedRequest(_BGE, ("x",), parameters), warnings.append)
    return body, tuple(warnings)


def _openai_embeddings(parameters: Mapping[str, Any]) -> Made:
    return translate(parameters, EMBEDDINGS_DIALECT, "m")


def _embedded_embeddings(parameters: Mapping[str, Any]) -> Made:
    return {}, translate(parameters, EMBEDDED_EMBEDDINGS, "m")[1]


CHATS: Mapping[str, tuple[Make, Dialect]] = {
    "OpenAI": (_openai, OPENAI_DIALECT),
    "another base URL, Braintrust": (_compatible, COMPATIBLE_DIALECT),
    "Workers AI, newer": (_workers_ai(_CHAT, "chat"), DIALECTS["chat"]),
    "Workers AI, native": (_workers_ai(_NATIVE, "native"), DIALECTS["native"]),
    "Anthropic": (_anthropic, anthropic.ANTHROPIC_DIALECT),
    "embedded": (_embedded, EMBEDDED_DIALECT),
}
EMBEDDINGS: Mapping[str, tuple[Make, Dialect]] = {
    "OpenAI, another base URL, Braintrust": (_openai_embeddings, EMBEDDINGS_DIALECT),
    "Workers AI": (_workers_ai_embeddings, Dialect()),
    "embedded": (_embedded_embeddings, EMBEDDED_EMBEDDINGS),
}


def outcome(name: str, value: Any, make: Make) -> str:
    """``passed``, ``as `NAME` ``, ``warning`` where it is left out, or ``in the row`` where the call is the same."""
    before, _ = make({})
    body, warnings = make({name: value})
    if warnings:
        return "warning"
    if name in body and body[name] != before.get(name):
        return "passed"
    found = [other for other in body if body[other] != before.get(other)]
    return f"as `{found[0]}`" if found else "in the row"


def beside_a_prompt(name: str, value: Any, *, embeds: bool = False) -> str:
    """Whether a line's own field of this name is a parameter; in a batch line's body each one is."""
    target = RequestTarget("workers-ai", "m", embeds, "r")
    if embeds:
        return "parameter" if name in target.embedding_parameters_in({name: value})[1] else "own field"
    return "parameter" if target.parameters_in({name: value}) else "own field"


def tables() -> dict[str, str]:
    """The tables by their names in the page."""
    chat = {name: value for name, value in SAMPLES.items() if name not in NEVER}
    responses = (
        (f"`{name}`", "warning" if name in NEVER else field.how.replace("left out", "warning"), field.note)
        for name, field in FIELDS.items()
    )
    return {
        "chats": _table(("parameter", "beside a prompt", *CHATS), _rows(chat, CHATS)),
        "others": _table(("parameter", "beside a prompt", *CHATS), _rows(_OTHERS, CHATS)),
        "embeddings": _table(
            ("parameter", "beside a text", *EMBEDDINGS), _rows(EMBEDDING_SAMPLES, EMBEDDINGS, embeds=True)
        ),
        "responses": _table(("field", "in a chat", "what becomes of it"), responses),
        "never": ", ".join(f"`{name}`" for name in sorted(NEVER)),
    }


def _rows(
    samples: Mapping[str, Any], providers: Mapping[str, tuple[Make, Dialect]], *, embeds: bool = False
) -> Iterator[tuple[str, ...]]:
    for name, value in samples.items():
        cells = [outcome(name, value, make) + _bounds(dialect, name) for make, dialect in providers.values()]
        yield f"`{name}`", beside_a_prompt(name, value, embeds=embeds), *cells


def _bounds(dialect: Dialect, name: str) -> str:
    found = dialect.bounds.get(name)
    return f", {found[0]:g} to {found[1]:.10g}" if found else ""


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def with_tables(page: str) -> str:
    """The page with its tables made anew."""
    for name, table in tables().items():
        marks = rf"(<!-- {name} -->).*?(<!-- end -->)"
        page, count = re.subn(marks, lambda found, made=table: f"{found[1]}\n{made}\n{found[2]}", page, flags=re.DOTALL)
        if not count:
            raise ValueError(f"docs/parameters.md has no place for the table {name}: write <!-- {name} --><!-- end -->")
    return page


def main() -> int:
    """Returns the exit code."""
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
