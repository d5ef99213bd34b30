"""Embedded models: SmolLM2 135M inside this process, by llama.cpp. No server, no account, real answers.

Two names for the same weights: ``smollm2-135m-instruct`` chats; ``smollm2-135m-embed`` returns the mean of the last
layer's states, 576 numbers of length 1, which distinguishes texts but is much worse than a model trained to embed.

The weights are loaded when they are first used, and shared by all backends of the process. The defaults make answers
repeatable: with temperature 0 and a fixed seed they are the same again, whatever else runs at the same time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from llmdo.backends.backend import naming_provider
from llmdo.backends.errors import (
    BadReply,
    ContextOverflow,
    InvalidRequest,
    ModelError,
    ModelNotFound,
    Overloaded,
    StreamError,
)
from llmdo.backends.json_mode.answers import in_format, schema_of, wants_json
from llmdo.backends.limits.sizes import bounded, checked_token_limit
from llmdo.backends.llama_cpp.files import PROVIDER
from llmdo.backends.llama_cpp.weights import CONTEXT_TOKENS, SLOTS, Server, Weights, in_thread
from llmdo.backends.parameters import Dialect, translate
from llmdo.backends.requests import COMMON_ROLES, ChatRequest, EmbedRequest, Message, RawRequest, Request
from llmdo.backends.responses import ChatResponse, EmbedResponse, FinishReason, ModelInfo, RawResponse, StreamChunk
from llmdo.backends.streams import collected, whole_answer, with_errors
from llmdo.backends.usage import Usage

CHAT_MODEL = "smollm2-135m-instruct"
EMBEDDING_MODEL = "smollm2-135m-embed"
MODELS: Mapping[str, ModelInfo] = {
    CHAT_MODEL: ModelInfo(
        f"{PROVIDER}/{CHAT_MODEL}",
        "Text Generation",
        "SmolLM2 135M Instruct, 4 bit, embedded",
        CONTEXT_TOKENS,
        capabilities=frozenset({"json"}),
    ),
    EMBEDDING_MODEL: ModelInfo(
        f"{PROVIDER}/{EMBEDDING_MODEL}", "Text Embeddings", "SmolLM2 135M, mean of its states, embedded", CONTEXT_TOKENS
    ),
}
MOST_TEXTS = 32  # of an embedding call: about four for each slot, done within seconds

DEFAULTS: Mapping[str, Any] = {"temperature": 0, "seed": 1}
MOST_PARTS = 10_000  # of a JSON Schema: a grammar of that size is made within a second
_DEFINITIONS = frozenset({"$defs", "definitions"})
_MAX_TOKENS = 256  # by default: enough for a model of this size
# Without a system message llama.cpp sends the model's own ("You are a helpful AI assistant named SmolLM, trained by
# Hugging Face"), after which these weights answer a question about France in rambling French.
SYSTEM = Message("system", "You are a helpful assistant.")
# What llama.cpp's server takes, by its README; it ignores all else silently. The model's template does not support
# tools, and our answers do not hold probabilities.
EMBEDDED_DIALECT = Dialect(
    known=frozenset(
        """cache_prompt chat_template_kwargs dry_allowed_length dry_base dry_multiplier dry_penalty_last_n
        dry_sequence_breakers dynatemp_exponent dynatemp_range frequency_penalty grammar ignore_eos json_schema
        logit_bias min_keep min_p mirostat mirostat_eta mirostat_tau n_discard n_indent n_keep presence_penalty
        repeat_last_n repeat_penalty repetition_penalty response_format samplers seed stop t_max_predict_ms temperature
        top_k top_n_sigma top_p typical_p xtc_probability xtc_threshold""".split()
    ),
    renamed={"repetition_penalty": "repeat_penalty"},
)
# Rows are written in this format, however the vectors come.
EMBEDDED_EMBEDDINGS = Dialect(known=frozenset({"encoding_format"}))
_FINISH_REASONS: Mapping[str, FinishReason] = {"stop": "stop", "length": "length"}


def open_backend() -> LlamaCpp:
    """The embedded models, which are loaded with the first call."""
    return LlamaCpp()


class LlamaCpp:
    """See Backend. Calls run in threads; a cancelled one stops at its next token."""

    name = PROVIDER
    slots = SLOTS

    def __init__(self) -> None:
        self._weights = Weights()
        self._turns = asyncio.Semaphore(SLOTS)

    @naming_provider
    async def execute(self, request: ChatRequest) -> ChatResponse:
        """Answers a conversation; see in_format for JSON mode.

        Raises ContextOverflow where the prompt alone fills the context window.
        """
        return await in_format(request, lambda asked, _: self._answer(asked), PROVIDER)

    async def _answer(self, request: ChatRequest) -> ChatResponse:
        answer = await collected(self._pieces(request), request.model)
        warnings = answer.warnings
        if answer.finish_reason == "length":
            warnings += (f"the answer is cut off at {answer.usage.output_tokens} tokens: raise max_tokens",)
        return replace(answer, text=answer.text or "", warnings=warnings)

    def execute_stream(self, request: ChatRequest) -> AsyncIterator[StreamChunk]:
        """Answers a conversation token by token, or in one piece in JSON mode."""
        in_json = wants_json(request.parameters.get("response_format"))
        return with_errors(self._whole(request) if in_json else self._pieces(request), self.name)

    async def _whole(self, request: ChatRequest) -> AsyncGenerator[StreamChunk, None]:
        for chunk in whole_answer(await self.execute(request)):
            yield chunk

    async def _pieces(self, request: ChatRequest) -> AsyncGenerator[StreamChunk, None]:
        loop = asyncio.get_running_loop()
        chunks: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        async with self._turns:
            server = await self._server(request.model, CHAT_MODEL)
            body, warnings = _chat_body(request)

            def generate(cancelled: Callable[[], bool]) -> None:
                def pass_on(chunk: dict[str, Any]) -> bool:
                    """Whether to stop."""
                    if cancelled():
                        return True
                    loop.call_soon_threadsafe(chunks.put_nowait, chunk)
                    return False

                with _refusals():
                    server.handle_chat_completions(body, pass_on)

            generating = asyncio.create_task(in_thread(generate))
            generating.add_done_callback(lambda _: chunks.put_nowait(None))
            try:
                async for piece in _stream(chunks):
                    ended = piece.kind == "done"
                    yield piece
                    if piece.kind == "start" and warnings:
                        yield StreamChunk("metadata", details={"warnings": warnings})
                await generating
                if not ended:
                    raise StreamError(f"{request.model}: the answer broke off: ask again", provider=PROVIDER)
            finally:
                generating.cancel()

    @naming_provider
    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """Embeds texts; each has 576 numbers. Raises InvalidRequest for an empty text."""
        _, warnings = translate(request.parameters, EMBEDDED_EMBEDDINGS, request.model)
        async with self._turns:
            server = await self._server(request.model, EMBEDDING_MODEL)
            body = {"input": list(request.texts)}
            with _refusals():
                reply = _checked(await in_thread(lambda _: server.handle_embeddings(body)))
        vectors = tuple(tuple(map(float, row["embedding"])) for row in reply["data"])
        return EmbedResponse(vectors, _usage(reply) or Usage(), request.model, warnings=warnings)

    @naming_provider
    async def run(self, request: RawRequest) -> RawResponse:
        """Raises InvalidRequest: there is no native input here."""
        raise _no_input(request)

    def check(self, request: Request) -> None:
        """Raises InvalidRequest, and ModelNotFound for another model than the embedded ones."""
        if isinstance(request, RawRequest):
            raise _no_input(request)
        _must_be(request.model, CHAT_MODEL if isinstance(request, ChatRequest) else EMBEDDING_MODEL)
        if isinstance(request, ChatRequest):
            _chat_body(request)

    @naming_provider
    async def list_models(self) -> list[ModelInfo]:
        """The two names."""
        return list(MODELS.values())

    def max_texts(self, model: str) -> int:
        """See MOST_TEXTS."""
        return MOST_TEXTS if model == EMBEDDING_MODEL else 1

    async def health(self) -> None:
        """Loads the weights. Raises StopRun if they, or a package, are not available."""
        async with self._turns:
            await self._server(CHAT_MODEL, CHAT_MODEL)

    async def aclose(self) -> None:
        """Releases the weights; the last backend of the process frees them."""
        self._weights.close()

    async def _server(self, model: str, wanted: str) -> Server:
        _must_be(model, wanted)
        return await in_thread(lambda _: self._weights.server(embedding=wanted == EMBEDDING_MODEL))


def _must_be(model: str, wanted: str) -> None:
    if model not in MODELS:
        names = ", ".join(info.name for info in MODELS.values())
        text = f"{PROVIDER}/{model} is not an embedded model: use one of {names}"
        raise ModelNotFound(text, provider=PROVIDER)
    if model != wanted:
        text = f"{PROVIDER}/{model} cannot do this: name {MODELS[wanted].name} for {MODELS[wanted].task}"
        raise InvalidRequest(text, provider=PROVIDER)


def _no_input(request: RawRequest) -> InvalidRequest:
    given = f"the body of /v1/{request.path}" if request.path else sorted(request.input)
    text = f"{request.model} is an embedded model and takes prompt, messages or text, not {given}"
    return InvalidRequest(text, provider=PROVIDER)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except (ValueError, RuntimeError) as error:  # what xllamacpp raises for an input that llama.cpp cannot use
        raise InvalidRequest(f"llama.cpp cannot use the input: {error}", provider=PROVIDER) from error


def _chat_body(request: ChatRequest) -> tuple[dict[str, Any], tuple[str, ...]]:
    if not request.messages:
        raise InvalidRequest(f"{request.model}: there are no messages: send at least one", provider=PROVIDER)
    parameters, warnings = translate(request.parameters, EMBEDDED_DIALECT, request.model)
    warnings += bounded(request.parameters)
    _check_schema(parameters.get("response_format"), request.model)
    first = () if request.messages[0].role in ("system", "developer") else (SYSTEM,)
    body = {
        **DEFAULTS,
        **parameters,
        "max_tokens": checked_token_limit(request.parameters) or _MAX_TOKENS,
        "messages": [_message(message) for message in (*first, *request.messages)],
        "stream": True,  # only a stream can be stopped
        "stream_options": {"include_usage": True},
    }
    return body, warnings


def _check_schema(response_format: Any, model: str) -> None:
    """Raises InvalidRequest for a schema whose grammar would take minutes to make, which cannot be cancelled."""
    schema = schema_of(response_format) if wants_json(response_format) else True
    try:
        fits = _parts(schema, schema, {}) <= MOST_PARTS
    except RecursionError:
        fits = False
    if not fits:
        text = f"{model}: the JSON Schema has over {MOST_PARTS:,} parts, counting references: make it smaller"
        raise InvalidRequest(text, provider=PROVIDER)


def _parts(schema: Any, root: Any, known: dict[str, int]) -> int:
    """How many parts a schema has, with the target of each reference; ten characters of a text count as one."""
    if isinstance(schema, str):
        return 1 + len(schema) // 10
    if isinstance(schema, list):
        return 1 + sum(_parts(part, root, known) for part in schema)
    if not isinstance(schema, dict):
        return 1
    count = 1 + sum(_parts(part, root, known) for name, part in schema.items() if name not in _DEFINITIONS)
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/"):
        if reference not in known:
            known[reference] = 0  # within itself
            target = root
            for step in reference[2:].split("/"):
                target = target.get(step) if isinstance(target, dict) else None
            known[reference] = _parts(target, root, known)
        count += known[reference]
    return count


def _message(message: Message) -> dict[str, Any]:
    content = message.content
    role = COMMON_ROLES.get(message.role, message.role)
    return {**message.extra, "role": role, "content": list(content) if isinstance(content, tuple) else content}


async def _stream(chunks: asyncio.Queue[dict[str, Any] | None]) -> AsyncIterator[StreamChunk]:
    finish, usage = None, Usage()
    yield StreamChunk("start")
    while (chunk := await chunks.get()) is not None:
        usage = _usage(_checked(chunk)) or usage
        for choice in chunk["choices"]:
            finish = _FINISH_REASONS.get(choice["finish_reason"]) or finish
            if text := choice["delta"].get("content"):
                yield StreamChunk("content", text)
    if finish:
        yield StreamChunk("done", finish_reason=finish, usage=usage)


def _usage(chunk: Mapping[str, Any]) -> Usage | None:
    usage = chunk.get("usage")
    if not usage:
        return None
    cached = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
    return Usage(usage["prompt_tokens"], usage.get("completion_tokens", 0), cached)


def _checked(reply: dict[str, Any]) -> dict[str, Any]:
    """The reply, unless it is llama.cpp's error object."""
    if "error" not in reply:
        return reply
    error = reply["error"]
    text, status = str(error.get("message")), error.get("code")
    kind: type[ModelError] = {400: InvalidRequest, 503: Overloaded}.get(status, BadReply)
    if error.get("type") == "exceed_context_size_error" or "too large to process" in text:
        kind, text = ContextOverflow, f"{text}: shorten the prompt"
    raise kind(f"llama.cpp: {text}", status=status, provider=PROVIDER)
