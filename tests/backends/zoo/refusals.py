# ruff: noqa: E501 - a row is easier to compare on one line
"""Refusals as services send them, written after their public documents and users' reports: what each should become.

A row's ``source`` is the page or thread that shows the shape; texts and numbers in it are ours where they do not matter.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llmdo.backends import errors
from llmdo.backends.errors import (
    AccountBlocked,
    BadReply,
    ConnectionFailed,
    ContentFiltered,
    ContextOverflow,
    InvalidRequest,
    ModelNotFound,
    ModelRetired,
    Overloaded,
    PlanRequired,
    QuotaExhausted,
    RateLimited,
    Retryable,
    Unauthorized,
    WrongService,
)

NOW = 1_796_000_000.0  # 2026-11-30 00:53:20 UTC, 16:53:20 of the day before in California
UTC_MIDNIGHT = 1_796_083_200.0
PACIFIC_MIDNIGHT = 1_796_025_600.0


@dataclass(frozen=True)
class Row:
    """A refusal, and what its user expects.

    Attributes:
        says: words of the service that must reach the user, besides the class.
        about: whom it speaks of; None: it does not matter, since the call is tried again.
        wait: ``retry_after``, seconds; ``until``: Unix time, by default NOW + wait.
    """

    provider: str
    what: str
    status: int
    body: Any
    error: type[errors.ModelError]
    about: errors.About | None
    says: str
    source: str
    headers: dict[str, str] = field(default_factory=dict)
    wait: float | None = None
    until: float | None = None

    @property
    def name(self) -> str:
        """For the test's id."""
        return f"{self.provider}: {self.what}"


def openai(message: str, kind: str | None = None, code: Any = None, **more: Any) -> dict[str, Any]:
    """OpenAI's envelope."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code, **more}}


def flat(message: str, kind: str, code: Any) -> dict[str, Any]:
    """That of Mistral, vLLM and SGLang."""
    return {"object": "error", "message": message, "type": kind, "param": None, "code": code}


def google(code: int, message: str, status: str, *details: dict[str, Any]) -> list[dict[str, Any]]:
    """Gemini's, which its compatible route sends in a list."""
    return [{"error": {"code": code, "message": message, "status": status, "details": list(details)}}]


def anthropic(kind: str, message: str) -> dict[str, Any]:
    """Anthropic's."""
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}


def cloudflare(code: int, message: str, key: str = "errors") -> dict[str, Any]:
    """Cloudflare's; AI Gateway's has ``error``."""
    return {"result": None, "success": False, key: [{"code": code, "message": message}], "messages": []}


_OPENAI = "platform.openai.com/docs/guides/error-codes"
_AZURE = "learn.microsoft.com/azure/ai-foundry/openai/quotas-limits, concepts/content-filter"
_CLOUDFLARE = "developers.cloudflare.com/workers-ai/platform/errors"
_GATEWAY = "developers.cloudflare.com/ai-gateway/features/guardrails"
_OPENROUTER = "openrouter.ai/docs/api/reference/errors-and-debugging"
_GROQ = "console.groq.com/docs/errors, /docs/rate-limits"
_TOGETHER = "docs.together.ai/docs/error-codes"
_MISTRAL = "docs.mistral.ai/api, github.com/cline/cline/issues/9085"
_DEEPSEEK = "api-docs.deepseek.com/quick_start/error_codes"
_GEMINI = "ai.google.dev/gemini-api/docs/troubleshooting, github.com/google-gemini/gemini-cli/issues/8437"
_ANTHROPIC = "docs.claude.com/en/api/errors"
_XAI = "docs.x.ai/docs/key-information/debugging"
_FIREWORKS = "docs.fireworks.ai/guides/inference-error-codes"
_CEREBRAS = "inference-docs.cerebras.ai/support/error"
_VLLM = "github.com/vllm-project/vllm: entrypoints/openai/protocol.py ErrorResponse"
_SGLANG = "github.com/sgl-project/sglang: srt/entrypoints/openai/protocol.py ErrorResponse"
_LLAMA = "github.com/ggml-org/llama.cpp: tools/server/README.md, errors"
_OLLAMA = "github.com/ollama/ollama: openai/openai.go, docs/api.md"
_OLLAMA_SEEN = "github.com/ollama/ollama: as version 0.17.4 was seen to send it"
_LMSTUDIO = "github.com/lmstudio-ai/lmstudio-bug-tracker/issues/237"
_TGI = "huggingface.co/docs/text-generation-inference, ErrorResponse"
_TEI = "github.com/huggingface/text-embeddings-inference/issues/82, /356"
_LITELLM = "docs.litellm.ai/docs/exception_mapping, /docs/proxy/users"
_LITELLM_SEEN = "docs.litellm.ai/docs/proxy: as version 1.106.12 was seen to send it"
_LITELLM_ROUTER = "github.com/BerriAI/litellm: litellm/types/router.py"
_GITHUB = "docs.github.com/github-models/use-github-models/prototyping-with-ai-models#rate-limits"
_APIM = "learn.microsoft.com/azure/api-management/quota-policy, rate-limit-policy"

_DAY_ID = {"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier", "quotaMetric": "free_tier_requests"}
_MINUTE_ID = {"quotaId": "GenerateRequestsPerMinutePerProjectPerModel-FreeTier", "quotaMetric": "free_tier_requests"}
_FAILURE, _RETRY = "type.googleapis.com/google.rpc.QuotaFailure", "type.googleapis.com/google.rpc.RetryInfo"
_CURRENT = "You exceeded your current quota, please check your plan and billing details."

