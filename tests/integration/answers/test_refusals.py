"""What a refusal costs, through Beam: calls are counted at the server."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

import pytest

from llmdo.backends.limits.rates import Rates
from tests.integration.cloud import MODEL, OUTPUT, prompts

BGE = "@cf/baai/bge-m3"
WINDOW = 16
DAY_S = 86_400


def halves() -> bytes:
    """1,000 lines; the last 500 have a word of their own, which a fault can look for."""
    dear = (json.dumps({"id": i, "prompt": f"dear {i}"}).encode() + b"\n" for i in range(500, 1000))
    return prompts(500, "cheap") + b"".join(dear)


def check_stop(cloud, answered: int) -> None:
    """What was paid was answered; after the first refusal came only those of the calls in flight by then."""
    stats = cloud.stats()
    assert stats["paid"]["calls"] == answered
    assert 1 <= stats["ai"]["by_status"]["429"] <= WINDOW


def check_rest(cloud) -> None:
    """Every line once, and every call paid once."""
    paid = cloud.stats()["paid"]
    assert (paid["calls"], len(paid["by_prompt"]), max(paid["by_prompt"].values())) == (1000, 1000, 1)
    assert [row["id"] for row in cloud.rows("a.jsonl")] == list(range(1000))
    cloud.check()


@pytest.mark.fast("*-direct")
@pytest.mark.parametrize(("code", "runner"), [(3036, "direct"), pytest.param(4006, "prism", marks=pytest.mark.prism)])
def test_the_daily_allowance_stops_a_run_at_once_and_the_next_one_pays_only_for_the_rest(cloud, code, runner):
    cloud.upload("a.jsonl", halves())
    cloud.fault(target="ai", status=429, code=code, match="dear")
    begun = time.time()
    summary = cloud.run(runner=runner, concurrency=f"fixed:{WINDOW}")
    answered = summary.counts.answered
    assert summary.exit_code == 1
    # Prism reads the parts of a file side by side.
    assert answered == 500 if runner == "direct" else 0 < answered <= 500
    assert "daily free allocation" in summary.problem
    assert (summary.until % DAY_S, begun < summary.until <= time.time() + DAY_S) == (0, True)
    (limits,) = summary.limits
    assert limits.calls == cloud.stats()["ai"]["by_status"]["429"] + answered  # read before the engine was closed
    check_stop(cloud, answered)
    cloud.no_faults()
    again = cloud.run(runner=runner)
    assert (again.exit_code, again.until, again.spent.calls) == (0, None, 1000 - answered)
    check_rest(cloud)


def test_the_command_says_when_it_can_go_on(cloud):
    cloud.upload("a.jsonl", halves())
    cloud.fault(target="ai", status=429, code=4006, match="dear")
    command = ["run", "--queue", "llmdo-input", "--output", OUTPUT, "--model", MODEL, "--json"]
    begun = time.time()
    process = cloud.command(*command, "--concurrency", f"fixed:{WINDOW}")
    out, err = process.communicate(timeout=120)
    said, shown = json.loads(out), err.decode()
    assert (process.returncode, said["exit_code"], said["answered"]) == (1, 1, 500)
    until = datetime.fromisoformat(said["until"])
    assert until.utcoffset() == UTC.utcoffset(None)
    assert (until.timestamp() % DAY_S, begun < until.timestamp() <= time.time() + DAY_S) == (0, True)
    assert said["problem"] in shown
    assert f"It can resume from {until:%Y-%m-%d} 00:00 UTC: run the same command again then." in shown
    check_stop(cloud, 500)
    cloud.no_faults()
    again = cloud.command(*command)
    out, err = again.communicate(timeout=120)
    assert (again.returncode, json.loads(out)["until"]) == (0, None)
    assert b"can go on" not in err
    check_rest(cloud)


@pytest.mark.fast("37")
@pytest.mark.parametrize("position", [0, 37, 99])
def test_one_invalid_text_of_a_hundred_costs_the_others_nothing_but_some_calls(cloud, position):
    lines = ({"id": i, "text": "invalid" if i == position else f"text {i}"} for i in range(100))
    cloud.upload("a.jsonl", b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    cloud.fault(target="ai", status=400, match="invalid")
    summary = cloud.run(model=BGE)
    assert (summary.exit_code, summary.counts.answered, summary.counts.failed) == (3, 99, 1)
    (limits,) = summary.limits
    stats = cloud.stats()
    assert limits.calls == stats["ai"]["by_status"]["400"] + stats["paid"]["calls"] <= 15
    assert (len(stats["paid"]["by_prompt"]), max(stats["paid"]["by_prompt"].values())) == (99, 1)
    rows = cloud.rows("a.jsonl")
    assert [row["id"] for row in rows] == list(range(100))
    (failed,) = [row for row in rows if row.get("error")]
    assert (failed["id"], failed["error"]["class"]) == (position, "InvalidRequest")
    cloud.check()


@pytest.mark.fast("*-37")
@pytest.mark.parametrize("position", [0, 37, 99])
@pytest.mark.parametrize("batch", [False, True])
def test_one_invalid_text_of_a_hundred_in_one_line_loses_no_other(cloud, position, batch):
    texts = ["invalid" if i == position else f"text {i}" for i in range(100)]
    line = (
        {"custom_id": "t", "url": "/v1/embeddings", "body": {"input": texts}} if batch else {"id": "t", "text": texts}
    )
    cloud.upload("a.jsonl", json.dumps(line).encode() + b"\n")
    cloud.fault(target="ai", status=400, match="invalid")
    summary = cloud.run(model=BGE, max_cost=0.5)
    assert (summary.exit_code, summary.counts.answered, summary.counts.failed) == (0, 1, 0)
    (limits,) = summary.limits
    stats = cloud.stats()
    assert limits.calls == stats["ai"]["by_status"]["400"] + stats["paid"]["calls"] <= 15
    assert (len(stats["paid"]["by_prompt"]), max(stats["paid"]["by_prompt"].values())) == (99, 1)
    (row,) = cloud.rows("a.jsonl")
    data = row["response"]["body"]["data"]
    assert [item["index"] for item in data] == list(range(100))
    assert [i for i, item in enumerate(data) if item["embedding"] is None] == [position]
    assert set(data[position]["error"]) == {"code", "message"}
    assert row["warnings"] == [f"1 of 100 texts has no vector: the one with index {position}"]
    assert 0 < row["usage"]["cost_usd"] == pytest.approx(summary.spent.cost_usd)
    cloud.check()


def test_a_line_of_more_texts_than_a_call_takes_is_answered_by_as_many_as_it_needs(cloud):
    cloud.upload("a.jsonl", json.dumps({"text": [f"text {i}" for i in range(250)]}).encode() + b"\n")
    summary = cloud.run(model=BGE)
    assert (summary.exit_code, cloud.stats()["paid"]["calls"]) == (0, 3)
    (row,) = cloud.rows("a.jsonl")
    assert [len(item["embedding"]) for item in row["response"]["body"]["data"]] == [1024] * 250


@pytest.mark.fast("5018")
@pytest.mark.parametrize(
    "refused",
    [{"status": 403, "code": 5016}, {"status": 403, "code": 5018}, {"status": 410}],
    ids=["5016", "5018", "410"],
)
def test_a_model_that_nobody_may_use_is_asked_once_for_a_hundred_texts(cloud, refused):
    lines = ({"text": f"text {i}", "model": BGE} for i in range(100))
    cloud.upload("a.jsonl", b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    cloud.fault(target="ai", **refused, match=BGE)
    summary = cloud.run()
    assert (summary.exit_code, summary.counts.failed) == (3, 100)
    assert cloud.stats()["ai"]["by_status"][str(refused["status"])] == 1


def test_a_request_that_is_refused_all_the_time_is_given_up_after_its_deadline(cloud):
    cloud.upload("a.jsonl", prompts(2))
    cloud.fault(target="ai", status=429, code=3040, match="prompt")
    began = time.monotonic()
    summary = cloud.run(deadline=1.0)
    assert time.monotonic() - began < 100  # 20 tries would take some minutes
    assert (summary.exit_code, summary.counts.failed) == (3, 2)
    assert {row["error"]["class"] for row in cloud.rows("a.jsonl")} == {"Overloaded"}
    (limits,) = summary.limits
    assert limits.refused == cloud.stats()["ai"]["by_status"]["429"] < 40


def test_each_of_some_workers_keeps_to_its_part_of_the_rates(cloud):
    cloud.upload("a.jsonl", prompts(20))
    (limits,) = cloud.run(rpm=6000, tpm=9e6, workers=3).limits
    assert limits.rates == Rates(2000, 3e6)
