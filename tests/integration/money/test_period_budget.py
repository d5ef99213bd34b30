"""``--budget``: what all runs of an output may spend together, against the local Cloudflare."""

import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta

import pytest
from rich.console import Console

from llmdo.backends.money.prices import Prices
from llmdo.backends.responses import Models
from llmdo.pipelines.options import check_options
from llmdo.pipelines.usage import UsageError
from llmdo.runners.exporting.totals import Totals
from llmdo.runners.inspecting.status import OutputWatch, status_shown
from llmdo.runners.running.checks import check_prices
from llmdo.runners.running.run import run
from llmdo.runners.showing import budget as showing
from llmdo.runners.showing.report import show_spent
from llmdo.storage.errors import StorageError
from llmdo.storage.objects.opening import open_store
from llmdo.storage.output.manifests import MANIFEST_NAME
from llmdo.storage.runs.budgets import BudgetBook
from llmdo.transforms.answers import leases
from tests.integration.cloud import MODEL, OUTPUT

DAY_S, LONGEST_S = 86_400, 120.0  # the second: how long a test of this file may take
MAX_TOKENS = 100
COST = 150 * 0.29 + MAX_TOKENS * 2.25  # millionths of a dollar that a call may reserve


@pytest.fixture(autouse=True)
def within_a_day():
    """What was spent is forgotten at midnight, UTC: no test begins shortly before."""
    if (left := DAY_S - time.time() % DAY_S) < LONGEST_S:
        time.sleep(left)


@pytest.fixture(autouse=True)
def writes_soon(monkeypatch):
    monkeypatch.setattr(leases, "_GAP_S", 0.05)


def lines(count):
    return b"".join(
        json.dumps({"id": i, "prompt": "word " * 40, "max_tokens": MAX_TOKENS}).encode() + b"\n" for i in range(count)
    )


def record_of(cloud):
    return BudgetBook(cloud.store, "output/").read()


@pytest.mark.parametrize("budget", ["0.02 USD/day", "6k tokens"])
def test_a_budget_is_of_all_runs_of_an_output_together(cloud, budget):
    cloud.upload("a.jsonl", lines(300))
    first = cloud.run(budget=budget, concurrency=64)
    assert first.exit_code == 1
    assert f"--budget {'6000 tokens' if 'k' in budget else budget}" in first.problem
    assert (first.until is None) == ("k" in budget)
    record = record_of(cloud)
    tally = record.spent["day"]
    assert not record.leases
    assert tally.usd == pytest.approx(first.spent.cost_usd)
    assert tally.tokens == first.spent.input_tokens + first.spent.output_tokens
    if "USD" in budget:
        assert 0.02 - COST / 1e6 < tally.usd <= 0.02
    else:
        assert 6000 - 150 - MAX_TOKENS < tally.tokens <= 6000
    paid = cloud.stats()["paid"]["calls"]
    again = cloud.run(budget=budget)
    assert (again.exit_code, again.spent.calls, cloud.stats()["paid"]["calls"]) == (1, 0, paid)
    raised = cloud.run(budget="5 USD/day")
    assert (raised.problem, raised.exit_code, cloud.stats()["paid"]["calls"]) == (None, 0, 300), record_of(cloud)
    assert record_of(cloud).spent["ever"].usd == pytest.approx(first.spent.cost_usd + raised.spent.cost_usd)


def test_the_summary_and_status_show_the_budget(cloud):
    cloud.upload("a.jsonl", lines(20))
    summary = cloud.run(budget="1 USD/week")
    shown = summary.as_json()["budget"]
    cost = pytest.approx(summary.spent.cost_usd)
    assert (shown["budget"], shown["spent_usd"], shown["leased_usd"], shown["waiting"]) == ("1 USD/week", cost, 0, 0)
    assert shown["left_usd"] == pytest.approx(1 - summary.spent.cost_usd)
    since, until = (datetime.fromisoformat(shown[name]) for name in ("since", "next_period"))
    assert (since.isoweekday(), until - since) == (1, timedelta(days=7))
    status = OutputWatch("r2://llmdo/output/", None).look()
    assert status.as_json()["budget"] == shown
    written = io.StringIO()
    Console(file=written, width=200).print(status_shown(status))
    assert "Budget of 1 USD/week: $0.0" in written.getvalue()
    written = io.StringIO()
    show_spent(summary, Console(file=written, width=200))
    assert f"{summary.budget}." in written.getvalue()
    assert cloud.run().as_json()["budget"] is None


@pytest.mark.parametrize("budget", ["1 USD/day", "1M tokens/day"])
def test_metrics_have_what_is_left(cloud, monkeypatch, budget):
    monkeypatch.setattr(showing, "_LOOK_S", 0.01)
    cloud.upload("a.jsonl", lines(20))
    cloud.fault(target="ai", latency_s=1.0)
    totals, seen = Totals(), []

    @contextmanager
    def watch(state):
        with totals.of(state):
            yield
            seen.append((state.output_budget, totals.samples()))

    run(check_options(queue="llmdo-input", output=OUTPUT, model=MODEL, budget=budget), watch)
    ((now, samples),) = seen
    name = f"output_budget_left_{'usd' if 'USD' in budget else 'tokens'}"
    assert samples[name, ""] == now.left > 0


