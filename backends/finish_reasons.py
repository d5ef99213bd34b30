"""Finish reasons of all services, in OpenAI's words, and those that mean that the answer failed.

Looked up without regard to case; ``-`` counts as ``_``. What is in neither table is kept as it came, with a warning.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

from llmdo.backends.errors import ContentFiltered, ModelError, Overloaded, Retryable
from llmdo.backends.responses import FinishReason

_LONGEST = 80  # characters of a reason that are looked at


class FinishFailure(NamedTuple):
    """A reason that is a failure: the error, and what happened, in a clause."""

    error: type[Retryable]
    what: str


_FAILED = FinishFailure(Retryable, "the service failed while it answered")
_CANCELLED = FinishFailure(Retryable, "the service broke the answer off")
_BUSY = FinishFailure(Overloaded, "the service ran out of capacity while it answered")
_MALFORMED = FinishFailure(Retryable, "the model wrote a tool call that cannot be read")

# Reason → OpenAI's; who sends it.
FINISH_REASONS: Mapping[str, FinishReason] = {
    "stop": "stop",  # OpenAI
    "complete": "stop",  # Cohere
    "completed": "stop",  # OpenAI's Responses, as status
    "end_turn": "stop",  # Anthropic, Bedrock
    "eos": "stop",  # Together
    "eos_token": "stop",  # TGI
    "load": "stop",  # Ollama: it was only asked to load the model
    "stop_sequence": "stop",  # Anthropic, TGI, Bedrock
    "unload": "stop",  # Ollama
    "length": "length",  # OpenAI
    "max_length": "length",  # older vLLM servers
    "max_output_tokens": "length",  # OpenAI's Responses, as incomplete_details.reason
    "max_tokens": "length",  # Anthropic, Gemini, Bedrock, Cohere
    "model_context_window_exceeded": "length",  # Anthropic, Zhipu
    "model_length": "length",  # Mistral
    "function_call": "tool_calls",  # OpenAI's older API
    "tool_call": "tool_calls",  # Cohere
    "tool_calls": "tool_calls",  # OpenAI; tool-calls: Vercel
    "tool_use": "tool_calls",  # Anthropic, Bedrock
    "blocklist": "content_filter",  # Gemini
    "content_filter": "content_filter",  # OpenAI, Azure
    "content_filtered": "content_filter",  # Bedrock
    "guardrail_intervened": "content_filter",  # Bedrock
    "image_safety": "content_filter",  # Gemini
    "prohibited_content": "content_filter",  # Gemini
    "recitation": "content_filter",  # Gemini
    "refusal": "content_filter",  # Anthropic: its classifiers ended the answer
    "safety": "content_filter",  # Gemini
    "sensitive": "content_filter",  # Zhipu
    "spii": "content_filter",  # Gemini
}
FAILURES: Mapping[str, FinishFailure] = {
    "abort": _CANCELLED,  # vLLM, SGLang
    "aborted": _CANCELLED,  # SGLang's router
    "cancelled": _CANCELLED,  # OpenAI's Responses, as status
    "engine_overloaded": _BUSY,  # Moonshot
    "error": _FAILED,  # OpenRouter, Mistral, vLLM, Cohere
    "error_limit": _BUSY,  # Cohere
    "error_toxic": FinishFailure(Retryable, "the service withheld what the model wrote"),  # Cohere
    "failed": _FAILED,  # OpenAI's Responses, as status
    "incomplete": _CANCELLED,  # OpenAI's Responses, as status, where no reason stands beside it
    "insufficient_system_resource": _BUSY,  # DeepSeek
    "malformed_function_call": _MALFORMED,  # Gemini, also as function_call_filter: MALFORMED_FUNCTION_CALL
    "malformed_model_output": _FAILED,  # Bedrock
    "malformed_tool_use": _MALFORMED,  # Bedrock
    "network_error": FinishFailure(Retryable, "the service lost its model while that answered"),  # Zhipu
    "server_error": _FAILED,  # OpenAI's Responses, as error.code
    "timeout": FinishFailure(Retryable, "the service ran out of time while it answered"),  # Cohere
    "unexpected_tool_call": _MALFORMED,  # Gemini
}


def finish_of(said: Any) -> FinishReason | None:
    """What a service's finish reason means; one that no table has comes back as it is. None: it sent none."""
    if said is None or said == "":
        return None
    return FINISH_REASONS.get(_name(said)) or str(said)


def finish_warning(said: Any) -> str | None:
    """A sentence for a reason that no table has."""
    known = said is None or said == "" or _name(said) in FINISH_REASONS or _name(said) in FAILURES
    return None if known else f"the answer ended for an unknown reason ({str(said)[:_LONGEST]}): look at it"


def finish_error(said: Any, model: str, words: str = "") -> ModelError | None:
    """The error of an answer that ended so: ContentFiltered, or Retryable where it failed; None where it is whole.

    ``words``: what the service said about it.
    """
    if finish_of(said) == "content_filter":
        return ContentFiltered(f"{model}: the filter withheld the answer (finish reason {said}): change the prompt")
    failure = None if said is None else FAILURES.get(_name(said))
    if failure is None:
        return None
    why = f"finish reason {said}: {words}" if words else f"finish reason {said}"
    return failure.error(f"{model}: {failure.what} ({why}): try again later")


@functools.lru_cache(maxsize=256)
def _named(text: str) -> str:
    """``FinishReason.MAX_TOKENS`` and ``function_call_filter: MALFORMED_FUNCTION_CALL`` are of Google's libraries."""
    return text.strip().casefold().replace("-", "_").rpartition(": ")[2].rpartition(".")[2]


def _name(said: Any) -> str:
    return _named(str(said)[:_LONGEST])
