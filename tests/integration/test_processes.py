"""``run --processes``: several processes of one machine give what one gives, as one run."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from llmdo.backends.money.limits import Limits
from llmdo.backends.money.money import Budget
from llmdo.backends.money.spent import Spent
from llmdo.runners.workers.shared_budget import SharedBudget
from llmdo.runners.workers.shared_limits import SharedLimits
from tests.integration.cloud import MODEL, OUTPUT, prompts
from tests.integration.test_end_to_end import FILES, comparable, upload_all

WHERE = ("--input", "r2://llmdo/input/", "--output", OUTPUT, "--model", MODEL)
LONG_PROMPTS = b"".join(
    json.dumps({"id": number, "prompt": "word " * 40, "max_tokens": 100}).encode() + b"\n" for number in range(1_000)
)


@pytest.mark.parametrize("source", ["queue", "listing"])
def test_rows_files_and_counts_are_those_of_one_process(cloud, source):
    upload_all(cloud)
    where = {"input": "r2://llmdo/input/"} if source == "listing" else {}
    many = cloud.run(processes=2, **where)
    assert (many.problem, many.in_work, many.left) == (None, (), {})
    cloud.check()
    assert cloud.backlog() == (len(FILES) if source == "listing" else 0)
    rows = {name: comparable(cloud.rows(name)) for name in FILES}
    for key in cloud.keys():  # noqa: SIM118  a method, no dict
        cloud.store.delete(key)
    one = cloud.run(input="r2://llmdo/input/", ledger="none")
    assert {name: comparable(cloud.rows(name)) for name in FILES} == rows
    assert many.exit_code == one.exit_code == 3
    apart = {"shards"}  # a stretch's last shards are its own
    assert {k: v for k, v in counts_of(many).items() if k not in apart} == {
        k: v for k, v in counts_of(one).items() if k not in apart
    }
    assert sum(limits.calls for limits in many.limits) == sum(limits.calls for limits in one.limits)
    assert rounded(many.spent) == rounded(one.spent)


def counts_of(summary):
    return {name: getattr(summary.counts, name) for name in summary.counts.__dataclass_fields__}


def rounded(spent):
    return replace(spent, neurons=round(spent.neurons, 6))


def test_exit_codes_are_those_of_one_process(cloud):
    cloud.upload("good.jsonl", prompts(5))
    assert command(cloud)[:2] == (0, 0)
    cloud.upload("some.jsonl", b'{"prompt": "x"}\n{broken\n')
    assert command(cloud)[:2] == (3, 3)
    cloud.upload("more.jsonl", prompts(5, "more"))
    cloud.fault(target="ai", probability=1.0, status=401, code=10000)
    code, said, problem = command(cloud)
    assert (code, said) == (1, 1) and "CLOUDFLARE_API_TOKEN" in problem
    assert command(cloud, "--reuse", "same-request")[:2] == (2, 2)


def command(cloud, *more):
    """The exit code, that of the summary, and the problem that it states."""
    process = cloud.command("run", *WHERE, "--processes", "2", "--json", *more)
    out, err = process.communicate(timeout=120)
    assert b"Traceback" not in err, err.decode()
    said = json.loads(out)
    return process.returncode, said["exit_code"], said["problem"]


def test_there_is_one_progress_line_for_all_and_one_summary(cloud):
    cloud.upload("big.jsonl", prompts(1_500, "a prompt of some length, so that the file has several stretches"))
    process = cloud.command("run", *WHERE, "--processes", "2", "--range-bytes", "65536", "--concurrency", "64")
    out, err = (text.decode() for text in process.communicate(timeout=120))
    assert process.returncode == 0, err
    lines = [line for line in err.splitlines() if " lines · " in line or " lines of " in line]
    assert lines and lines[-1].startswith("1,500 lines") and lines[-1].endswith("1 of 1 file")
    assert " · $" in lines[-1]
    assert "1,500" in out and out.count("Spent:") == 1
    assert cloud.stats()["paid"]["calls"] == 1_500


def test_texts_are_embedded_by_as_few_calls_as_in_one_process(cloud):
    cloud.upload("a.jsonl", FILES["embed.jsonl"])
    calls = []
    for processes in (1, 2):
        before = cloud.stats()["ai"]["calls"]
        output = f"r2://llmdo/output-{processes}/"
        summary = cloud.run(processes=processes, input="r2://llmdo/input/", output=output, ledger="none")
        assert (summary.exit_code, summary.counts.answered) == (0, 130)
        calls.append(cloud.stats()["ai"]["calls"] - before)
    assert calls[0] == calls[1] < 5


@pytest.mark.parametrize("limit", [{"max_tokens_total": 60_000}, {"max_cost": 0.05}], ids=["tokens", "cost"])
def test_a_budget_holds_over_all_processes_and_is_used_up(cloud, limit):
    cloud.upload("a.jsonl", LONG_PROMPTS)
    summary = cloud.run(processes=3, range_bytes=65_536, batch_size=20, **limit)
    assert summary.exit_code == 1
    assert "could be exceeded by the next call: raise it" in summary.problem
    spent = summary.spent
    assert cloud.stats()["paid"]["calls"] == spent.calls == summary.counts.answered
    if "max_cost" in limit:
        # What is left is not enough for one more call at its longest.
        assert 0.05 - (150 * 0.29 + 100 * 2.25) / 1e6 < spent.cost_usd <= 0.05
    else:
        assert 60_000 - 250 < spent.input_tokens + spent.output_tokens <= 60_000
    again = cloud.run(processes=3, max_cost=5.0)
    assert (again.exit_code, again.counts.answered) == (0, 1_000 - spent.calls)
    cloud.check()
    assert cloud.stats()["paid"]["calls"] == 1_000


def test_a_run_that_goes_on_after_it_was_asleep_has_what_is_left_of_its_budget():
    limits = Limits(max_tokens=100)
    budget = Budget(limits)
    budget.add(Spent(calls=1, input_tokens=70, cost_usd=None, unpriced=1))
    shared = SharedBudget(budget)
    assert shared._purse.rest.tokens == 30
    budget.add(Spent(calls=1, input_tokens=70))
    assert SharedBudget(budget)._purse.rest.tokens <= 0


def test_one_worker_alone_has_all_calls_in_flight(cloud):
    cloud.upload("small.jsonl", prompts(240))
    cloud.fault(target="ai", probability=1.0, latency_s=0.5)
    summary = cloud.run(processes=4, concurrency="fixed:40", input="r2://llmdo/input/")
    assert summary.exit_code == 0
    assert (summary.limits[0].window, summary.limits[0].calls) == (40, 240)
    assert cloud.stats()["ai"]["max_in_flight"] == 40


@pytest.mark.parametrize("broken", ["deal", "receive"])
def test_a_fault_of_the_runs_own_process_ends_the_run_instead_of_letting_it_wait(cloud, monkeypatch, broken):
    def fail(*_):
        raise ValueError("nobody expected this")

    kind = {"deal": SharedLimits, "receive": SharedBudget}[broken]
    monkeypatch.setattr(kind, broken, fail)
    cloud.upload("a.jsonl", prompts(200))
    cloud.fault(target="ai", probability=1.0, latency_s=1.0)
    summary = cloud.run(processes=2, input="r2://llmdo/input/", max_cost=5.0, concurrency=4)
    assert summary.exit_code == 1
    assert "nobody expected this" in summary.problem
