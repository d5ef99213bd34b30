"""``--sample``: some lines are answered first, and no answer is ever paid for twice."""

import json
import os
import pty
import random
import subprocess
import sys

import pytest

from tests.integration.cloud import MODEL, OUTPUT

INPUT = ("r2://llmdo/input/",)
ON = ["--input", *INPUT, "--output", OUTPUT, "--model", MODEL]


def lines(count, name, seed=0):
    r = random.Random(f"{name} {seed}")
    rows = ({"id": f"{name}{i}", "prompt": "word " * max(1, int(r.lognormvariate(3, 1)))} for i in range(count))
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def upload(cloud, seed=0):
    """119 lines in files of very different sizes."""
    for name, count in (("a", 100), ("b", 18), ("c", 1)):
        cloud.upload(f"{name}.jsonl", lines(count, name, seed))
    cloud.upload("empty.jsonl", b"")


def told(cloud, *more, code, answer=None):
    """What ``run --json`` prints."""
    process = cloud.command("run", *ON, *more, "--json")
    out, err = process.communicate(answer, timeout=120)
    assert process.returncode == code, err.decode()
    return json.loads(out)


def paid(cloud):
    return cloud.stats()["paid"]["calls"]


def spent(cloud, summary):
    return sum(one.cost.usd for one in summary.settled)


def test_a_sample_is_told_and_the_run_that_follows_pays_for_the_other_lines_alone(cloud):
    upload(cloud)
    first = told(cloud, "--sample", "20", code=5)
    sample = first["sample"]
    assert (first["exit_code"], sample["lines"], sample["lines_in_all"], paid(cloud)) == (5, 20, 119, 20)
    assert sample["outcomes"] == {"answered": 20} and sample["from_ledger"] == 0
    assert {one["outcome"] for one in sample["examples"]} == {"answered"}
    assert all(one["said"].startswith("echo: word") and one["id"][0] in "abc" for one in sample["examples"])
    summary = cloud.run(queue=None, input=INPUT)
    assert (summary.exit_code, paid(cloud)) == (0, 119)
    whole = spent(cloud, summary)
    assert sample["cost_usd"]["low"] <= whole <= sample["cost_usd"]["high"]
    assert sample["to_pay_usd"]["low"] <= summary.spent.cost_usd <= sample["to_pay_usd"]["high"]
    for tokens in ("input_tokens", "output_tokens"):
        assert sample[tokens]["low"] <= getattr(summary.counts, tokens) <= sample[tokens]["high"]
    cloud.check()


def test_with_yes_the_run_follows_at_once_and_tells_of_both(cloud):
    upload(cloud)
    summary = told(cloud, "--sample", "10", "--yes", code=0)
    assert (summary["answered"], paid(cloud)) == (119, 119)
    assert summary["sample"]["lines"] == 10 and summary["spent"]["calls"] == 119
    cloud.check()


@pytest.mark.parametrize(("answer", "code", "calls"), [(b"n\n", 5, 20), (b"y\n", 0, 119)], ids=["no", "yes"])
def test_at_a_terminal_it_asks_before_the_rest(cloud, answer, code, calls):
    upload(cloud)
    ours, its = pty.openpty()
    os.write(ours, answer)
    done = subprocess.run(
        [sys.executable, "-m", "llmdo", "run", *ON, "--sample", "20"],
        env=os.environ | cloud.env,
        stdin=its,
        capture_output=True,
        timeout=120,
        check=False,
    )
    os.close(ours)
    os.close(its)
    assert done.returncode == code, done.stderr.decode()
    assert b"20 of 119 lines sampled" in done.stdout and b"Answer the other 99 lines?" in done.stderr
    assert paid(cloud) == calls


def test_the_same_sample_is_not_paid_for_again_and_a_larger_input_is_sampled_anew(cloud):
    upload(cloud)
    one, two = (told(cloud, "--sample", "20", code=5)["sample"] for _ in range(2))
    assert (paid(cloud), two["from_ledger"], two["spent"]["calls"]) == (20, 20, 0)
    assert one["cost_usd"] == pytest.approx(two["cost_usd"])
    cloud.upload("d.jsonl", lines(50, "d"))
    assert told(cloud, "--sample", "20", code=5)["sample"]["lines_in_all"] == 169


def test_fewer_lines_than_the_sample_are_all_answered_and_nothing_is_uncertain(cloud):
    upload(cloud)
    sample = told(cloud, "--sample", "500", code=5)["sample"]
    assert (sample["lines"], paid(cloud)) == (119, 119)
    assert sample["cost_usd"]["low"] == sample["cost_usd"]["high"] and sample["to_pay_usd"]["high"] == 0
    assert cloud.run(queue=None, input=INPUT).spent.calls == 0
    cloud.check()


def test_what_has_an_answer_in_the_output_is_neither_drawn_nor_estimated(cloud):
    cloud.upload("a.jsonl", lines(100, "a"))
    cloud.run(queue=None, input=INPUT)
    cloud.upload("b.jsonl", lines(30, "b"))
    sample = told(cloud, "--sample", "10", code=5)["sample"]
    assert (sample["lines_in_all"], sample["files"], sample["files_done"], paid(cloud)) == (30, 1, 1, 110)
    assert told(cloud, "--sample", "10", "--yes", code=0)["answered"] == 30
    nothing = told(cloud, "--sample", "10", code=0)
    assert (nothing["exit_code"], "sample" in nothing, paid(cloud)) == (0, False, 130)


