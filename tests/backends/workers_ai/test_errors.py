import pytest

from llmdo.backends import errors
from llmdo.backends.http.client import next_midnight_utc
from llmdo.backends.refusals.cloudflare import CODES
from llmdo.backends.workers_ai.errors import is_refusal, refusal

NOW = 1_795_262_400.0  # 2026-11-21 12:00:00 UTC
MODEL = "@cf/meta/llama-3.3-70b-instruct-fp8-fast"

# Code, HTTP status and class, as the documentation and users' reports have them.
ROWS = [
    (2001, 400, "Unauthorized"),
    (2002, 500, "Retryable"),
    (2003, 429, "RateLimited"),
    (2009, 401, "Unauthorized"),
    (2014, 500, "CallTimeout"),
    (2016, 424, "ContentFiltered"),
    (2017, 424, "ContentFiltered"),
    (2019, 400, "InvalidRequest"),
    (2021, 402, "QuotaExhausted"),
    (2047, 400, "Unauthorized"),
    (2049, 402, "QuotaExhausted"),
    (3003, 400, "InvalidRequest"),
    (3006, 413, "ContextOverflow"),
    (3007, 408, "CallTimeout"),
    (3008, 408, "CallTimeout"),
    (3021, 429, "RateLimited"),
    (3023, 403, "AccountBlocked"),
    (3030, 400, "ContentFiltered"),
    (3036, 429, "QuotaExhausted"),
    (3039, 400, "InvalidRequest"),
    (3040, 429, "Overloaded"),
    (3041, 403, "ModelNotFound"),
    (3042, 404, "ModelNotFound"),
    (3046, 408, "CallTimeout"),
    (3046, 500, "CallTimeout"),
    (4006, 429, "QuotaExhausted"),
    (5001, 500, "Overloaded"),
    (5004, 400, "InvalidRequest"),
    (5005, 405, "InvalidRequest"),
    (5006, 400, "InvalidRequest"),
    (5007, 400, "ModelNotFound"),
    (5016, 403, "LicenceNotAccepted"),
    (5018, 403, "ModelNotFound"),
    (5019, 405, "InvalidRequest"),
    (5021, 400, "ContextOverflow"),
    (5024, 400, "Retryable"),
    (5025, 400, "InvalidRequest"),
    (5028, 400, "ModelRetired"),
    (5035, 403, "PlanRequired"),
    (7000, 400, "ModelNotFound"),
    (7003, 404, "Unauthorized"),
    (7009, 503, "Overloaded"),
    (10000, 401, "Unauthorized"),
    (10000, 403, "Unauthorized"),
]


def envelope(code, message="said"):
    return {"result": None, "success": False, "errors": [{"code": code, "message": message}], "messages": []}


def read(status, body, headers=()):
    return refusal(status, dict(headers), body, MODEL, NOW)


@pytest.mark.parametrize(("code", "status", "kind"), ROWS)
def test_every_code_has_its_class_and_a_sentence_with_the_remedy(code, status, kind):
    error = read(status, envelope(code))
    assert type(error) is getattr(errors, kind)
    assert (error.code, error.status, error.provider) == (code, status, "workers-ai")
    remedy = CODES[code].remedy.replace("{key}", "CLOUDFLARE_API_TOKEN")
    assert error.message.startswith(f"{MODEL}: {CODES[code].what} (code {code}, HTTP {status}): {remedy}")


def test_every_code_of_the_table_is_tested():
    assert {code for code, _, _ in ROWS} == set(CODES)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (302, "BadReply"),
        (400, "InvalidRequest"),
        (401, "Unauthorized"),
        (402, "PlanRequired"),
        (403, "Unauthorized"),
        (404, "ModelNotFound"),
        (405, "InvalidRequest"),
        (408, "CallTimeout"),
        (409, "Overloaded"),
        (410, "ModelRetired"),
        (413, "ContextOverflow"),
        (422, "InvalidRequest"),
        (429, "RateLimited"),
        (500, "Overloaded"),
        (502, "Overloaded"),
        (503, "Overloaded"),
        (504, "CallTimeout"),
        (522, "CallTimeout"),
        (524, "CallTimeout"),
        (530, "Overloaded"),
    ],
)
@pytest.mark.parametrize("body", ["", "<html><title>Error 1101</title></html>", {}, [], None, {"errors": []}, 7])
def test_without_a_known_code_the_status_decides_whatever_the_body_is(status, kind, body):
    assert type(read(status, body)) is getattr(errors, kind)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (envelope(5007), 5007),
        (envelope("5007"), 5007),
        ({"internalCode": 3021, "httpCode": 429, "name": "AiError", "description": "rate limiting"}, 3021),
        ({"errors": [{"code": 3040}], "internalCode": 3021}, 3040),
        ({"errors": [{"message": "AiError: AiError: 5021: too many tokens"}]}, 5021),
        ({"message": "InferenceUpstreamError: 3040: Capacity temporarily exceeded"}, 3040),
        ({"error": "AiError: 3007: timeout"}, 3007),
        ({"error": {"message": "AiError: 3007: timeout"}}, 3007),
        ({"errors": ["AiError: 3007: timeout"]}, 3007),
        ({"errors": [{"code": 1234, "message": "AiError: 3007: timeout"}]}, 3007),
        ({"errors": [{"code": 1234, "message": "at 2026: nothing known"}]}, 1234),
        ({"errors": [{"message": "in 2026: nothing known"}]}, None),
        ("<p>AiError: 3007: timeout</p>", 3007),
        ({"success": False, "error": [{"code": 2003, "message": "Rate limited"}]}, 2003),
        ({"success": False, "error": [{"code": 2009}], "name": "AiGatewayError", "internalCode": 2009}, 2009),
        ({"errors": [{"code": None, "message": None}]}, None),
    ],
)
def test_the_code_is_found_in_the_documented_order(body, code):
    assert read(429, body).code == code


