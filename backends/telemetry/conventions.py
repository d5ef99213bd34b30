"""The names of OpenTelemetry's semantic conventions for generative AI that are used, and llmdo's own.

They are of the schema below, of which the conventions say that they may change: nothing else in llmdo names one.
Prompts and answers are in no attribute, and neither are errors' sentences, which may quote them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmdo.backends.errors import CallTimeout, ModelError
from llmdo.backends.requests import ChatRequest, EmbedRequest, Request
from llmdo.backends.responses import ChatResponse, EmbedResponse, Response
from llmdo.backends.usage import Usage

SCOPE = "llmdo"  # of the tracer and the meter
SCHEMA_URL = "https://opentelemetry.io/schemas/gen-ai/1.42.0"
Attributes = dict[str, Any]

# Of all signals.
OPERATION, PROVIDER_NAME = "gen_ai.operation.name", "gen_ai.provider.name"
REQUEST_MODEL, RESPONSE_MODEL = "gen_ai.request.model", "gen_ai.response.model"
ERROR_TYPE, TOKEN_TYPE = "error.type", "gen_ai.token.type"
DURATION, TOKENS_USED = "gen_ai.client.operation.duration", "gen_ai.client.token.usage"
UPTIME = "process.uptime"
DURATION_BUCKETS = tuple(0.01 * 2**power for power in range(14))  # seconds
TOKENS_BUCKETS = tuple(4**power for power in range(14))
# llmdo's own.
RUN, COMMAND, RUNNER, PROCESSES = "llmdo.run.id", "llmdo.command", "llmdo.runner", "llmdo.processes"
OUTCOME = "llmdo.outcome"
FILE, FILE_VERSION, FILE_SIZE, LINE_OFFSET = "llmdo.file", "llmdo.file.version", "llmdo.file.size", "llmdo.line.offset"
LINES_ANSWERED, LINES_FAILED, COST, TRY = "llmdo.lines.answered", "llmdo.lines.failed", "llmdo.cost", "llmdo.try"
FILES_DONE, FILES_STALE, TEXTS_SENT = "llmdo.files.done", "llmdo.files.stale", "llmdo.texts"
STATUS, CODE = "http.response.status_code", "llmdo.error.code"

_OF_PATHS = {
    "": "generate_content",
    "completions": "text_completion",
    "embeddings": "embeddings",
    "messages": "chat",
    "responses": "chat",
}
# OpenAI's parameter → attribute, and what the attribute holds.
_PARAMETERS: Mapping[str, tuple[str, type]] = {
    "max_tokens": ("gen_ai.request.max_tokens", int),
    "max_completion_tokens": ("gen_ai.request.max_tokens", int),
    "temperature": ("gen_ai.request.temperature", float),
    "top_p": ("gen_ai.request.top_p", float),
    "top_k": ("gen_ai.request.top_k", float),
    "frequency_penalty": ("gen_ai.request.frequency_penalty", float),
    "presence_penalty": ("gen_ai.request.presence_penalty", float),
    "seed": ("gen_ai.request.seed", int),
    "n": ("gen_ai.request.choice.count", int),
    "dimensions": ("gen_ai.embeddings.dimension.count", int),
}


def operation_name(request: Request) -> str:
    """What the conventions call it."""
    if isinstance(request, ChatRequest):
        return "chat"
    return "embeddings" if isinstance(request, EmbedRequest) else _OF_PATHS.get(request.path, "generate_content")


def asked(request: Request) -> Attributes:
    """What a span says of a request besides its operation, provider and model."""
    found: Attributes = {}
    parameters = request.parameters if isinstance(request, ChatRequest | EmbedRequest) else request.input
    for name, (attribute, kind) in _PARAMETERS.items():
        value = parameters.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[attribute] = kind(value)
    if found.get("gen_ai.request.choice.count") == 1:
        del found["gen_ai.request.choice.count"]
    if isinstance(request, EmbedRequest):
        found[TEXTS_SENT] = len(request.texts)
    if isinstance(request, ChatRequest):
        if parameters.get("response_format"):
            found["gen_ai.output.type"] = "json"
        if request.listen is not None:
            found["gen_ai.request.stream"] = True
    return found


def answered(response: Response) -> Attributes:
    """What a span says of an answer."""
    found: Attributes = {RESPONSE_MODEL: response.model, **used(response.usage)}
    if isinstance(response, EmbedResponse):
        found.pop("gen_ai.usage.output_tokens", None)
    if response.request_id:
        found["gen_ai.response.id"] = response.request_id
    if isinstance(response, ChatResponse) and response.finish_reason:
        found["gen_ai.response.finish_reasons"] = [response.finish_reason]
    return found


def refused(error: BaseException) -> Attributes:
    """What a span says of an error: its class, the service's status and code, and what it used."""
    found: Attributes = {ERROR_TYPE: error_type(error)}
    if isinstance(error, ModelError):
        found |= {STATUS: error.status} if error.status else {}
        found |= {CODE: str(error.code)} if error.code is not None else {}
        found |= used(error.usage) if error.usage else {}
        found |= {"gen_ai.response.id": error.request_id} if error.request_id else {}
    return found


def error_type(error: BaseException) -> str:
    """The class of an error, as summaries and rows name it."""
    return CallTimeout.__name__ if isinstance(error, TimeoutError) else type(error).__name__


def used(usage: Usage) -> Attributes:
    """Tokens."""
    found: Attributes = {
        "gen_ai.usage.input_tokens": usage.input_tokens,
        "gen_ai.usage.output_tokens": usage.output_tokens,
    }
    if usage.cached_tokens:
        found["gen_ai.usage.cache_read.input_tokens"] = usage.cached_tokens
    if usage.reasoning_tokens:
        found["gen_ai.usage.reasoning.output_tokens"] = usage.reasoning_tokens
    return found