def test_lines_that_fail_are_counted_and_lower_the_estimate(cloud):
    upload(cloud)
    cloud.fault(target="ai", status=400, code=5006, probability=0.3, seed=3)
    sample = told(cloud, "--sample", "20", code=5)["sample"]
    failed = 20 - sample["outcomes"]["answered"]
    assert failed > 0 and sum(sample["outcomes"].values()) == 20
    assert {one["outcome"] for one in sample["examples"]} == sample["outcomes"].keys()
    assert sample["cost_usd"]["low"] > 0


def test_answers_that_max_tokens_cuts_off_are_counted_as_such(cloud):
    upload(cloud)
    sample = told(cloud, "--sample", "20", "--max-tokens", "3", code=5)["sample"]
    assert sample["outcomes"]["truncated"] > 10
    assert sample["output_tokens"]["estimate"] <= 3 * 119


def test_a_budget_holds_for_the_sample_and_the_rest_together(cloud):
    upload(cloud)
    stopped = told(cloud, "--sample", "20", "--yes", "--max-tokens-total", "2500", code=1)
    assert "--max-tokens-total 2500" in stopped["problem"] and 0 < paid(cloud) < 20
    before = paid(cloud)
    both = told(cloud, "--sample", "20", "--yes", "--max-tokens-total", "9000", code=1)
    assert both["sample"]["lines"] == 20 and before < paid(cloud) < 119
    used = both["spent"]
    assert used["input_tokens"] + used["output_tokens"] <= 9000
    told(cloud, code=0)
    assert paid(cloud) == 119
    cloud.check()


def test_a_sample_that_is_killed_pays_for_nothing_but_the_calls_in_flight_again(cloud):
    upload(cloud)
    cloud.fault(target="ai", latency_s=0.3)
    process = cloud.command("run", *ON, "--sample", "40", "--json", "--concurrency", "fixed:2")
    while paid(cloud) < 6:
        assert process.poll() is None
    process.kill()
    process.communicate()
    cloud.no_faults()
    summary = told(cloud, "--sample", "40", "--yes", code=0)
    assert summary["answered"] == 119 and 119 <= paid(cloud) <= 119 + 2
    assert summary["sample"]["from_ledger"] >= 4


def test_a_queue_cannot_be_drawn_from_and_half_an_option_is_refused(cloud):
    for words, remedy in (
        (("--queue", "llmdo-input", "--sample", "5"), "--sample needs FILES"),
        (("--input", *INPUT, "--sample", "5", "--dry-run"), "give one of them"),
        (("--input", *INPUT, "--yes"), "give that, too"),
    ):
        process = cloud.command("run", "--output", OUTPUT, "--model", MODEL, *words)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 2 and remedy in " ".join(err.decode().split())
    assert paid(cloud) == 0


def dry(cloud, *more):
    process = cloud.command("run", *ON, "--dry-run", "--json", *more)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    return json.loads(out)


def test_a_dry_run_knows_what_is_paid_and_what_such_answers_use(cloud, tmp_path):
    upload(cloud)
    ledger = ("--ledger", f"sqlite:///{tmp_path}/kept.sqlite")
    before = dry(cloud, *ledger)
    assert (before["calls"], before["kept"], before["cost_usd_likely"]) == (119, 0, None)
    assert not (tmp_path / "kept.sqlite").exists()
    told(cloud, "--sample", "20", *ledger, code=5)
    after = dry(cloud, *ledger)
    assert (after["calls"], after["kept"], after["lines"]) == (99, 20, 119)
    assert after["cost_usd_at_most"] < before["cost_usd_at_most"]
    other = dry(cloud, *ledger, "--system", "Another prompt")
    assert (other["calls"], other["kept"], other["cost_usd_at_most"] > after["cost_usd_at_most"]) == (119, 0, True)
    rest = cloud.run(queue=None, input=INPUT, ledger=ledger[1])
    assert rest.spent.calls == 99
    assert after["cost_usd_likely"] == pytest.approx(rest.spent.cost_usd, rel=0.7)
    assert after["cost_usd_likely"] < after["cost_usd_at_most"] / 10
    nothing = dry(cloud, *ledger, "--output", "r2://llmdo/another/")
    assert (nothing["calls"], nothing["kept"], nothing["cost_usd_at_most"], nothing["cost_usd_likely"]) == (
        0,
        119,
        0,
        0,
    )


@pytest.mark.slow
def test_a_dry_run_looks_into_a_ledger_of_objects_and_leaves_it_as_it_is(cloud):
    cloud.upload("a.jsonl", lines(30, "a"))
    ledger = ("--ledger", "r2://llmdo/ledger/")
    assert dry(cloud, *ledger)["kept"] == 0 and cloud.keys("ledger/") == []
    told(cloud, "--sample", "5", *ledger, code=5)
    kept = cloud.keys("ledger/")
    assert (dry(cloud, *ledger)["kept"], cloud.keys("ledger/")) == (5, kept)
