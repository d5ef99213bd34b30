# ruff: noqa: E501 - a row is easier to compare on one line
"""Answers as services send them, written after their public documents: what a row of the output must hold.

A row's ``source`` is the page that shows the shape; texts and numbers in it are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
FUNCTION = {"id": "call_9", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}
LOGPROBS = {"content": [{"token": "Hi", "logprob": -0.25, "bytes": [72, 105], "top_logprobs": []}], "refusal": None}
FILTERED = {"hate": {"filtered": False, "severity": "safe"}}
LONG = "the answer is cut off at 4 tokens"


def chat(message: Any, finish: Any = "stop", choice: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A chat.completion with one choice; ``choice`` and ``more`` are further fields of the choice and of the body."""
    whole = {"index": 0, "message": message, "finish_reason": finish, **(choice or {})}
    head = {"id": "c-1", "object": "chat.completion", "created": 1_750_000_000, "model": "m"}
    return {**head, "choices": [whole], "usage": USAGE, **more}


def says(text: Any, **more: Any) -> dict[str, Any]:
    """An assistant's message."""
    return {"role": "assistant", "content": text, **more}


@dataclass(frozen=True)
class Row:
    """An answer, and what its user finds in the output.

    Attributes:
        text, finish, reasoning: of the first message.
        calls: the tool calls of the first message.
        warns: a part of the warning, or "" for none.
        kept: dotted places in the reply that must be at the same places in the row's body.
        strict: whether OpenAI's own types take it; not where the service has values of its own in OpenAI's fields.
    """

    provider: str
    what: str
    body: Any
    source: str
    text: str | None = "Hi"
    finish: str = "stop"
    reasoning: str | None = None
    calls: tuple[Any, ...] = ()
    warns: str = ""
    kept: tuple[str, ...] = ()
    strict: bool = True
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For the test's id."""
        return f"{self.provider}: {self.what}"


