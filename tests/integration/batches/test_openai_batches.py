"""Files handed over as batches to the local OpenAI by `llmdo run --mode batch`: each line is paid for once."""

from __future__ import annotations

import json

import pytest
from openai import OpenAI

from tests.integration.batches.user import prompts


def test_three_thousand_lines_and_a_bad_one_are_answered_once_whatever_the_files_look_like(user):
    user.server.fault("openai", batch="hold", state="scheduling", polls=2)
    for kind in ("shuffle", "repeat", "foreign"):
        user.server.fault("openai", batch=kind)
    asked = prompts(3000)
    summary = user.run(asked, json.dumps({"id": "bad", "messages": 7}))
    assert (summary.counts.answered, summary.counts.failed) == (3000, 1), summary
    user.check(asked)
    assert calls(user) == 0, "nothing was called by itself"


@pytest.mark.parametrize("kind", ["expire", "cancel", "fail"])
def test_what_a_batch_has_not_answered_at_its_end_is_called_and_the_rest_is_not(user, kind):
    user.server.fault("openai", batch=kind, share=0.5, count=1)
    asked = prompts(40)
    user.run(asked)
    user.check(asked)
    assert calls(user) == 20


def test_rows_that_got_errors_or_lack_are_called_and_one_that_is_refused_is_an_error(user):
    for match, effect in {"0 ": {"status": 500}, "1 ": {"status": 429}, "2 ": {"status": 0}}.items():
        user.server.fault("openai", batch="row", match=f"line {match}", **effect)
    user.server.fault("openai", batch="row", match="line 3 ", status=400, code="invalid_value")
    asked = prompts(12)
    summary = user.run(asked)
    assert (summary.counts.answered, summary.counts.failed) == (11, 1)
    (failed,) = [row for row in user.rows() if row.get("error")]
    assert (failed["id"], failed["error"]["class"]) == (3, "InvalidRequest")
    assert calls(user) == 3
    assert set(user.server.stats()["paid"]["by_prompt"].values()) == {1}


@pytest.mark.parametrize("faults", [[], [{"batch": "hide", "polls": 1}], [{"batch": "forget"}]])
def test_a_batch_whose_making_got_no_reply_is_found_and_paid_once(user, faults):
    for fault in faults:
        user.server.fault("openai", **fault)
    user.server.fault("openai", match="/batches", drop=True, after=True, count=1)
    asked = prompts(30)
    user.run(asked)
    user.check(asked)
    assert (calls(user), len(made())) == (0, 1)


def test_a_batch_that_was_not_made_is_made_anew(user):
    user.server.fault("openai", match="/batches", drop=True, count=1)
    asked = prompts(30)
    user.run(asked)
    user.check(asked)
    assert (calls(user), len(made())) == (0, 1)


def test_more_tokens_than_may_wait_are_handed_over_in_smaller_batches_one_after_the_other(user):
    user.server.fault("openai", batch="limit", tokens=600)
    asked = [f"{number} {'word ' * 40}" for number in range(20)]
    user.run(asked)
    user.check(asked)
    assert calls(user) == 0
    assert sum(batch.status == "failed" for batch in made()) < len(made())


@pytest.mark.parametrize("count", [0, 1])
def test_no_line_and_one_line_are_files_too(user, count):
    user.run(prompts(count))
    user.check(prompts(count))


def made():
    """All batches that there are."""
    return list(OpenAI(max_retries=0).batches.list(limit=100))


def calls(user):
    """How many answers came by calls of their own: rows of batches are paid with their custom_ids."""
    paid = user.server.stats()["paid"]
    return paid["calls"] - sum(paid["by_line"].values())
