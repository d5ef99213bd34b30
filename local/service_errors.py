"""The services' own errors: codes, messages, shapes."""

from __future__ import annotations

from typing import Literal

from llmdo.local.wire import ANTHROPIC_TYPES, HttpReply, anthropic_failure, failure, openai_failure, s3_failure

FaultTarget = Literal["ai", "anthropic", "openai", "queue", "r2"]

# The code that a service sends with a status if a fault names none, and the services' messages by code.
# Sources: developers.cloudflare.com/workers-ai/platform/errors, …/queues/reference/error-codes, …/r2/api/error-codes.
DEFAULT_CODES: dict[FaultTarget, dict[int, int]] = {
    "ai": {400: 5006, 401: 10000, 403: 10000, 404: 3042, 408: 3046, 413: 3006, 429: 3040},
    "queue": {400: 10207, 401: 10000, 403: 10000, 404: 10104, 429: 10250, 500: 15000},
    "anthropic": {},
    "openai": {},
    "r2": {400: 10054, 401: 10002, 403: 10003, 404: 10007, 412: 10031, 416: 10039, 429: 10058, 500: 10001, 503: 10043},
}
MESSAGES = {
    3003: "AiError: 3003: Incomplete request",
    3006: "AiError: 3006: Request is too large",
    3007: "AiError: 3007: Timeout",
    3021: "AiError: 3021: rate limiting: inference request per min rate reached",
    3023: "AiError: 3023: Account blocked",
    3036: "AiError: 3036: you have used up your daily free allocation of 10,000 neurons, "
    "please upgrade to Cloudflare's Workers Paid plan if you would like to continue usage.",
    3040: "InferenceUpstreamError: 3040: Capacity temporarily exceeded, please try again.",
    3042: "AiError: 3042: Invalid model ID",
    3046: "AiError: 3046: Request timeout",
    4006: "AiError: AiError: 4006: you have used up your daily free allocation of 10,000 neurons, "
    "please upgrade to Cloudflare's Workers Paid plan if you would like to continue usage.",
    5006: "AiError: Bad input: Error: oneOf at '/' not met",
    5007: "No such model or task",
    5016: "AiError: 5016: Model agreement required",
    5018: "AiError: 5018: Account not allowed for private model",
    5021: "AiError: 5021: estimated number of input and maximum output tokens exceeded this model context window limit",
    7003: "Could not route, perhaps your object identifier is invalid?",
    10000: "Authentication error",
    10104: "Queue not found",
    10106: "Unauthorized",
    10207: "Request body is invalid",
    10250: "Queue is overloaded",
    10251: "Queue storage limit exceeded",
    10252: "Queue delivery is paused",
    10253: "Free tier limit exceeded",
    15000: "Unknown internal error",
}
S3_ERRORS = {
    10001: ("InternalError", "We encountered an internal error. Please try again."),
    10002: ("Unauthorized", "Unauthorized"),
    10003: ("AccessDenied", "Access Denied"),
    10006: ("NoSuchBucket", "The specified bucket does not exist."),
    10007: ("NoSuchKey", "The specified key does not exist."),
    10018: ("ExpiredRequest", "Request has expired"),
    10031: ("PreconditionFailed", "At least one of the pre-conditions you specified did not hold."),
    10035: ("SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided."),
    10039: ("InvalidRange", "The requested range is not satisfiable"),
    10043: ("ServiceUnavailable", "Service is unable to handle request."),
    10054: ("ClientDisconnect", "Client disconnected before the request was complete."),
    10058: ("TooManyRequests", "Reduce your concurrent request rate for the same object."),
}


# By status, or by a fault's code: OpenAI's type, code and message.
# Sources: developers.openai.com/api/docs/guides/error-codes, and the official client's exceptions.
OPENAI_ERRORS: dict[int | str, tuple[str, str | None, str]] = {
    400: ("invalid_request_error", None, "The request was invalid."),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    403: ("invalid_request_error", None, "You are not allowed to use this."),
    404: ("invalid_request_error", None, "There is nothing with this id."),
    408: ("server_error", None, "Request timed out."),
    409: ("invalid_request_error", None, "The object was changed by another request. Please try again."),
    413: ("invalid_request_error", None, "The request is too large."),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached for requests. Please try again later."),
    500: ("server_error", None, "The server had an error while processing your request. Sorry about that!"),
    503: ("server_error", None, "The engine is currently overloaded, please try again later."),
    "insufficient_quota": (
        "insufficient_quota",
        "insufficient_quota",
        "You exceeded your current quota, please check your plan and billing details.",
    ),
}


_KINDS = frozenset(ANTHROPIC_TYPES.values())
# By a fault's code, where the type of the error does not say it.
_ANTHROPIC_WORDS = {
    "credit_balance": "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing.",
    "usage_limit": "You have reached your specified API usage limits.",
}


def error_reply(
    target: FaultTarget, status: int, code: int | str | None, retry_after: float | None = None
) -> HttpReply:
    """An error in the service's own shape. Like the real one, a 5xx of the edge, without a code, is an HTML page."""
    if target == "openai" and status in OPENAI_ERRORS:
        kind, name, message = OPENAI_ERRORS.get(code or status, OPENAI_ERRORS[status])
        return _asking_to_wait(openai_failure(status, message, kind, str(code) if code else name), retry_after)
    if target == "anthropic" and status in ANTHROPIC_TYPES:
        name = str(code or ANTHROPIC_TYPES[status])
        message = _ANTHROPIC_WORDS.get(name, "Overloaded" if status == 529 else "This request cannot be answered now.")
        return _asking_to_wait(anthropic_failure(status, message, name if name in _KINDS else ""), retry_after)
    code = code or DEFAULT_CODES[target].get(status)
    if target == "r2":
        names = dict(S3_ERRORS.values())
        name, message = (
            S3_ERRORS.get(code, S3_ERRORS[10001]) if isinstance(code, int) else (code or "InternalError", "")
        )
        reply = s3_failure(status, name, message or names.get(name, name))
    elif isinstance(code, int):
        reply = failure(status, code, MESSAGES.get(code, f"Error {code}"))
    else:
        return error_page(status, retry_after)
    return _asking_to_wait(reply, retry_after)


def error_page(status: int, retry_after: float | None) -> HttpReply:
    """What stands in for a reply where a proxy or a firewall answers."""
    page = f"<!DOCTYPE html><html><head><title>{status}</title></head><body>cloudflare</body></html>"
    return _asking_to_wait(HttpReply(status, page.encode(), {"Content-Type": "text/html; charset=UTF-8"}), retry_after)


def _asking_to_wait(reply: HttpReply, retry_after: float | None) -> HttpReply:
    if retry_after is not None:
        reply.headers["Retry-After"] = f"{retry_after:g}"
    return reply