OPENAI = "platform.openai.com/docs/api-reference/chat/object"
CUSTOM = {"id": "call_c", "type": "custom", "custom": {"name": "sql", "input": "SELECT 2;"}}
CITATION = {
    "type": "url_citation",
    "url_citation": {"start_index": 0, "end_index": 2, "title": "T", "url": "https://e.org"},
}
DETAILS = {"completion_tokens_details": {"reasoning_tokens": 2}, "prompt_tokens_details": {"cached_tokens": 1}}
ROWS = (
    Row("openai", "answer", chat(says("Hi", refusal=None, annotations=[CITATION]), choice={"logprobs": LOGPROBS}, system_fingerprint="fp_1", service_tier="default", usage={**USAGE, **DETAILS}), OPENAI, kept=("created", "id", "system_fingerprint", "service_tier", "usage", "choices.0.logprobs", "choices.0.message.annotations", "choices.0.message.refusal")),
    Row("openai", "tools", chat(says(None, tool_calls=[FUNCTION]), "tool_calls"), OPENAI, None, "tool_calls", calls=(FUNCTION,)),
    Row("openai", "custom tool", chat(says(None, tool_calls=[CUSTOM]), "tool_calls"), OPENAI, None, "tool_calls", calls=(CUSTOM,)),
    Row("openai", "refusal", chat(says(None, refusal="I can't.")), OPENAI, None, warns="the model refused", kept=("choices.0.message.refusal",)),
    Row("openai", "truncated", chat(says("Hi"), "length"), OPENAI, finish="length", warns=LONG),
    Row("openai", "audio", chat(says(None, audio={"id": "a", "data": "AAAA", "expires_at": 1, "transcript": "Hi"})), OPENAI, None, warns="the model sent no text", kept=("choices.0.message.audio",)),
    Row("openai", "older function call", chat(says(None, function_call={"name": "f", "arguments": "{}"}), "function_call"), OPENAI, None, "tool_calls", calls=({"id": "call_0", "type": "function", "function": {"name": "f", "arguments": "{}"}},), kept=("choices.0.message.function_call",)),
    Row("openai", "two choices", chat(says("Hi"), choices=[{"index": 0, "message": says("Hi"), "finish_reason": "stop"}, {"index": 1, "message": says("Ho"), "finish_reason": "length", "logprobs": LOGPROBS}]), OPENAI, warns="choice 1: the answer is cut off", kept=("choices.1",)),
    Row("azure", "answer", chat(says("Hi"), choice={"content_filter_results": FILTERED}, prompt_filter_results=[{"prompt_index": 0, "content_filter_results": FILTERED}]), "learn.microsoft.com/azure/ai-services/openai/concepts/content-filter", kept=("choices.0.content_filter_results", "prompt_filter_results")),
    Row("openrouter", "answer", chat(says("Hi", reasoning="hm", reasoning_details=[{"type": "reasoning.text", "text": "hm", "signature": "s", "index": 0}]), choice={"native_finish_reason": "STOP"}, provider="Google"), "openrouter.ai/docs/use-cases/reasoning-tokens", reasoning="hm", kept=("provider", "choices.0.native_finish_reason", "choices.0.message.reasoning", "choices.0.message.reasoning_details")),
    Row("openrouter", "image", chat(says("Hi", images=[{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}])), "openrouter.ai/docs/features/multimodal/image-generation", kept=("choices.0.message.images",)),
    Row("groq", "answer", chat(says("Hi", executed_tools=[{"index": 0, "type": "search"}]), x_groq={"id": "req_1"}, service_tier="on_demand", usage={**USAGE, "queue_time": 0.1}), "console.groq.com/docs/api-reference", kept=("x_groq", "service_tier", "usage", "choices.0.message.executed_tools"), strict=False),
    Row("together", "answer", chat(says("Hi", tool_calls=[]), "eos", {"seed": 7, "logprobs": None}, prompt=[]), "docs.together.ai/reference/chat-completions-1", kept=("prompt", "choices.0.seed")),
    Row("mistral", "thinking", chat(says([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}], "closed": True}, {"type": "text", "text": "Hi"}])), "docs.mistral.ai/capabilities/reasoning", reasoning="hm"),
    Row("mistral", "references", chat(says([{"type": "text", "text": "H"}, {"type": "reference", "reference_ids": [1]}, {"type": "text", "text": "i"}])), "docs.mistral.ai/capabilities/citations"),
    Row("mistral", "truncated by the window", chat(says("Hi"), "model_length"), "docs.mistral.ai/api", finish="length", warns=LONG),
    Row("deepseek", "thinking", chat(says("Hi", reasoning_content="hm"), usage={**USAGE, "prompt_cache_hit_tokens": 3, "prompt_cache_miss_tokens": 6}), "api-docs.deepseek.com/guides/reasoning_model", reasoning="hm", kept=("usage",)),
    Row("deepseek", "thinking until the limit", chat(says("", reasoning_content="hm"), "length"), "api-docs.deepseek.com/guides/reasoning_model", None, "length", "hm", warns="all 4 tokens went into reasoning"),
    Row("gemini", "answer", chat(says("Hi", extra_content={"google": {"thought_signature": "c2ln"}}), usage={**USAGE, "total_tokens": 40}), "ai.google.dev/gemini-api/docs/openai", kept=("usage", "choices.0.message.extra_content")),
    Row("gemini", "tools", chat(says(None, tool_calls=[{**FUNCTION, "extra_content": {"google": {"thought_signature": "c2ln"}}}]), "tool_calls"), "ai.google.dev/gemini-api/docs/thought-signatures", None, "tool_calls", calls=({**FUNCTION, "extra_content": {"google": {"thought_signature": "c2ln"}}},)),
    Row("gemini", "truncated, in its own words", chat(says("Hi"), "MAX_TOKENS"), "ai.google.dev/api/generate-content#FinishReason", finish="length", warns=LONG),
    Row("anthropic", "answer", chat(says("Hi"), "end_turn", usage={**USAGE, "cache_read_input_tokens": 2}), "docs.anthropic.com/en/api/openai-sdk", kept=("usage",)),
    Row("anthropic", "thinking", chat(says([{"type": "thinking", "thinking": "hm", "signature": "sig"}, {"type": "text", "text": "Hi"}])), "docs.anthropic.com/en/docs/build-with-claude/extended-thinking", reasoning="hm"),
    Row("xai", "answer", chat(says("Hi", refusal=None, reasoning_content="hm"), citations=["https://e.org/1"], usage={**USAGE, "num_sources_used": 1}, system_fingerprint="fp_2"), "docs.x.ai/docs/guides/live-search", reasoning="hm", kept=("citations", "usage", "system_fingerprint")),
    Row("perplexity", "answer", chat(says("Hi"), citations=["https://e.org/1"], search_results=[{"title": "T", "url": "https://e.org/1"}]), "docs.perplexity.ai/api-reference/chat-completions-post", kept=("citations", "search_results")),
    Row("fireworks", "answer", chat(says("Hi"), choice={"raw_output": {"completion": "Hi"}}, perf_metrics={"ttft": 0.1}), "docs.fireworks.ai/api-reference/post-chatcompletions", kept=("choices.0.raw_output", "perf_metrics")),
    Row("vllm", "thinking", chat(says("Hi", reasoning="hm", reasoning_content=None, tool_calls=[], function_call=None), choice={"stop_reason": 13, "token_ids": None}, kv_transfer_params=None, prompt_logprobs=None), "docs.vllm.ai/en/latest/features/reasoning_outputs.html", reasoning="hm", kept=("choices.0.stop_reason", "choices.0.message.reasoning", "prompt_logprobs")),
    Row("sglang", "answer", chat(says("Hi", reasoning_content=None, tool_calls=None), choice={"matched_stop": 2}, metadata={"weight_version": "default"}), "docs.sglang.ai/basic_usage/openai_api_completions.html", kept=("choices.0.matched_stop", "metadata")),
    Row("llama.cpp", "answer", chat(says("Hi"), timings={"prompt_n": 9, "predicted_per_second": 51.5}, system_fingerprint="b5000"), "github.com/ggml-org/llama.cpp/tree/master/tools/server", kept=("timings", "system_fingerprint")),
    Row("ollama", "model loaded", chat(says(""), "load"), "github.com/ollama/ollama/blob/main/docs/api.md", None, warns="the model sent no text"),
    Row("lm studio", "answer", chat(says("Hi"), stats={"tokens_per_second": 40.5}, model_info={"arch": "llama"}), "lmstudio.ai/docs/app/api/endpoints/rest", kept=("stats", "model_info")),
    Row("tgi", "answer", chat(says("Hi"), "eos_token", system_fingerprint="3.0-sha"), "huggingface.co/docs/text-generation-inference/messages_api", kept=("system_fingerprint",)),
    Row("litellm", "answer", chat(says("Hi", provider_specific_fields={"refusal": None}, thinking_blocks=[{"type": "thinking", "thinking": "hm", "signature": "s"}], reasoning_content="hm"), vertex_ai_grounding_metadata=[]), "docs.litellm.ai/docs/reasoning_content", reasoning="hm", kept=("choices.0.message.thinking_blocks", "choices.0.message.provider_specific_fields", "vertex_ai_grounding_metadata")),
    Row("any", "an unknown reason", chat(says("Hi"), "repetition_detected"), "docs.vllm.ai", finish="repetition_detected", warns="unknown reason (repetition_detected)", strict=False),
    Row("any", "no reason, no ids, odd numbers", {"choices": [{"index": "0", "message": {"content": "Hi"}}], "usage": {"prompt_tokens": 9.0, "completion_tokens": "4", "total_tokens": None}, "created": 1.5e9}, "github.com/BerriAI/litellm/issues"),
    Row("any", "no usage", chat(says("Hi"), usage=None), "github.com/BerriAI/litellm/issues"),
)  # fmt: skip

