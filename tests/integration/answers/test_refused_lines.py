"""The whole command, against a service that refuses some lines, or asks to wait."""

from __future__ import annotations

import time
from collections import Counter
from datetime import datetime

import pytest

from llmdo.runners.inspecting.verify import verify
from tests.integration.called import called, write_lines

# A word of the prompt → status, body, the error's class, and the service's words that the row must have.
REFUSED = {
    "FLAGGED": (
        403,
        {"error": {"code": 403, "message": "The prompt was flagged", "metadata": {"reasons": ["self-harm"]}}},
        "ContentFiltered",
        "self-harm",
    ),
    "PICTURE": (
        404,
        {"error": {"code": 404, "message": "No endpoints found that support image input"}},
        "InvalidRequest",
        "support image input",
    ),
    "ENDLESS": (
        413,
        {"error": {"message": "Request too large: Limit 8000, Requested 20000", "code": "rate_limit_exceeded"}},
        "ContextOverflow",
        "Requested 20000",
    ),
    "SCHEMA": (
        400,
        [{"error": {"code": 400, "message": "Schemas go without functions", "status": "INVALID_ARGUMENT"}}],
        "InvalidRequest",
        "Schemas go without functions",
    ),
}


def run(folder, service, prompts):
    """The command's exit code and summary, and the rows of its output by prompt number."""
    write_lines(folder, [{"id": number, "prompt": prompt} for number, prompt in enumerate(prompts)])
    code, summary, _, rows = called(folder, service.url)
    return code, summary, {row["id"]: row for row in rows}


def test_what_is_refused_of_one_line_is_that_lines_error_after_one_call(tmp_path, serve):
    service = serve(lambda prompt, _: (*REFUSED[prompt][:2], {}) if prompt in REFUSED else None)
    prompts = ["a", "b", *REFUSED, "c", "d"]
    code, summary, rows = run(tmp_path, service, prompts)
    assert (code, summary["answered"], summary["failed"]) == (3, 4, len(REFUSED))
    assert service.calls == Counter(prompts)
    for number, prompt in enumerate(prompts):
        row = rows[number]
        if prompt in REFUSED:
            assert row["error"]["class"] == REFUSED[prompt][2]
            assert REFUSED[prompt][3] in row["error"]["message"]
        else:
            assert row["response"]["body"]["choices"][0]["message"]["content"] == f"echo: {prompt}"
    assert verify(str(tmp_path / "out"), [str(tmp_path / "in.jsonl")]).ok


def test_a_minutes_quota_is_waited_out_although_it_speaks_of_billing(tmp_path, serve):
    said = (
        "You exceeded your current quota, please check your plan and billing details. Quota exceeded for metric: "
        "generate_content_free_tier_requests, limit: 5. Please retry in 0.4s."
    )
    body = {"error": {"code": 429, "message": said, "status": "RESOURCE_EXHAUSTED"}}
    service = serve(lambda _, calls: (429, body, {}) if calls == 1 and service.calls.total() <= 3 else None)
    code, summary, _ = run(tmp_path, service, [f"p{number}" for number in range(6)])
    assert (code, summary["answered"]) == (0, 6)
    assert service.calls.total() == 9


def test_a_day_that_is_used_up_stops_the_run_and_says_until_when(tmp_path, serve):
    said = "Rate limit of 50 per 86400s exceeded for UserByModelByDay. Please wait 41000 seconds before retrying."
    body = {"error": {"code": "RateLimitReached", "message": said}}
    service = serve(lambda *_: (429, body, {"Retry-After": "41000"}))
    code, summary, rows = run(tmp_path, service, [f"p{number}" for number in range(40)])
    assert (code, summary["answered"], summary["failed"], rows) == (1, 0, 0, {})
    assert said in summary["problem"]
    assert datetime.fromisoformat(summary["until"]).timestamp() == pytest.approx(time.time() + 41_000, abs=120)
    assert max(service.calls.values()) == 1