ROWS: tuple[Row, ...] = (
    # OpenAI
    Row("openai", "wrong key", 401, openai("Incorrect API key provided: sk-a*b.", "invalid_request_error", "invalid_api_key"),
        Unauthorized, "account", "Incorrect API key", _OPENAI),
    Row("openai", "another organisation", 401, openai("You must be a member of an organization to use the API", "invalid_request_error", "mismatched_organization"),
        Unauthorized, "account", "member of an organization", _OPENAI),
    Row("openai", "country", 403, openai("Country, region, or territory not supported", "request_forbidden", "unsupported_country_region_territory"),
        AccountBlocked, "account", "territory", _OPENAI),
    Row("openai", "no access to the model", 403, openai("Project `proj_1` does not have access to model `gpt-x`", "invalid_request_error", "model_not_found"),
        ModelNotFound, "account", "proj_1", _OPENAI),
    Row("openai", "credit", 429, openai(_CURRENT, "insufficient_quota", "insufficient_quota"), QuotaExhausted, "account", "billing", _OPENAI),
    Row("openai", "minute", 429, openai("Rate limit reached for gpt-x in organization org-1 on tokens per min (TPM): Limit 30000, Used 29000, Requested 1443. Please try again in 886ms.", "tokens", "rate_limit_exceeded"),
        RateLimited, None, "Used 29000", _OPENAI, wait=0.886),
    Row("openai", "day", 429, openai("Rate limit reached for gpt-x on requests per day (RPD): Limit 200, Used 200, Requested 1. Please try again in 7m12s.", "requests", "rate_limit_exceeded"),
        QuotaExhausted, "account", "RPD", _OPENAI, wait=432.0),
    Row("openai", "day, room again at once", 429, openai("Rate limit reached for gpt-x on requests per day (RPD): Limit 10000, Used 10000, Requested 1. Please try again in 8.64s.", "requests", "rate_limit_exceeded"),
        RateLimited, None, "RPD", _OPENAI, wait=8.64),
    Row("openai", "one request above the minute", 429, openai("Request too large for gpt-x on tokens per min (TPM): Limit 30000, Requested 342389. The input or output tokens must be reduced.", "tokens", "rate_limit_exceeded"),
        ContextOverflow, "line", "342389", "github.com/vanna-ai/vanna-flask/issues/11"),
    Row("openai", "too many texts in one call", 400, openai("Requested 319487 tokens, max 300000 tokens per request", "max_tokens_per_request", "max_tokens_per_request"),
        ContextOverflow, "line", "319487", _OPENAI),
    Row("openai", "context", 400, openai("This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.", "invalid_request_error", "context_length_exceeded"),
        ContextOverflow, "line", "9000 tokens", _OPENAI),
    Row("openai", "flagged prompt", 400, openai("Invalid prompt: your prompt was flagged as potentially violating our usage policy.", "invalid_request_error", "invalid_prompt"),
        ContentFiltered, "line", "flagged", _OPENAI),
    Row("openai", "a parameter", 400, {"error": {"message": "Invalid value.", "type": "invalid_request_error", "param": "messages[0].role", "code": None}},
        InvalidRequest, "line", "messages[0].role", _OPENAI),
    Row("openai", "a file of one line", 404, openai("No such File object: file-1", "invalid_request_error"), ModelNotFound, "unclear", "file-1", _OPENAI),
    Row("openai", "overload", 503, openai("The engine is currently overloaded, please try again later", "server_error"), Overloaded, None, "overloaded", _OPENAI),
    Row("openai", "error in a stream", 200, openai("The server had an error while processing your request", "server_error"), Overloaded, None, "had an error", _OPENAI),
    # Azure
    Row("azure", "filter", 400, openai("The response was filtered due to the prompt triggering our content management policy.", None, "content_filter", status=400, innererror={"code": "ResponsibleAIPolicyViolation", "content_filter_result": {"hate": {"filtered": True}}}),
        ContentFiltered, "line", "triggering", _AZURE),
    Row("azure", "wrong key", 401, {"error": {"code": "401", "message": "Access denied due to invalid subscription key or wrong API endpoint."}}, Unauthorized, "account", "subscription key", _AZURE),
    Row("azure", "network rules", 403, {"error": {"code": "403", "message": "Access denied due to Virtual Network/Firewall rules."}}, AccountBlocked, "account", "Virtual Network", _AZURE),
    Row("azure", "no deployment", 404, {"error": {"code": "DeploymentNotFound", "message": "The API deployment for this resource does not exist."}}, ModelNotFound, "account", "deployment", _AZURE),
    Row("azure", "minute", 429, {"error": {"code": "429", "message": "Requests to the ChatCompletions_Create Operation have exceeded token rate limit of your current OpenAI S0 pricing tier. Please retry after 6 seconds."}},
        RateLimited, None, "S0 pricing", _AZURE, wait=6.0),
    Row("azure", "minute, by its own header", 429, {"error": {"code": "429", "message": "Rate limit is exceeded."}}, RateLimited, None, "exceeded", _AZURE, {"x-ms-retry-after": "11"}, 11.0),
    Row("azure", "minute, in milliseconds", 429, {"error": {"code": "429", "message": "Rate limit is exceeded."}}, RateLimited, None, "exceeded", _AZURE, {"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
    Row("azure", "no capacity", 429, {"error": {"code": "NoCapacity", "message": "The system is currently experiencing high demand and cannot process your request."}}, Overloaded, None, "high demand", _AZURE),
    Row("azure api management", "quota", 403, {"statusCode": 403, "message": "Out of call volume quota. Quota will be replenished in 02:30:00."}, QuotaExhausted, "account", "call volume", _APIM, wait=9000.0),
    Row("azure api management", "rate", 429, {"statusCode": 429, "message": "Rate limit is exceeded. Try again in 7 seconds."}, RateLimited, None, "7 seconds", _APIM, wait=7.0),
    Row("github models", "day", 429, {"error": {"code": "RateLimitReached", "message": "Rate limit of 50 per 86400s exceeded for UserByModelByDay. Please wait 41000 seconds before retrying."}},
        QuotaExhausted, "account", "UserByModelByDay", _GITHUB, {"retry-after": "41000"}, 41_000.0),
    Row("github models", "request too large", 413, {"error": {"code": "tokens_limit_reached", "message": "Request body too large for gpt-x model. Max size: 8000 tokens."}}, ContextOverflow, "line", "8000 tokens", _GITHUB),
    # Workers AI and AI Gateway
    Row("workers-ai", "day", 429, cloudflare(4006, "you have used up your daily free allocation of 10,000 neurons"), QuotaExhausted, "account", "10,000 neurons", _CLOUDFLARE, until=UTC_MIDNIGHT),
    Row("workers-ai", "minute", 429, cloudflare(3021, "rate limiting: inference request per min rate reached"), RateLimited, None, "rate reached", _CLOUDFLARE),
    Row("workers-ai", "capacity", 429, cloudflare(3040, "Capacity temporarily exceeded, please try again."), Overloaded, None, "temporarily", _CLOUDFLARE),
    Row("workers-ai", "no model", 400, cloudflare(5007, "No such model @cf/x/y or task"), ModelNotFound, "account", "No such model", _CLOUDFLARE),
    Row("workers-ai", "token", 401, cloudflare(10000, "Authentication error"), Unauthorized, "account", "Authentication error", _CLOUDFLARE),
    Row("workers-ai", "context", 400, cloudflare(5021, "The estimated number of input and maximum output tokens (9) exceeded this model context window limit (8)"), ContextOverflow, "line", "window limit", _CLOUDFLARE),
    Row("workers-ai", "a bare 403", 403, {"success": False, "errors": []}, Unauthorized, "unclear", "", _CLOUDFLARE),
    Row("workers-ai", "a page", 403, "<html><h1>Sorry, you have been blocked</h1></html>", Unauthorized, "unclear", "you have been blocked", _CLOUDFLARE, {"content-type": "text/html"}),
    Row("ai gateway", "prompt blocked", 424, cloudflare(2016, "Prompt blocked due to security configurations", "error"), ContentFiltered, "line", "security configurations", _GATEWAY),
    Row("ai gateway", "gateway's rate", 429, cloudflare(2003, "Rate limited", "error"), RateLimited, None, "Rate limited", _GATEWAY),
    Row("ai gateway", "no such gateway", 400, cloudflare(2001, "Please configure AI Gateway in the Cloudflare dashboard", "error"), Unauthorized, "account", "configure AI Gateway", _GATEWAY),
    Row("ai gateway", "prompt for the upstream", 400, {"error": {"message": {"error": {"message": "Unknown role: x", "code": "bad"}}}}, InvalidRequest, "line", "Unknown role: x", _GATEWAY),
    # OpenRouter
    Row("openrouter", "moderation", 403, {"error": {"code": 403, "message": "openai/x requires moderation on OpenAI. Your input was flagged", "metadata": {"reasons": ["violence", "hate"], "flagged_input": "…", "provider_name": "OpenAI"}}},
        ContentFiltered, "line", "violence, hate", _OPENROUTER),
    Row("openrouter", "guardrail of a request", 403, {"error": {"code": 403, "message": "Blocked by guardrail: prompt injection"}}, ContentFiltered, "line", "prompt injection", _OPENROUTER),
    Row("openrouter", "no tools there", 404, {"error": {"code": 404, "message": "No endpoints found that support tool use. Try disabling \"lookup\"."}}, InvalidRequest, "line", "tool use", "github.com/Kilo-Org/kilocode/issues/9006"),
    Row("openrouter", "no audio there", 404, {"error": {"code": 404, "message": "No endpoints found that support input audio"}}, InvalidRequest, "line", "input audio", _OPENROUTER),
    Row("openrouter", "data policy", 404, {"error": {"code": 404, "message": "No endpoints found matching your data policy (Free model publication)."}}, ModelNotFound, "unclear", "data policy", "github.com/ShamanicArts/Flow.Launcher.Plugin.AI-Assistant/issues/2"),
    Row("openrouter", "allowed providers", 404, {"error": {"code": 404, "message": "No allowed providers are available for the selected model."}}, ModelNotFound, "unclear", "allowed providers", _OPENROUTER),
    Row("openrouter", "no model", 400, {"error": {"code": 400, "message": "x/y is not a valid model ID"}}, ModelNotFound, "account", "valid model ID", _OPENROUTER),
    Row("openrouter", "no key", 401, {"error": {"code": 401, "message": "No auth credentials found"}}, Unauthorized, "account", "credentials", _OPENROUTER),
    Row("openrouter", "credit", 402, {"error": {"code": 402, "message": "Insufficient credits. Add more using https://openrouter.ai/credits"}}, QuotaExhausted, "account", "Add more", _OPENROUTER),
    Row("openrouter", "a dear request", 402, {"error": {"code": 402, "message": "This request requires more credits, or fewer max_tokens. You requested up to 64000 tokens, but can only afford 2666."}}, QuotaExhausted, "unclear", "afford 2666", "github.com/astrio-labs/forall/issues/76"),
    Row("openrouter", "day", 429, {"error": {"code": 429, "message": "Rate limit exceeded: free-models-per-day. Add 10 credits to unlock 1000 free model requests per day", "metadata": {"headers": {"X-RateLimit-Limit": "50", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1796083200000"}}}},
        QuotaExhausted, "account", "free-models-per-day", "github.com/Gitlawb/openclaude/issues/936", wait=UTC_MIDNIGHT - NOW),
    Row("openrouter", "upstream's words in a string", 429, {"error": {"code": 429, "message": "Provider returned error", "metadata": {"raw": "{\"error\":{\"message\":\"Tokens per minute limit exceeded\",\"code\":\"rate_limit_exceeded\"}}", "provider_name": "X"}}},
        RateLimited, None, "Tokens per minute limit exceeded", _OPENROUTER),
    Row("openrouter", "upstream's text", 429, {"error": {"code": 429, "message": "Provider returned error", "metadata": {"raw": "x/y:free is temporarily rate-limited upstream. Please retry shortly"}}}, RateLimited, None, "rate-limited upstream", _OPENROUTER),
    Row("openrouter", "upstream's context", 400, {"error": {"code": 400, "message": "Provider returned error", "metadata": {"raw": "{\"error\":{\"message\":\"prompt is too long: 210000 tokens > 200000 maximum\"}}"}}}, ContextOverflow, "line", "210000 tokens", _OPENROUTER),
    Row("openrouter", "error in a 200", 200, {"error": {"code": 502, "message": "Upstream error from X"}, "user_id": "u"}, Overloaded, None, "Upstream error", _OPENROUTER),
    Row("openrouter", "moderation in a 200", 200, {"error": {"code": 403, "message": "Input flagged by moderation"}}, ContentFiltered, "line", "moderation", _OPENROUTER),
    # Groq
    Row("groq", "one request above the minute", 413, openai("Request too large for model `m` in organization `o` service tier `on_demand` on tokens per minute (TPM): Limit 12000, Requested 14137, please reduce your message size and try again.", "tokens", "rate_limit_exceeded"),
        ContextOverflow, "line", "14137", "github.com/continuedev/continue/issues/10218"),
    Row("groq", "one request above the minute, briefly", 429, openai("on tokens per minute (TPM): Limit 12000, Requested 14137", "tokens", "rate_limit_exceeded"), ContextOverflow, "line", "14137", _GROQ),
    Row("groq", "minute", 429, openai("Rate limit reached for model `m` on tokens per minute (TPM): Limit 6000, Used 5034, Requested 1443. Please try again in 4.77s. Need more tokens? Upgrade to Dev Tier at https://console.groq.com/settings/billing", "tokens", "rate_limit_exceeded"),
        RateLimited, None, "Used 5034", "github.com/elizaOS/eliza/issues/4040", wait=4.77),
    Row("groq", "day", 429, openai("Rate limit reached for model `m` on tokens per day (TPD): Limit 100000, Used 99980, Requested 1443. Please try again in 20m29s.", "tokens", "rate_limit_exceeded"), QuotaExhausted, "account", "TPD", _GROQ, {"retry-after": "1229"}, 1229.0),
    Row("groq", "broken JSON", 400, openai("Failed to generate JSON. Please adjust your prompt. See 'failed_generation' for more details.", "invalid_request_error", "json_validate_failed", failed_generation="{\"a\": 1,"), Retryable, None, "failed_generation", _GROQ),
    Row("groq", "broken tool call", 400, openai("Failed to call a function.", "invalid_request_error", "tool_use_failed", failed_generation="<function=f>x"), Retryable, None, "<function=f>x", _GROQ),
    Row("groq", "retired model", 400, openai("The model `m` has been decommissioned and is no longer supported.", "invalid_request_error", "model_decommissioned"), ModelRetired, "account", "decommissioned", _GROQ),
    Row("groq", "flex", 498, openai("Flex tier capacity exceeded", "server_error", "capacity_exceeded"), Overloaded, None, "Flex tier", _GROQ),
    Row("groq", "organisation", 400, openai("Organization has been restricted.", "invalid_request_error", "organization_restricted"), AccountBlocked, "account", "restricted", _GROQ),
    # Together
    Row("together", "context", 422, openai("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4097. Given: 5000 `inputs` tokens and 200 `max_new_tokens`", "invalid_request_error"), ContextOverflow, "line", "4097", _TOGETHER),
    Row("together", "credit", 402, openai("Credit limit exceeded, please navigate to billing.", "credit_limit"), QuotaExhausted, "account", "Credit limit", _TOGETHER),
    Row("together", "no model", 404, openai("Unable to access model x/y. Please visit the site to see the list of supported models", "invalid_request_error", "model_not_available"), ModelNotFound, "account", "x/y", _TOGETHER),
    Row("together", "minute", 429, openai("You have reached the rate limit specific to this model x. The maximum rate limit for this model is 6.0 queries per minute.", "model_rate_limit"), RateLimited, None, "6.0 queries", _TOGETHER),
    Row("together", "overload", 503, openai("The server is overloaded or not ready yet.", "service_unavailable"), Overloaded, None, "not ready yet", _TOGETHER),
    # Mistral
    Row("mistral", "minute", 429, {**flat("Rate limit exceeded", "rate_limited", "1300"), "raw_status_code": 429}, RateLimited, None, "Rate limit exceeded", _MISTRAL),
    Row("mistral", "capacity", 429, flat("Service tier capacity exceeded for this model.", "invalid_request_error", "3505"), Overloaded, None, "Service tier", "github.com/continuedev/continue/issues/6185"),
    Row("mistral", "context", 400, flat("Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length", "invalid_request_prompt", "3051"), ContextOverflow, "line", "40000 tokens", _MISTRAL),
    Row("mistral", "too many texts", 400, flat("Too many tokens in batch. Max is 16384 got 17555", "invalid_request_error", None), ContextOverflow, "line", "17555", "github.com/aurelio-labs/semantic-router/issues/297"),
    Row("mistral", "no model", 400, flat("Invalid model: m", "invalid_model", "1500"), ModelNotFound, "account", "Invalid model", _MISTRAL),
    Row("mistral", "fields", 422, {"detail": [{"type": "missing", "loc": ["body", "messages", 0, "content"], "msg": "Field required", "input": {}}]}, InvalidRequest, "line", "body.messages.0.content: Field required", _MISTRAL),
    Row("mistral", "bare", 401, {"detail": "Unauthorized"}, Unauthorized, "unclear", "Unauthorized", _MISTRAL),
    # DeepSeek
    Row("deepseek", "credit", 402, openai("Insufficient Balance", "unknown_error", "invalid_request_error"), QuotaExhausted, "account", "Balance", _DEEPSEEK),
    Row("deepseek", "key", 401, openai("Authentication Fails, Your api key: ****1 is invalid", "authentication_error", "invalid_request_error"), Unauthorized, "account", "is invalid", _DEEPSEEK),
    Row("deepseek", "content", 400, openai("Content Exists Risk", "invalid_request_error", "invalid_request_error"), ContentFiltered, "line", "Content Exists Risk", _DEEPSEEK),
    Row("deepseek", "no model", 400, openai("Model Not Exist", "invalid_request_error", "invalid_request_error"), ModelNotFound, "account", "Model Not Exist", _DEEPSEEK),
    # Gemini
    Row("gemini", "minute, by its words", 429, google(429, f"{_CURRENT} Quota exceeded for metric: generate_content_free_tier_requests, limit: 15. Please retry in 7.25s.", "RESOURCE_EXHAUSTED"), RateLimited, None, "limit: 15", _GEMINI, wait=7.25),
    Row("gemini", "minute, by its details", 429, google(429, _CURRENT, "RESOURCE_EXHAUSTED", {"@type": _FAILURE, "violations": [_MINUTE_ID]}, {"@type": _RETRY, "retryDelay": "12s"}), RateLimited, None, "current quota", _GEMINI, wait=12.0),
    Row("gemini", "day", 429, google(429, f"{_CURRENT} Please retry in 41s.", "RESOURCE_EXHAUSTED", {"@type": _FAILURE, "violations": [_DAY_ID]}, {"@type": _RETRY, "retryDelay": "41s"}), QuotaExhausted, "account", "current quota", _GEMINI, wait=41.0, until=PACIFIC_MIDNIGHT),
    Row("gemini", "not in the free tier", 429, google(429, f"{_CURRENT} Quota exceeded for metric: generate_content_free_tier_requests, limit: 0, model: gemini-pro. Please retry in 45.578569677s.", "RESOURCE_EXHAUSTED"), PlanRequired, "account", "limit: 0", "github.com/continuedev/continue/issues/9570", wait=45.578569677),
    Row("nginx", "http on a TLS port", 400, "<html><head><title>400 The plain HTTP request was sent to HTTPS port</title></head><body><center><h1>400 Bad Request</h1></center><center>The plain HTTP request was sent to HTTPS port</center></body></html>", WrongService, "account", "write https:// in the base URL", "github.com/nginx/nginx: src/http/ngx_http_special_response.c"),
    Row("Go", "http on a TLS port", 400, "Client sent an HTTP request to an HTTPS server.\n", WrongService, "account", "write https:// in the base URL", "github.com/golang/go: src/net/http/server.go"),
    Row("Apache", "http on a TLS port", 400, "<p>Reason: You're speaking plain HTTP to an SSL-enabled server port.<br />Instead use the HTTPS scheme to access this URL, please.</p>", WrongService, "account", "write https:// in the base URL", "github.com/apache/httpd: modules/ssl/ssl_engine_kernel.c"),
    Row("gemini", "shared capacity", 429, google(429, "Resource exhausted. Please try again later.", "RESOURCE_EXHAUSTED"), RateLimited, None, "Resource exhausted", "github.com/google-gemini/gemini-cli/issues/14811"),
    Row("gemini", "key", 400, google(400, "API key not valid. Please pass a valid API key.", "INVALID_ARGUMENT", {"reason": "API_KEY_INVALID", "domain": "googleapis.com"}), Unauthorized, "account", "valid API key", _GEMINI),
    Row("gemini", "place", 400, google(400, "User location is not supported for the API use.", "FAILED_PRECONDITION"), AccountBlocked, "account", "location", _GEMINI),
    Row("gemini", "a file of one line", 403, google(403, "You do not have permission to access the File abc or it may not exist.", "PERMISSION_DENIED"), Unauthorized, "unclear", "File abc", _GEMINI),
    Row("gemini", "no model", 404, google(404, "models/gemini-x is not found for API version v1main, or is not supported for generateContent.", "NOT_FOUND"), ModelNotFound, "account", "gemini-x", _GEMINI),
    Row("gemini", "two things at once", 400, google(400, "Response schemas cannot be used together with function declarations", "INVALID_ARGUMENT"), InvalidRequest, "line", "function declarations", _GEMINI),
    Row("gemini", "context", 400, google(400, "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).", "INVALID_ARGUMENT"), ContextOverflow, "line", "1200000", _GEMINI),
    Row("gemini", "overload", 503, google(503, "The model is overloaded. Please try again later.", "UNAVAILABLE"), Overloaded, None, "overloaded", _GEMINI),
    # Anthropic
    Row("anthropic", "key", 401, anthropic("authentication_error", "invalid x-api-key"), Unauthorized, "account", "x-api-key", _ANTHROPIC),
    Row("anthropic", "credit", 400, anthropic("invalid_request_error", "Your credit balance is too low to access the Anthropic API."), QuotaExhausted, "account", "credit balance", _ANTHROPIC),
    Row("anthropic", "month", 400, anthropic("invalid_request_error", "You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC."), QuotaExhausted, "account", "regain access", _ANTHROPIC, wait=UTC_MIDNIGHT - NOW),
    Row("anthropic", "minute", 429, anthropic("rate_limit_error", "This request would exceed the rate limit for your organization of 20,000 input tokens per minute."), RateLimited, None, "20,000", "github.com/FoundationAgents/OpenManus/issues/746",
        {"anthropic-ratelimit-input-tokens-remaining": "0", "anthropic-ratelimit-input-tokens-reset": "2026-11-30T00:53:50Z"}, 30.0),
    Row("anthropic", "context", 400, anthropic("invalid_request_error", "prompt is too long: 208544 tokens > 200000 maximum"), ContextOverflow, "line", "208544", "github.com/stackblitz/bolt.new/issues/2520"),
    Row("anthropic", "limit and context", 400, anthropic("invalid_request_error", "input length and `max_tokens` exceed context limit: 199000 + 8192 > 200000"), ContextOverflow, "line", "8192", _ANTHROPIC),
    Row("anthropic", "too large", 413, anthropic("request_too_large", "Request exceeds the maximum size"), ContextOverflow, "line", "maximum size", _ANTHROPIC),
    Row("anthropic", "filter", 400, anthropic("invalid_request_error", "Output blocked by content filtering policy"), ContentFiltered, "line", "blocked", _ANTHROPIC),
    Row("anthropic", "permission", 403, anthropic("permission_error", "Your API key does not have permission to use the specified resource."), Unauthorized, "unclear", "specified resource", _ANTHROPIC),
    Row("anthropic", "no model", 404, anthropic("not_found_error", "model: claude-x"), ModelNotFound, "account", "claude-x", _ANTHROPIC),
    Row("anthropic", "overload", 529, anthropic("overloaded_error", "Overloaded"), Overloaded, None, "Overloaded", "github.com/anthropics/anthropic-sdk-typescript/issues/616"),
    # xAI
    Row("xai", "safety", 403, {"code": "The caller does not have permission to execute the specified operation", "error": "Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_BIO"}, ContentFiltered, "line", "SAFETY_CHECK_TYPE_BIO", "github.com/UKGovernmentBEIS/inspect_ai/pull/2267"),
    Row("xai", "safety, by the same code as the account's", 403, {"code": "permission-denied", "error": "Content violates usage guidelines. "}, ContentFiltered, "line", "usage guidelines", "github.com/Wei-Shaw/sub2api/pull/5359"),
    Row("xai", "not entitled", 403, {"code": "permission-denied", "error": "Access to the chat endpoint is denied"}, Unauthorized, "unclear", "chat endpoint", "github.com/Wei-Shaw/sub2api/pull/5359"),
    Row("xai", "credit", 429, {"code": "Some resource has been exhausted", "error": "Your team t-1 has either used all available credits or reached its monthly spending limit."}, QuotaExhausted, "account", "spending limit", "github.com/continuedev/continue/issues/10373"),
    Row("xai", "credit, as 403", 403, {"code": "permission-denied", "error": "Your team t-1 has either used all available credits or reached its monthly spending limit."}, QuotaExhausted, "account", "all available credits", "github.com/Anantys-oss/koan/issues/2412"),
    Row("xai", "key", 400, {"code": "Client specified an invalid argument", "error": "Incorrect API key provided: xa***1. You can obtain an API key from the console."}, Unauthorized, "account", "console", _XAI),
    # Fireworks
    Row("fireworks", "suspended", 412, openai("Account a is suspended, possibly due to reaching the monthly spending limit or failure to pay past invoices.", "error", "PRECONDITION_FAILED"), QuotaExhausted, "account", "suspended", "github.com/amd/gaia/issues/3766"),
    Row("fireworks", "context", 400, openai("The prompt is too long: 140000, model maximum context length: 131072", "invalid_request_error"), ContextOverflow, "line", "140000", _FIREWORKS),
    Row("fireworks", "no model", 404, openai("Model not found, inaccessible, and/or not deployed", "error", "NOT_FOUND"), ModelNotFound, "account", "inaccessible", _FIREWORKS),
    Row("fireworks", "key", 401, openai("The API key you provided is invalid.", "error", "UNAUTHORIZED"), Unauthorized, "account", "is invalid", _FIREWORKS),
    # Cerebras
    Row("cerebras", "minute", 429, {"message": "Tokens per minute limit exceeded - too many tokens processed.", "type": "too_many_tokens_error", "param": "quota", "code": "token_quota_exceeded"}, RateLimited, None, "too many tokens", "github.com/continuedev/continue/issues/9800",
        {"x-ratelimit-remaining-tokens-minute": "0", "x-ratelimit-reset-tokens-minute": "42.5"}, 42.5),
    Row("cerebras", "day", 429, {"message": "Tokens per day limit exceeded - too many tokens processed.", "type": "too_many_tokens_error", "param": "quota", "code": "token_quota_exceeded"}, QuotaExhausted, "account", "per day", _CEREBRAS,
        {"x-ratelimit-remaining-tokens-day": "0", "x-ratelimit-reset-tokens-day": "33011.38"}, 33_011.38),
    Row("cerebras", "traffic", 429, {"message": "We're experiencing high traffic right now! Please try again soon.", "type": "too_many_requests_error", "param": "queue", "code": "queue_exceeded"}, Overloaded, None, "high traffic", _CEREBRAS),
    Row("cerebras", "context", 400, {"message": "Please reduce the length of the messages or completion. Current length is 9000 while limit is 8192", "type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded"}, ContextOverflow, "line", "9000", _CEREBRAS),
    Row("cerebras", "key", 401, {"message": "Wrong API Key", "type": "invalid_request_error", "param": "api_key", "code": "wrong_api_key"}, Unauthorized, "account", "Wrong API Key", _CEREBRAS),
    Row("cerebras", "one request above the minute", 429, {"message": "This request needs 12,000 tokens, above the limit of 8,000 tokens per minute.", "type": "too_many_tokens_error", "param": "quota", "code": "token_quota_exceeded"}, ContextOverflow, "line", "12,000", _CEREBRAS),
    # Others
    Row("zhipu", "credit", 429, openai("Insufficient account balance or no resource package", None, "1113"), QuotaExhausted, "account", "resource package", "docs.z.ai/api-reference/api-code"),
    Row("zhipu", "filter", 400, {"error": {"code": "1301", "message": "系统检测到输入或生成内容可能包含不安全或敏感内容"}}, ContentFiltered, "line", "敏感", "docs.z.ai/api-reference/api-code"),
    Row("alibaba", "filter", 400, {"code": "DataInspectionFailed", "message": "Input data may contain inappropriate content.", "request_id": "r"}, ContentFiltered, "line", "inappropriate", "help.aliyun.com/model-studio/error-code"),
    Row("alibaba", "length", 400, {"code": "InvalidParameter", "message": "Range of input length should be [1, 30720]", "request_id": "r"}, ContextOverflow, "line", "30720", "help.aliyun.com/model-studio/error-code"),
    Row("hugging face", "credit", 402, {"error": "You have exceeded your monthly included credits for Inference Providers."}, QuotaExhausted, "account", "included credits", "huggingface.co/docs/inference-providers/pricing"),
    Row("vertex", "billing", 403, google(403, "This API method requires billing to be enabled. Please enable billing on project #1.", "PERMISSION_DENIED"), QuotaExhausted, "account", "enable billing", "cloud.google.com/vertex-ai/docs"),
    Row("any", "revoked key", 401, openai("The API key has been revoked"), Unauthorized, "account", "revoked", _OPENAI),
    Row("any", "region", 403, openai("Model m is not available in your region"), ModelNotFound, "account", "your region", _ANTHROPIC),
    Row("any", "safety", 403, {"detail": "Prompt rejected by safety classifier"}, ContentFiltered, "line", "classifier", _TOGETHER),
    Row("any", "today", 429, openai("No quota is left for today"), QuotaExhausted, "account", "for today", _MISTRAL),
    Row("any", "a flagged prompt that speaks of keys and credit", 403, openai("Your prompt 'invalid api key, out of credits' was flagged"), ContentFiltered, "line", "out of credits", _OPENROUTER),
    Row("any", "a flagged account", 403, openai("Your account was flagged for abuse of our safety rules"), AccountBlocked, "account", "for abuse", _OPENAI),
    # Servers
    Row("vllm", "context", 400, flat("This model's maximum context length is 4096 tokens. However, you requested 5000 tokens in the messages", "BadRequestError", 400), ContextOverflow, "line", "5000 tokens", _VLLM),
    Row("vllm", "prompt", 400, openai("The decoder prompt (length 9000) is longer than the maximum model length of 4096.", "BadRequestError", 400), ContextOverflow, "line", "9000", _VLLM),
    Row("vllm", "no model", 404, flat("The model `m` does not exist.", "NotFoundError", 404), ModelNotFound, "account", "does not exist", _VLLM),
    Row("vllm", "no route", 404, {"detail": "Not Found"}, ModelNotFound, "unclear", "Not Found", _VLLM),
    Row("vllm", "key", 401, {"error": "Unauthorized"}, Unauthorized, "unclear", "Unauthorized", _VLLM),
    Row("vllm", "no images", 400, flat("At most 0 image(s) may be provided in one request.", "BadRequestError", 400), InvalidRequest, "line", "0 image(s)", _VLLM),
    Row("vllm", "dead engine", 500, openai("EngineCore encountered an issue.", "InternalServerError", 500), Overloaded, None, "EngineCore", _VLLM),
    Row("sglang", "context", 400, flat("The input (5000 tokens) is longer than the model's context length (4096 tokens).", "BadRequestError", 400), ContextOverflow, "line", "5000 tokens", _SGLANG),
    Row("sglang", "queue", 503, flat("The request queue is full.", "service_unavailable", 503), Overloaded, None, "queue is full", _SGLANG),
    Row("llama.cpp", "context", 400, {"error": {"code": 400, "message": "the request exceeds the available context size, try increasing it", "type": "exceed_context_size_error", "n_prompt_tokens": 9000, "n_ctx": 4096}}, ContextOverflow, "line", "try increasing", _LLAMA),
    Row("llama.cpp", "loading", 503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}, Overloaded, None, "Loading model", _LLAMA),
    Row("llama.cpp", "key", 401, {"error": {"code": 401, "message": "Invalid API Key", "type": "authentication_error"}}, Unauthorized, "account", "Invalid API Key", _LLAMA),
    Row("llama.cpp", "batch size", 500, {"error": {"code": 500, "message": "input is too large to process. increase the physical batch size", "type": "server_error"}}, ContextOverflow, "line", "physical batch size", _LLAMA),
    Row("llama.cpp", "no images", 500, {"error": {"code": 500, "message": "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj", "type": "server_error"}}, InvalidRequest, "line", "mmproj", _LLAMA),
    Row("llama.cpp", "no embeddings", 501, {"error": {"code": 501, "message": "This server does not support embeddings. Start it with `--embeddings`", "type": "not_supported_error"}}, InvalidRequest, "line", "--embeddings", _LLAMA),
    Row("ollama", "no model", 404, openai('model "m" not found, try pulling it first', "api_error"), ModelNotFound, "account", "pulling", _OLLAMA),
    Row("ollama", "parameter", 400, openai("json: cannot unmarshal string into Go struct field ChatCompletionRequest.temperature of type float64", "invalid_request_error"), InvalidRequest, "line", "temperature", _OLLAMA_SEEN),
    Row("ollama", "tools", 400, openai("registry.ollama.ai/library/m:latest does not support tools", "api_error"), InvalidRequest, "line", "does not support tools", _OLLAMA_SEEN),
    Row("ollama", "no tools", 400, openai("registry.ollama.ai/library/m does not support tools", "api_error"), InvalidRequest, "line", "support tools", _OLLAMA),
    Row("ollama", "busy", 503, openai("server busy, please try again.  maximum pending requests exceeded", "api_error"), Overloaded, None, "maximum pending", _OLLAMA),
    Row("ollama", "week", 429, {"error": "you have reached your weekly usage limit, please upgrade to continue"}, QuotaExhausted, "account", "weekly", _OLLAMA),
    Row("ollama", "context", 400, openai("the input length exceeds the context length", "api_error"), ContextOverflow, "line", "input length", _OLLAMA),
    Row("lm studio", "context", 400, {"error": "Trying to keep the first 15857 tokens when context the overflows. However, the model is loaded with context length of only 4096 tokens."}, ContextOverflow, "line", "15857", _LMSTUDIO),
    Row("lm studio", "nothing loaded", 404, openai("No models loaded. Please load a model in the developer page or use the `lms load` command.", "invalid_request_error", "model_not_found"), ModelNotFound, "account", "lms load", _LMSTUDIO),
    Row("tgi", "length", 422, {"error": "Input validation error: `inputs` must have less than 1024 tokens. Given: 1062", "error_type": "validation"}, ContextOverflow, "line", "1062", _TGI),
    Row("tgi", "overload", 429, {"error": "Model is overloaded", "error_type": "overloaded"}, Overloaded, None, "Model is overloaded", _TGI),
    Row("tgi", "generation", 424, {"error": "Request failed during generation: Server error: CUDA error", "error_type": "generation"}, Overloaded, None, "CUDA error", _TGI),
    Row("hugging face", "loading", 503, {"error": "Model x/y is currently loading", "estimated_time": 20.5}, Overloaded, None, "currently loading", _TGI, wait=20.5),
    Row("tei", "length", 413, {"error": "Input validation error: `inputs` must have less than 512 tokens. Given: 534", "error_type": "Validation"}, ContextOverflow, "line", "534", _TEI),
    Row("tei", "array", 422, {"message": "batch size 64 > maximum allowed batch size 32", "code": 422, "type": "Validation"}, InvalidRequest, "line", "batch size 32", _TEI),
    Row("tei", "overload", 429, {"message": "Model is overloaded", "code": 429, "type": "overloaded"}, Overloaded, None, "Model is overloaded", _TEI),
    Row("litellm", "filter", 400, openai("litellm.BadRequestError: litellm.ContentPolicyViolationError: AzureException - The response was filtered due to the prompt triggering our content management policy.", None, "400", provider_specific_fields={"innererror": {"code": "ResponsibleAIPolicyViolation"}}), ContentFiltered, "line", "AzureException", "github.com/BerriAI/litellm/pull/16231"),
    Row("litellm", "context", 400, openai("litellm.ContextWindowExceededError: This model's maximum context length is 4097 tokens.", None, "400"), ContextOverflow, "line", "4097", _LITELLM),
    Row("litellm", "budget", 400, openai("Budget has been exceeded! Current cost: 14.1, Max budget: 10.0", "budget_exceeded", "400"), QuotaExhausted, "account", "Max budget", "github.com/BerriAI/litellm/issues/14144"),
    Row("litellm", "token", 401, openai("Authentication Error, Invalid proxy server token passed. Received API Key = sk-...1", "token_not_found_in_db", "401"), Unauthorized, "account", "proxy server token", _LITELLM),
    Row("litellm", "model of another key", 401, openai("key not allowed to access model. This key can only access models=['a']", "key_model_access_denied", "401"), ModelNotFound, "account", "can only access", _LITELLM),
    Row("litellm", "cooling down", 429, openai("No deployments available for selected model, Try again in 60 seconds. Passed model=m", "None", "429"), RateLimited, None, "No deployments", _LITELLM, wait=60.0),
    Row("litellm", "limit of its own", 429, openai("No deployments available for selected model.", "internal_server_error", "429"), RateLimited, None, "No deployments", _LITELLM_SEEN),
    Row("litellm", "all servers failed", 429, openai("No deployments available for selected model, Try again in 5 seconds. All deployments for selected model are in cooldown. Passed model=m. pre-call-checks=True, cooldown_list=['2c34', '4669']", "all_deployments_in_cooldown", "429"), ConnectionFailed, None, "in cooldown", _LITELLM_SEEN, {"retry-after": "5"}, 5.0),
    Row("litellm", "all servers failed, older", 429, openai("No deployments available for selected model, Try again in 60 seconds. Passed model=m. pre-call-checks=False, cooldown_list=[('2c34', {'status_code': '500'})]", "None", "429"), ConnectionFailed, None, "cooldown_list", _LITELLM_ROUTER, wait=60.0),
    Row("litellm", "server failed", 500, openai("litellm.InternalServerError: InternalServerError: OpenAIException - Connection error.\n\nLiteLLM: model group 'm' failed with the error above. No fallback was attempted.", "internal_server_error", "500"), Overloaded, None, "Connection error", _LITELLM_SEEN),
    Row("litellm", "wrong key, no database", 400, openai("No connected db.", "no_db_connection", "400"), Unauthorized, "account", "No connected db", _LITELLM_SEEN),
    Row("litellm", "no model", 400, openai("/chat/completions: Invalid model name passed in model=m. Call `/v1/models` to view available models for your key.", "invalid_request_error", "400"), ModelNotFound, "account", "Invalid model name", _LITELLM_SEEN),
    Row("litellm", "no healthy deployment", 400, openai("litellm.BadRequestError: You passed in model=m. There are no healthy deployments for this model", None, "400"), ModelNotFound, "account", "no healthy", _LITELLM_ROUTER),
    Row("litellm", "context of the server", 400, openai("litellm.ContextWindowExceededError: litellm.BadRequestError: ContextWindowExceededError: OpenAIException - request (4031 tokens) exceeds the available context size (1024 tokens), try increasing it\nmodel=m. context_window_fallbacks=None. fallbacks=None.", "invalid_request_error", "400"), ContextOverflow, "line", "4031", _LITELLM_SEEN),
    Row("litellm", "image", 500, openai("litellm.InternalServerError: InternalServerError: OpenAIException - image input is not supported - hint: if this is unexpected, you may need to provide the mmproj", "internal_server_error", "500"), InvalidRequest, "line", "image input", _LITELLM_SEEN),
    Row("litellm", "cannot embed", 501, openai("litellm.APIError: APIError: OpenAIException - Error code: 501 - {'error': {'code': 501, 'message': 'This server does not support embeddings. Start it with `--embeddings`', 'type': 'not_supported_error'}}", "internal_server_error", "501"), InvalidRequest, "line", "--embeddings", _LITELLM_SEEN),
    # Whoever stands between
    Row("proxy", "a page", 502, "<html><head><style>h1 {}</style></head><body><h1>502 Bad Gateway</h1><hr>nginx</body></html>", Overloaded, None, "502 Bad Gateway nginx", "nginx.org"),
    Row("proxy", "a page that refuses", 403, "<html><h1>403 Forbidden</h1></html>", Unauthorized, "unclear", "403 Forbidden", "nginx.org"),
    Row("proxy", "too large", 413, "<html><h1>413 Request Entity Too Large</h1></html>", ContextOverflow, "line", "Entity Too Large", "nginx.org"),
    Row("proxy", "XML", 403, "<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Not here</Message></Error>", Unauthorized, "unclear", "Not here", "docs.aws.amazon.com/AmazonS3"),
    Row("proxy", "problem+json", 400, {"type": "about:blank", "title": "Bad Request", "status": 400, "detail": "No body that can be read"}, InvalidRequest, "line", "Bad Request; No body", "rfc-editor.org/rfc/rfc9457"),
    Row("proxy", "AWS", 429, {"__type": "com.amazon.coral#ThrottlingException", "Message": "Too many requests, please wait before trying again."}, RateLimited, None, "Too many requests", "docs.aws.amazon.com/bedrock"),
    Row("proxy", "an event instead of JSON", 400, 'event: error\ndata: {"error": {"message": "Unknown role", "code": 400}}\n\n', InvalidRequest, "line", "Unknown role", "html.spec.whatwg.org"),
    Row("proxy", "lists", 400, {"errors": ["first reason", {"msg": "second reason"}]}, InvalidRequest, "line", "first reason; second reason", "jsonapi.org"),
    Row("proxy", "fields", 422, {"message": "Validation failed", "errors": {"temperature": ["is above 2"]}}, InvalidRequest, "line", "is above 2", "laravel.com/docs/validation"),
    Row("proxy", "names that nobody knows", 400, {"fault": {"faultstring": "quota policy misconfigured"}}, InvalidRequest, "line", "faultstring", "cloud.google.com/apigee"),
    Row("proxy", "legal reasons", 451, {"message": "Unavailable"}, AccountBlocked, "unclear", "Unavailable", "rfc-editor.org/rfc/rfc7725"),
    Row("proxy", "a refusal in a 200, with its status", 200, {"statusCode": 429, "message": "Slow down"}, RateLimited, None, "Slow down", _APIM),
    Row("proxy", "a refusal in a 200, without", 200, {"error": {"message": "odd"}}, BadReply, "line", "odd", "github.com"),
    Row("proxy", "a date", 503, {"error": "maintenance"}, Overloaded, None, "maintenance", "rfc-editor.org/rfc/rfc9110", {"retry-after": "Mon, 30 Nov 2026 00:54:20 GMT"}, 60.0),
)  # fmt: skip