CF = "developers.cloudflare.com/workers-ai/models"
WORKERS_AI = (
    Row("workers-ai", "native", {"response": "Hi", "usage": USAGE, "finish_reason": "stop", "p": "abcd"}, CF, kept=("p", "usage")),
    Row("workers-ai", "native tools", {"response": None, "tool_calls": [{"name": "weather", "arguments": {"city": "Oslo"}}], "usage": USAGE}, CF, None, "tool_calls", calls=({**FUNCTION, "id": "call_0"},)),
    Row("workers-ai", "native without a reason", {"response": "Hi", "usage": USAGE}, CF),
    Row("workers-ai", "completion", chat(says("Hi", reasoning_content="hm", annotations=[]), choice={"stop_reason": None, "logprobs": LOGPROBS}, prompt_logprobs=None, model="@cf/meta/llama-3.3-70b-instruct-fp8-fast"), CF, reasoning="hm", kept=("created", "choices.0.logprobs", "choices.0.message.annotations", "prompt_logprobs")),
    Row("workers-ai", "responses", {"id": "resp_1", "object": "response", "created_at": 1_750_000_000, "status": "completed", "output": [{"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]}, {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi", "annotations": []}]}], "usage": {"input_tokens": 9, "output_tokens": 4, "total_tokens": 13}}, CF, reasoning="hm", kept=("id", "created_at")),
    Row("workers-ai", "responses with a citation", {"id": "resp_1", "object": "response", "status": "completed", "output": [{"type": "message", "content": [{"type": "output_text", "text": "Hi", "annotations": [CITATION]}]}]}, CF, kept=("output",)),
)  # fmt: skip