@pytest.mark.parametrize("status", [429, 200])
def test_the_daily_allocation_is_known_by_its_text_and_ends_at_midnight(status):
    error = read(status, envelope(9999, "you have used up your daily free allocation of 10,000 neurons"))
    assert type(error) is errors.QuotaExhausted
    assert error.until == next_midnight_utc(NOW)


def test_a_prompt_that_the_service_repeats_does_not_stop_the_run():
    error = read(400, envelope(5006, "AiError: got 'daily free allocation' where a list is needed"))
    assert type(error) is errors.InvalidRequest
    assert error.until is None


@pytest.mark.parametrize(
    "text",
    [
        "This model's maximum context length is 131072 tokens. However, you requested 140000 tokens",
        "estimated number of input and maximum output tokens (9) exceeded this model context window limit (8)",
    ],
)
def test_a_full_context_window_is_known_by_its_text(text):
    assert type(read(400, {"errors": [{"message": text}]})) is errors.ContextOverflow


def test_credits_that_are_used_do_not_come_back_at_midnight():
    error = read(402, {"success": False, "error": [{"code": 2021, "message": "Insufficient AI Gateway credits"}]})
    assert (type(error), error.until) == (errors.QuotaExhausted, None)


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (400, "This model was deprecated on 2026-05-30. Please use an alternative model.", "ModelRetired"),
        (410, "The model is no longer available", "ModelRetired"),
        (403, "Model @cf/x/y is not available on the Workers Free plan", "PlanRequired"),
        (403, "@cf/zai-org/glm-5.3-flash requires a Workers Paid plan", "PlanRequired"),
        (429, "daily free allocation used, please upgrade to Cloudflare's Workers Paid plan", "QuotaExhausted"),
        (403, "exceeded this model context window limit (8000)", "ContextOverflow"),
        (400, "JSON Mode couldn't be met", "Retryable"),
    ],
)
def test_what_has_no_sure_code_is_known_by_its_text(status, text, kind):
    error = read(status, {"success": False, "errors": [{"message": text}]})
    assert type(error) is getattr(errors, kind)
    assert text[:40] in error.message


def test_a_challenge_page_stops_the_run_and_says_why():
    error = read(403, "<html>Just a moment...</html>", {"cf-mitigated": "challenge"})
    assert type(error) is errors.AccountBlocked
    assert "bot protection" in error.message


def test_a_page_is_quoted_without_its_tags_and_not_whole():
    page = "<html><style>p {color: red}</style><body><h1>502</h1>\n<p>Bad gateway</p>" + "x" * 10_000
    assert "said '502 Bad gateway xxx" in read(502, page).message
    assert len(read(502, page).message) < 600
    assert "color" not in read(502, page).message


def test_retry_after_and_the_ids_of_the_call_are_kept():
    error = read(429, envelope(3040), {"retry-after": "7", "cf-ai-req-id": "a", "cf-ray": "b"})
    assert (error.retry_after, error.request_id) == (7.0, "a")
    assert read(429, {}, {"retry-after": "Sat, 21 Nov 2026 12:00:30 GMT", "cf-ray": "b"}).retry_after == 30.0
    assert read(429, {}, {"cf-ray": "b"}).request_id == "b"


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        (envelope(3040), True),
        ({"success": False}, True),
        ({"errors": [{"code": 3040}]}, True),
        ({"error": "no"}, True),
        ({"internalCode": 3040}, True),
        ({"result": {}, "success": True, "errors": []}, False),
        ({"id": "r", "object": "response", "error": None, "output": []}, False),
        ({"response": "x"}, False),
        ([], False),
        ("text", False),
    ],
)
def test_an_error_with_http_200_is_told_from_a_result(body, refused):
    assert is_refusal(body) is refused


def test_a_page_in_the_place_of_the_api_is_no_wrong_token():
    kind = {"content-type": "text/html; charset=UTF-8"}
    error = read(403, "<html>Access denied</html>", kind)
    assert isinstance(error, errors.AccountBlocked)
    assert "look for a firewall or proxy" in error.message and "token" not in error.message
    assert isinstance(read(403, {"errors": [{"code": 10000, "message": "no"}]}, kind), errors.Unauthorized)
