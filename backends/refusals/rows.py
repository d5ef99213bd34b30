"""What the refusals of services that speak OpenAI's API mean: one row for each code, sentence and status.

Sources: the error pages of OpenAI, Azure, Anthropic, Google, Groq, Mistral, Together, Fireworks, Cerebras, DeepSeek,
xAI and OpenRouter; the sources of vLLM, SGLang, llama.cpp, TGI and TEI; users' reports of Ollama, LM Studio, LiteLLM.
tests/backends/zoo/refusals.py has an example of each, with its source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from llmdo.backends.errors import (
    AccountBlocked,
    BadReply,
    CallTimeout,
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
from llmdo.backends.refusals.meanings import Meaning, Refusals, Row, words

KEY = Meaning(Unauthorized, "the key is not valid here", "check the key in {key} and the base URL")
CREDIT = Meaning(QuotaExhausted, "the account's credit is used", "add credit, or raise its limit, then run it again")
# OpenRouter counts what max_tokens may cost: a line that asks for less may still be answered.
DEAR = replace(
    CREDIT,
    what="the credit does not cover this request",
    remedy="add credit, or lower max_tokens",
    about="unclear",
)
DAY = Meaning(
    QuotaExhausted,
    "the allowance of this day (or hour, or month) is used",
    "resume when it comes back, or raise the account's tier",
    ends="stated",
)
UTC_DAY, PACIFIC_DAY = replace(DAY, ends="UTC"), replace(DAY, ends="Pacific")
RATE = Meaning(RateLimited, "too many requests or tokens this minute", "lower the concurrency")
BUSY = Meaning(Overloaded, "the service is overloaded", "lower the concurrency, or try later")
LOADING = Meaning(Overloaded, "the server is still loading its model", "wait until it is loaded")
COOLING = Meaning(
    ConnectionFailed, "all servers behind the proxy have failed, and it asks none for now", "see that they run"
)
FAILED = Meaning(Overloaded, "the service failed", "try later")
SLOW = Meaning(CallTimeout, "the service took too long", "ask for fewer tokens, or send a shorter prompt")
SHORTER = "shorten the prompt, or lower max_tokens"
CONTEXT = Meaning(ContextOverflow, "input and max_tokens do not fit the context window", SHORTER)
TOO_LARGE = Meaning(ContextOverflow, "the request alone is above the account's tokens a minute", SHORTER)
TOO_LONG = Meaning(ContextOverflow, "the request is too large", "shorten or split the input")
FILTER = Meaning(ContentFiltered, "the filter refused the prompt or the answer", "change the prompt")
NO_MODEL = Meaning(ModelNotFound, "there is no such model here", "list them with `llmdo models {provider}`")
NOT_OPEN = Meaning(ModelNotFound, "the model is not open to this key", "name another model, or ask for access to it")
NO_ROUTE = Meaning(
    ModelNotFound,
    "no provider of the model fits the account's and the request's rules",
    "loosen the data policy, the guardrails or the list of providers",
    "unclear",
)
NO_PLAN = Meaning(
    PlanRequired, "the account's plan has no allowance for this model", "name another model, or change the plan"
)
RETIRED = Meaning(ModelRetired, "the model was switched off", "name another from `llmdo models {provider}`")
INVALID = Meaning(InvalidRequest, "the request does not fit the model", "correct or leave out what it names")
NO_JSON = Meaning(
    Retryable, "the model did not keep to the JSON or tool asked for", "make the schema or the tools simpler"
)
BLOCKED = Meaning(AccountBlocked, "the account or this place may not call the service", "ask the provider's support")
WANTS_TLS = Meaning(WrongService, "the service wants TLS there", "write https:// in the base URL")
CANNOT = Meaning(InvalidRequest, "the server cannot do this", "start it with what it names")

_CODES: tuple[tuple[Meaning, str], ...] = (
    (KEY, "authentication_error auth_error api_key_invalid expired_api_key incorrect_api_key invalid_api_key"
          " invalid_organization mismatched_organization mismatched_project token_not_found_in_db unauthenticated"
          " wrong_api_key"),
    (replace(KEY, remedy="check the key in {key}: without a database LiteLLM's proxy takes its master key alone"),
     "no_db_connection"),
    (BLOCKED, "account_deactivated account_suspended consumer_suspended organization_on_hold organization_restricted"
              " unsupported_country_region_territory"),
    (CREDIT, "billing_error billing_hard_limit_reached billing_not_active budget_exceeded insufficient_balance"
             " insufficient_credits insufficient_quota payment_required"),
    (CONTEXT, "context_length_exceeded exceed_context_size_error max_tokens_exceeded max_tokens_per_request"
              " request_too_large string_above_max_length string_too_long token_limit_exceeded tokens_limit_reached"),
    (FILTER, "content_blocked content_filter content_policy_violation data_inspection_failed invalid_prompt"
             " moderation_blocked refusal responsibleaipolicyviolation"),
    (NO_MODEL, "deploymentnotfound invalid_model model_not_available model_not_found"),
    (replace(NO_MODEL, about="unclear"), "not_found_error notfounderror"),  # a file, too
    (NOT_OPEN, "key_model_access_denied model_access_denied team_model_access_denied"),
    (RETIRED, "model_decommissioned model_deprecated"),
    (NO_JSON, "json_validate_failed tool_use_failed"),
    (RATE, "model_rate_limit ramp_limit_exceeded rate_limit_error rate_limit_exceeded rate_limit_reached"
           " ratelimitreached rate_limited request_quota_exceeded resource_exhausted slow_down throttlingexception"
           " token_quota_exceeded"),
    (BUSY, "capacity_exceeded engine_overloaded nocapacity overloaded overloaded_error queue_exceeded unavailable"),
    (LOADING, "unavailable_error"),
    (COOLING, "all_deployments_in_cooldown"),
    (FAILED, "backend generation incomplete_generation server_error unhealthy"),
    (SLOW, "deadline_exceeded"),
    (CANNOT, "not_supported_error"),
)  # fmt: skip
_COUNT = r"\d[\d,]{0,11}"
_SUSPENDED = (
    r"(?:account|organi[sz]ation|team|project|api key)(?: [\w.-]{1,60})? (?:has been|have been|is|was) "
    r"(?:\w{1,20} )?(?:flagged|suspended|deactivated|disabled|blocked|banned|restricted)"
)
_FLAGGED = (
    r"flagged|moderation|content (?:management |usage )?polic|content[ _-]filter|content exists risk"
    r"|violat(?:es|ing|ion of) (?:\w{1,20} ){0,3}(?:usage|content|polic|guideline|safety)|SAFETY_CHECK|guardrail"
    r"|usage (?:guidelines|polic)|\bsafety\b|\u654f\u611f|inappropriate content|harmful content"
)
_REFUSED = (401, 403)  # no prompt is repeated there
_QUOTA = (402, 403, 412, 429)
# Errors of a line, for which a prompt that is repeated does no harm.
_LINE = (200, 400, 403, 404, 413, 415, 422, 424, 451, 500)
_BIG = (200, 400, 413, 422, 429, 500)

# The first row that fits counts.
_TEXTS: tuple[Row, ...] = (
    # nginx, Go's and Apache's servers.
    words(
        r"plain http request was sent to https port|http request to an https server|speaking plain HTTP to an SSL",
        400,
        meaning=WANTS_TLS,
    ),
    # One request above a limit of the account: slower calls do not help.
    words(r"request too large|request body too large|reduce your message size", 200, 400, 413, 429, meaning=TOO_LARGE),
    words(rf"\blimit:? ?(?P<limit>{_COUNT}),? requested:? ?(?P<asked>{_COUNT})", 400, 429, meaning=TOO_LARGE),
    words(
        rf"(?:request(?:ed|s)?|requires?|needs?|contains?|has|of|is) (?:about )?(?P<asked>{_COUNT}) tokens?\b.{{0,80}}?"
        rf"\b(?:limit|maximum|max)\b.{{0,30}}? (?P<limit>{_COUNT})",
        429,
        meaning=TOO_LARGE,
    ),
    words(r"", 413, meaning=TOO_LONG),
    # Before what a flagged prompt, which the service repeats, may speak of.
    words(_SUSPENDED, *_REFUSED, meaning=BLOCKED),
    words(_FLAGGED, 403, meaning=FILTER),
    # The account: its allowance, its credit.
    words(r"\blimit: 0(?![\d.])", 429, meaning=NO_PLAN),
    words(r"daily free allocation", 200, 429, meaning=UTC_DAY),
    words(r"PerDay", 429, meaning=PACIFIC_DAY),  # Google's quotaId
    words(
        r"\bper[ -]day\b|_per_day|\((?:RPD|TPD|ASD)\)|per 86400 ?s|ByDay\b|for today\b|out of call volume quota"
        r"|(?:hourly|daily|weekly|monthly) (?:request |token |usage )?(?:limit|quota)",
        *(403, 429),
        meaning=DAY,
    ),
    words(r"^you have reached your specified API usage limits", 400, 429, meaning=DAY),
    words(r"can only afford|requires more credits", 402, meaning=DEAR),
    words(
        r"insufficient (?:account )?(?:balance|credits?|funds|quota)|balance (?:is )?(?:insufficient|too low|exhausted)"
        r"|out of credits|all available credits|credit balance|included credits|billing (?:account|is not|to be) "
        r"|credits (?:are|have been) (?:depleted|exhausted)|spending limit|credit limit exceeded"
        r"|(?:exceeded|over) budget|budget has been exceeded|_spend_limit_reached|_billing_unavailable",
        *(401, *_QUOTA),
        meaning=CREDIT,
    ),
    words(r"^(?:your credit balance is too low|budget has been exceeded|exceededbudget)", 400, meaning=CREDIT),
    words(r"retry in \d|per[ -]minute|PerMinute|RESOURCE_EXHAUSTED", 429, meaning=RATE),
    words(r"exceeded your current quota", 429, meaning=CREDIT),
    words(
        r"overloaded|over capacity|capacity exceeded|at capacity|high (?:demand|traffic)|queue is full|server busy",
        *(200, 429, 498, 500, 503, 529),
        meaning=BUSY,
    ),
    words(r"loading|not ready yet", 503, meaning=LOADING),
    words(r"no deployments available\b.{0,200} cooldown_list=\[[^\]]", 429, meaning=COOLING),
    # The account: its state, its key, its place.
    words(_SUSPENDED, 402, 412, 429, meaning=BLOCKED),
    words(r"country, region|location is not supported|virtual network/firewall", *(*_REFUSED, 451), meaning=BLOCKED),
    words(r"^user location is not supported", 400, meaning=BLOCKED),
    words(
        r"(?:invalid|incorrect|wrong|missing|no) (?:[\w-]{1,20} ){0,2}(?:api[ -]?key|api token|access token"
        r"|server token|subscription key|auth credentials|authentication)"
        r"|(?:api[ -]?key|token|credentials):? (?:[\w*.-]{1,60} ){0,4}"
        r"(?:invalid|not valid|incorrect|expired|leaked|revoked|missing|not found)"
        r"|authentication fails|insufficient permissions|has not been used in project|key limit exceeded",
        *_REFUSED,
        meaning=KEY,
    ),
    words(r"^(?:incorrect api key|api key not valid|api key expired|invalid api key)", 400, meaning=KEY),
    words(
        r"(?:not|no|n't) (?:(?:allowed|authorized|permitted) to |have )?(?:access|use|sample from) "
        r"(?:to )?(?:this |the )?model|not available in (?:your|this) (?:region|country|location)",
        *(*_REFUSED, 404),
        meaning=NOT_OPEN,
    ),
    # The model.
    words(
        r"model\b.{0,100} (?:has been|was|is) (?:deprecated|decommissioned|retired|shut down)",
        *(400, 404, 410),
        meaning=RETIRED,
    ),
    words(
        r"no (?:endpoints|providers?) (?:found |available )?that (?:can )?(?:support|handle)", *_LINE, meaning=INVALID
    ),
    words(
        r"matching your (?:data|guardrail)|data policy|no allowed providers|providers have been ignored",
        *(403, 404),
        meaning=NO_ROUTE,
    ),
    words(
        r"\bmodels?\b.{0,200} (?:does not exist|doesn't exist|not found)|^model: |not found, try pulling"
        r"|no endpoints found for|unable to access model",
        404,
        meaning=NO_MODEL,
    ),
    words(
        r"no such model|is not a valid model id|invalid model name passed in model"
        r"|no healthy deployments for this model|^(?:model not (?:found|exist)|invalid model|no models? loaded)",
        *(400, 404),
        meaning=NO_MODEL,
    ),
    # The line.
    words(
        r"context (?:length|size|window|limit)|context the overflows|maximum model length|input token count"
        r"|(?:prompt|input|message|request|text)s? (?:is|are) too (?:long|large)|too large for model|reduce the length"
        r"|longer than the (?:maximum|model)|(?:must have less|must be fewer) than \d+ (?:tokens|characters)"
        r"|tokens` must be <=|range of input length|\d+ tokens per request",
        *_BIG,
        meaning=CONTEXT,
    ),
    words(r"too many (?:input )?tokens", 200, 400, 422, meaning=CONTEXT),
    words(_FLAGGED, *_LINE, meaning=FILTER),
    words(
        r"(?:not|n't|no) (?:currently )?support(?:s|ed|ing)? (?:for )?(?:\w{1,20} ){0,2}"
        r"(?:image|audio|video|vision|file|pdf|document|tool|function|multimodal|json|structured)"
        r"|(?:image|audio|video|vision|file|pdf|document|tool|function|multimodal)\w{0,9} (?:\w{1,20} ){0,3}"
        r"(?:not|n't) (?:currently )?(?:be )?(?:support|allow|available)",
        *(403, 404, 500, 501),
        meaning=INVALID,
    ),
)

_STATUSES: Mapping[int, Meaning] = {
    2: Meaning(BadReply, "the service reports an error that is not documented", "read what it said"),
    3: Meaning(BadReply, "the service redirects elsewhere", "correct the base URL"),
    4: INVALID,
    5: FAILED,
    401: replace(KEY, about="unclear"),
    402: replace(CREDIT, about="unclear"),
    403: Meaning(
        Unauthorized,
        "the service refuses this request, or the key",
        "check what the key in {key} is allowed, and the base URL",
        "unclear",
    ),
    404: Meaning(
        ModelNotFound, "there is no such model or route", "check the model's name and the base URL", "unclear"
    ),
    408: SLOW,
    409: Meaning(Overloaded, "another call is in the way", "try later"),
    410: RETIRED,
    424: FAILED,
    429: RATE,
    451: Meaning(
        AccountBlocked,
        "the service may not answer this, or not here, for legal reasons",
        "change the prompt, or ask the provider's support",
        "unclear",
    ),
    498: BUSY,
    501: CANNOT,
    504: SLOW,
    522: SLOW,
    524: SLOW,
    529: BUSY,
}

_BY_CODE = {code: meaning for meaning, codes in _CODES for code in codes.split()}
COMPATIBLE_REFUSALS = Refusals(_TEXTS, _BY_CODE, _STATUSES)