@dataclass(frozen=True)
class Failed:
    """A failure inside a success: tried again, with ``usage`` counted (input, output), and then an error."""

    provider: str
    what: str
    body: Any
    source: str
    says: str
    error: str = "Retryable"
    paid: bool = True

    @property
    def name(self) -> str:
        """For the test's id."""
        return f"{self.provider}: {self.what}"


FAILED = (
    Failed("openrouter", "error", chat(says("Half"), "error", {"error": {"code": 502, "message": "Upstream went away"}}), "openrouter.ai/docs/api-reference/errors", "Upstream went away", "Overloaded"),
    Failed("openrouter", "an error beside a reason that looks well", chat(says(""), None, {"error": {"code": 504, "message": "Upstream is slow"}}), "openrouter.ai/docs/api-reference/errors", "Upstream is slow", "CallTimeout"),
    Failed("deepseek", "no resources", chat(says("Half"), "insufficient_system_resource"), "api-docs.deepseek.com/api/create-chat-completion", "out of capacity", "Overloaded"),
    Failed("zhipu", "network", chat(says("Half"), "network_error"), "docs.bigmodel.cn/api-reference", "lost its model"),
    Failed("zhipu", "sensitive", chat(says("Half"), "sensitive"), "docs.bigmodel.cn/api-reference", "change the prompt", "ContentFiltered"),
    Failed("sglang", "abort", chat(says("Half"), "abort"), "github.com/sgl-project/sglang/issues", "broke the answer off"),
    Failed("vllm", "abort in capitals", chat(says("Half"), "ABORT"), "docs.vllm.ai", "broke the answer off"),
    Failed("moonshot", "overloaded", chat(says("Half"), "engine_overloaded"), "platform.moonshot.ai/docs", "out of capacity", "Overloaded"),
    Failed("gemini", "malformed call", chat(says(None), "function_call_filter: MALFORMED_FUNCTION_CALL"), "discuss.ai.google.dev", "tool call that cannot be read"),
    Failed("gemini", "safety", chat(says(None), "SAFETY"), "ai.google.dev/api/generate-content#FinishReason", "change the prompt", "ContentFiltered"),
    Failed("gemini", "recitation", chat(says(None), "RECITATION"), "ai.google.dev/api/generate-content#FinishReason", "change the prompt", "ContentFiltered"),
    Failed("gemini", "no choice", chat(says(None), choices=[]), "discuss.ai.google.dev", "without any choice"),
    Failed("azure", "no choice", {"id": "", "object": "chat.completion", "choices": [], "model": ""}, "learn.microsoft.com/answers", "without any choice", paid=False),
    Failed("azure", "filtered", chat(says("Half"), "content_filter"), "learn.microsoft.com/azure/ai-services/openai/concepts/content-filter", "change the prompt", "ContentFiltered"),
    Failed("gemini", "null message", chat(None), "discuss.ai.google.dev", "without a message"),
)  # fmt: skip