def test_two_runs_at_the_same_time_share_a_budget(cloud):
    """Each has files of its own, and the same output."""
    for name in ("a", "b"):
        cloud.upload(f"{name}/x.jsonl", lines(200))
    cloud.fault(target="ai", latency_s=0.05)
    with ThreadPoolExecutor() as threads:
        files = [f"r2://llmdo/input/{name}/" for name in "ab"]
        runs = [threads.submit(cloud.run, input=place, budget="0.02 USD/day") for place in files]
        first, second = (one.result() for one in runs)
    assert (first.exit_code, second.exit_code) == (1, 1)
    spent = first.spent.cost_usd + second.spent.cost_usd
    assert 0.02 - 2 * COST / 1e6 < spent <= 0.02
    assert record_of(cloud).spent["day"].usd == pytest.approx(spent)


def test_a_damaged_record_is_named_before_any_call(cloud):
    cloud.upload("a.jsonl", lines(2))
    cloud.store.put("output/_budget.json", b'{"version": 1, "spent": {"day": {"usd": -5}}}')
    with pytest.raises(
        StorageError, match=r"output/_budget.json is not a budget that this version can read: remove it"
    ):
        cloud.run(budget="5 USD/day")
    assert cloud.stats()["paid"]["calls"] == 0


def test_a_model_without_a_price_needs_a_budget_of_tokens(service):
    given = {"input": ".", "output": "out", "model": "openai/nobodys-model"}
    unknown = Prices(lambda _: Models(()))
    with pytest.raises(UsageError, match=r"--budget: the price of .* is not known: .* give --budget in tokens"):
        check_prices(check_options(**given, budget="5 USD/day"), unknown)
    check_prices(check_options(**given, budget="2M tokens/day"), unknown)


def until(condition, what):
    end = time.monotonic() + 110.0
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.1)
    return found


def test_the_workers_of_processes_share_a_budget(cloud, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(300))
    given = ["run", str(tmp_path / "a.jsonl"), "-o", str(tmp_path / "out"), "-m", MODEL, "--budget", "0.02 USD/day"]
    process = cloud.command(*given, "--processes", "2", "--concurrency", "16", "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err.decode()
    summary = json.loads(out)
    assert "--budget 0.02 USD/day" in summary["problem"] and summary["until"] is not None
    assert 0.02 - 2 * COST / 1e6 < summary["spent"]["cost_usd"] <= 0.02
    assert summary["budget"]["spent_usd"] == pytest.approx(summary["spent"]["cost_usd"])
    assert summary["budget"]["leased_usd"] == 0


def test_a_run_that_is_killed_leaves_at_most_what_it_had_leased(cloud, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(300))
    out = tmp_path / "out"
    given = ["run", str(tmp_path / "a.jsonl"), "-o", str(out), "-m", MODEL, "--budget", "0.02 USD/day"]
    cloud.fault(target="ai", latency_s=0.2)
    process = cloud.command(*given, "--concurrency", "8")
    until(lambda: cloud.stats()["paid"]["calls"] > 30, "no calls")
    process.kill()
    process.communicate()
    cloud.no_faults()
    left = sum(one.usd for one in BudgetBook(open_store(str(out)), "").read().leases.values())
    assert left <= 0.002 + 8 * COST / 1e6
    again = cloud.command(*given, "--json")
    summary = json.loads(again.communicate(timeout=300)[0])
    assert again.returncode == 1
    # Answers from the ledger cost nothing, and equal prompts cost the same.
    paid = cloud.stats()["paid"]["calls"] * summary["spent"]["cost_usd"] / summary["spent"]["calls"]
    assert 0.02 - left - COST / 1e6 < paid <= 0.02


@pytest.mark.prism
def test_a_stream_waits_for_the_next_period_and_goes_on(cloud, tmp_path):
    ahead = tmp_path / "ahead"
    ahead.write_text("0")
    first = (
        "import time, pathlib; from llmdo.storage.objects.r2_client import R2Client; "
        f"R2Client.now = lambda _: 1796083200.0 + float(pathlib.Path({str(ahead)!r}).read_text()); "
        "from llmdo.transforms.answers import leases; leases._LOOK_S = leases._GAP_S = 0.1; "
        "from llmdo.runners.showing import budget; budget._LOOK_S = 0.1; "
        "from llmdo.runners.showing import progress; progress._PLAIN_EVERY = 0.2; "
    )
    given = ["--queue", "llmdo-input", "-o", OUTPUT, "-m", MODEL, "--budget", "6k tokens/hour", "--batch-seconds", "1"]
    process, said = cloud.command("stream", *given, "--json", "--json-progress", first=first), []
    reader = threading.Thread(target=lambda: [said.append(line.decode()) for line in process.stderr])
    reader.start()
    try:
        cloud.upload("a.jsonl", lines(100))
        until(lambda: any("waiting for --budget 6000 tokens/hour" in line for line in said), "progress does not say it")
        assert process.poll() is None
        until(lambda: record_of(cloud).spent["ever"].tokens > 6000 - 150 - MAX_TOKENS, "it is not used up")
        assert record_of(cloud).spent["ever"].tokens <= 6000
        paid = cloud.stats()["paid"]["calls"]
        ahead.write_text("3600")
        until(lambda: cloud.stats()["paid"]["calls"] == 100, "the next hour's money is not used")
        assert paid < 100
        until(lambda: any(key.endswith(MANIFEST_NAME) for key in cloud.keys("output/")), "no manifest")
        process.terminate()
        assert process.wait(timeout=120) == 0
        reader.join()
        assert json.loads(process.stdout.read())["budget"]["spent_tokens"] < 6000
        log = "".join(said)
        assert "calls wait until then" in log and "calls go on" in log
    finally:
        process.kill()
        reader.join()
