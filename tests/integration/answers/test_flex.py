"""``--lane flex``, and ``service_tier`` of lines: what is asked for, what comes of refusals, and what it costs."""

from __future__ import annotations

import json

import pytest

from llmdo.backends.limits import retry
from llmdo.pipelines.options import check_options
from llmdo.runners.inspecting.dryrun import plan_run
from llmdo.settings import environment
from tests.fakes.loopback import Asked, Loopback, Reply
from tests.integration.openai_service import answer

MODEL = "openai/gpt-5"
LIST, FLEX = (2 * 1.25 + 10) / 1e6, (2 * 0.625 + 5) / 1e6  # of a call with 2 tokens in and 1 out
UNAVAILABLE = {"error": {"code": "resource_unavailable", "message": "Resource Unavailable", "type": "server_error"}}
NO_FLEX = {
    "error": {
        "code": "invalid_request_error",
        "message": "Invalid service_tier argument",
        "type": "invalid_request_error",
        "param": "service_tier",
    }
}


class Service:
    """``tiers``: the service_tier of each call, in the order of their coming; ``refuse``: how flex calls end."""

    def __init__(self):
        self.tiers, self.refuse = [], None
        self._server = Loopback(self._answer)
        self.url, self.close = f"{self._server.origin}/v1", self._server.close

    def _answer(self, call: Asked) -> Reply:
        if call.method == "GET":
            return Reply({"object": "list", "data": [{"id": "gpt-5", "object": "model"}]})
        tier = call.body.get("service_tier")
        self.tiers.append(tier)
        if tier == "flex" and self.refuse:
            return self.refuse
        usage = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
        choice = {"index": 0, "message": {"role": "assistant", "content": "so"}, "finish_reason": "stop"}
        body = {"id": "c", "object": "chat.completion", "model": "gpt-5", "choices": [choice], "usage": usage}
        return Reply(body | {"service_tier": tier or "default"})


@pytest.fixture
def service(monkeypatch):
    service = Service()
    monkeypatch.setenv("OPENAI_BASE_URL", service.url)
    # What OpenAI publishes holds for the stand-in.
    monkeypatch.setattr("llmdo.backends.providers.openai_base_url", lambda: environment.OPENAI_API)
    yield service
    service.close()


def lines(tmp_path, *documents):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return path


def rows(tmp_path):
    return [json.loads(line) for path in (tmp_path / "out").rglob("shard-*") for line in path.read_text().splitlines()]


def run(path, tmp_path, **options):
    return answer(path, output=tmp_path / "out", model=MODEL, runner="direct", **options)


def test_every_call_asks_for_flex_and_costs_half(service, tmp_path):
    summary = run(lines(tmp_path, *({"prompt": f"p{at}"} for at in range(3))), tmp_path, lane="flex", max_cost=1.0)
    assert (summary.exit_code, service.tiers) == (0, ["flex"] * 3)
    assert summary.spent.cost_usd == pytest.approx(3 * FLEX)
    assert set(summary.as_json()["prices"]) == {f"{MODEL} (flex)"}
    assert {row["lane"] for row in rows(tmp_path)} == {"flex"}


def test_a_line_decides_for_itself(service, tmp_path):
    path = lines(tmp_path, {"prompt": "a", "service_tier": "default"}, {"prompt": "b", "service_tier": "flex"})
    summary = run(path, tmp_path, lane="flex")
    assert sorted(service.tiers) == ["default", "flex"]
    assert summary.spent.cost_usd == pytest.approx(LIST + FLEX)
    service.tiers.clear()
    again = answer(path, output=tmp_path / "other", model=MODEL, runner="direct")
    assert sorted(service.tiers) == ["default", "flex"]
    assert again.spent.cost_usd == pytest.approx(LIST + FLEX)


def test_an_empty_file_asks_for_nothing(service, tmp_path):
    assert run(lines(tmp_path), tmp_path, lane="flex").exit_code == 0
    assert service.tiers == []


@pytest.fixture
def instant():
    retry.set_instant(True)
    yield
    retry.set_instant(False)


@pytest.mark.usefixtures("instant")
def test_what_is_refused_for_want_of_capacity_is_asked_again_and_at_last_at_list_price(service, tmp_path):
    service.refuse = Reply(UNAVAILABLE, 429)
    summary = run(lines(tmp_path, {"prompt": "a"}), tmp_path, lane="flex")
    assert (summary.exit_code, service.tiers) == (0, ["flex"] * 8 + ["default"])
    assert summary.spent.cost_usd == pytest.approx(LIST)
    assert summary.spent.lost_calls == 0  # refusals are not billed
    (row,) = rows(tmp_path)
    assert "lane" not in row
    assert row["warnings"] == ["asked at list price: flex was refused 8 times"]


def test_a_model_without_flex_is_asked_once_and_from_then_on_at_list_price(service, tmp_path):
    service.refuse = Reply(NO_FLEX, 400)
    path = lines(tmp_path, *({"prompt": f"p{at}"} for at in range(4)))
    summary = run(path, tmp_path, lane="flex", concurrency=1)
    assert (summary.exit_code, service.tiers) == (0, ["flex", "default", "default", "default", "default"])
    assert {tuple(row["warnings"]) for row in rows(tmp_path)} == {("asked at list price: gpt-5 has no flex",)}
    assert summary.spent.cost_usd == pytest.approx(4 * LIST)


def test_another_lane_is_no_reason_to_pay_again(service, tmp_path):
    path = lines(tmp_path, {"prompt": "a"})
    ledger = f"sqlite:///{tmp_path}/ledger.sqlite"
    run(path, tmp_path, lane="flex", ledger=ledger)
    other = answer(path, output=tmp_path / "other", model=MODEL, runner="direct", ledger=ledger)
    assert (other.exit_code, service.tiers) == (0, ["flex"])


@pytest.mark.parametrize(("tier", "rates"), [("priority", (2.5, 20)), ("flex", (1.25, 10)), ("default", (1.25, 10))])
def test_a_dry_run_counts_the_most_that_a_line_may_be_billed_as(service, tmp_path, tier, rates):
    path = lines(tmp_path, {"prompt": "a", "service_tier": tier, "max_tokens": 100})
    plan = plan_run(check_options(files=(str(path),), output=str(tmp_path / "out"), model=MODEL))
    (model,) = plan.models.values()
    assert plan.cost.usd == pytest.approx((model.input_tokens * rates[0] + 100 * rates[1]) / 1e6)
    assert service.tiers == []
