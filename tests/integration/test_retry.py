"""``llmdo retry`` from faults to a green verification, against the stand-in for Cloudflare."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import signal
from contextlib import nullcontext

import pytest

from llmdo.backends.limits.retry import set_instant
from llmdo.pipelines.usage import UsageError
from llmdo.runners.inspecting.verify import verify
from llmdo.runners.running.retry import retry, retry_json, retry_options
from tests.integration.cloud import OUTPUT, prompts
from tests.integration.test_end_to_end import wait_until


@pytest.fixture(autouse=True)
def no_waits():
    set_instant(True)
    yield
    set_instant(False)


def again(which="retryable", **options):
    """Retries in this process; the exit code, and lines retried, answered, failed again and not retried."""
    summary = retry(retry_options(OUTPUT, which, **{"concurrency": 16, **options}), lambda state: nullcontext())
    said = retry_json(summary)
    return summary.exit_code, tuple(said[name] for name in ("retried", "answered", "failed", "not_retried"))


def paid(cloud):
    return sum(cloud.stats()["paid"]["by_prompt"].values())


def errors(cloud, name):
    return [row for row in cloud.rows(name) if row["error"]]


def test_lines_that_failed_for_a_while_are_answered_once_and_only_they_are_paid(cloud):
    cloud.upload("a.jsonl", prompts(250) + b"{broken\n")
    cloud.upload("b.jsonl.gz", gzip.compress(prompts(30, "packed")))
    cloud.upload("whole.jsonl", prompts(5, "fine"))
    cloud.fault(target="ai", status=400, code=5024, match="prompt 1")
    cloud.fault(target="ai", status=400, code=5024, match="packed 2")
    assert cloud.run().exit_code == 3
    assert (len(errors(cloud, "a.jsonl")), len(errors(cloud, "b.jsonl.gz"))) == (112, 11)
    whole, before = cloud.rows("whole.jsonl"), paid(cloud)
    cloud.no_faults()
    assert again() == (3, (122, 122, 0, 1))
    assert paid(cloud) - before == 122
    cloud.check()
    assert [row["id"] for row in cloud.rows("a.jsonl") if not row["error"]] == list(range(250))
    assert errors(cloud, "a.jsonl")[0]["raw"] == "{broken"
    assert errors(cloud, "b.jsonl.gz") == []
    assert cloud.rows("whole.jsonl") == whole
    assert [key for key in cloud.keys("output/llmdo/input/b.jsonl.gz/") if "/errors-" in key] == []
    assert cloud.keys("output/_retry/") == cloud.alive() == []
    # A run finds nothing to do, nor does another retry, unless the broken line is to be retried too.
    assert {s.reason for s in cloud.run(input="r2://llmdo/input/").settled} == {"was done before"}
    assert again() == (3, (0, 0, 0, 1))
    assert again("all") == (3, (1, 0, 1, 0))
    assert paid(cloud) - before == 122
    cloud.check()


def test_lines_that_fail_again_stay_errors_and_can_be_tried_once_more(cloud):
    cloud.upload("a.jsonl", prompts(12))
    cloud.fault(target="ai", status=400, code=5024)
    assert cloud.run().exit_code == 3
    first = cloud.rows("a.jsonl")
    assert again() == (3, (12, 0, 12, 0))
    assert cloud.rows("a.jsonl") == first
    cloud.check()
    cloud.no_faults()
    cloud.fault(target="ai", status=400, code=5024, match="prompt 7")
    assert again() == (3, (12, 11, 1, 0))
    cloud.check()
    cloud.no_faults()
    assert again() == (0, (1, 1, 0, 0))
    assert again() == (0, (0, 0, 0, 0))
    assert paid(cloud) == 12
    cloud.check()


def test_a_line_that_may_not_choose_its_provider_is_answered_by_the_command_that_its_error_names(cloud):
    other = "openai/@cf/meta/llama-3.3-70b-instruct-fp8-fast"
    lines = ({"id": 0, "prompt": "a"}, {"id": 1, "prompt": "b", "model": other})
    cloud.upload("a.jsonl", b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    assert cloud.run().exit_code == 3
    (row,) = errors(cloud, "a.jsonl")
    assert (row["id"], row["error"]["class"], paid(cloud)) == (1, "ModelNotAllowed", 1)
    assert again() == (3, (1, 0, 1, 0))  # what the run did not allow, a retry does not allow by itself
    assert paid(cloud) == 1
    command = re.search("llmdo (retry .*)$", row["error"]["message"])[1].replace("OUTPUT", OUTPUT)
    process = cloud.command(*shlex.split(command))
    out, err = process.communicate(timeout=240)
    assert (process.returncode, err.count(b"Traceback")) == (0, 0)
    assert b"Tried 1 lines again: 1 answered now, 0 still errors." in out
    assert [row["model"].partition("/")[0] for row in cloud.rows("a.jsonl")] == ["workers-ai", "openai"]
    assert paid(cloud) == 2
    cloud.check()
    assert cloud.run(input="r2://llmdo/input/", line_models="any").exit_code == 0  # the same output's configuration


def test_the_source_may_be_gone_by_then(cloud):
    cloud.upload("a.jsonl", prompts(3))
    cloud.fault(target="ai", status=400, code=5024, match="prompt 1")
    cloud.run()
    cloud.no_faults()
    cloud.s3.delete_object(Bucket="llmdo", Key="input/a.jsonl")
    assert again() == (0, (1, 1, 0, 0))
    assert [row["id"] for row in cloud.rows("a.jsonl")] == [0, 1, 2]


def test_the_days_allocation_ends_a_retry_without_a_switch_and_the_next_one_goes_on(cloud):
    cloud.upload("a.jsonl", prompts(40))
    cloud.upload("b.jsonl", prompts(1, "other"))
    cloud.fault(target="ai", status=400, code=5024)
    cloud.run()
    cloud.no_faults()
    first = cloud.rows("a.jsonl")
    cloud.fault(target="ai", status=429, code=3036, match="prompt 30")
    code, (retried, answered, failed, _) = again(concurrency=4)
    assert (code, failed) == (1, 0)
    assert 1 <= answered == retried < 41
    assert cloud.rows("a.jsonl") == first
    cloud.check()
    cloud.no_faults()
    assert again()[0] == 0
    assert paid(cloud) == 41
    cloud.check()
    assert [key for key in cloud.keys("output/llmdo/") if "/errors-" in key] == []


def test_the_command_says_what_became_of_the_lines_and_ctrl_c_loses_nothing(cloud):
    cloud.upload("a.jsonl", prompts(120))
    cloud.fault(target="ai", status=400, code=5024)
    cloud.run()
    cloud.no_faults()
    cloud.fault(target="ai", latency_s=0.1)
    process = cloud.command("retry", OUTPUT, "--json", "--concurrency", "8")
    wait_until(lambda: paid(cloud) >= 20)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=240)
    said = json.loads(out)
    assert (process.returncode, said["exit_code"]) == (1, 1)
    assert "run the same command again" in said["problem"]
    assert len(errors(cloud, "a.jsonl")) == 120
    assert cloud.keys("output/_retry/") == []
    cloud.no_faults()
    process = cloud.command("retry", OUTPUT)
    out, err = process.communicate(timeout=240)
    assert (process.returncode, b"Traceback" in err) == (0, False)
    assert b"Tried 120 lines again: 120 answered now, 0 still errors." in out
    assert paid(cloud) == 120
    cloud.check()


def test_two_retries_at_once_pay_for_no_line_twice(cloud):
    for i in range(4):
        cloud.upload(f"{i}.jsonl", prompts(15, f"file {i}, prompt"))
    cloud.fault(target="ai", status=400, code=5024)
    cloud.run()
    cloud.no_faults()
    cloud.fault(target="ai", latency_s=5)  # so that neither is done before the other has looked
    both = [cloud.command("retry", OUTPUT, "--json", "--concurrency", "4", "--ledger", "none") for _ in range(2)]

    def met():
        records = [json.loads(cloud.store.read(key)[0]) for key in cloud.keys("output/_retry/")]
        return len({record["run_id"] for record in records}) == 2 or any(one.poll() is not None for one in both)

    wait_until(met)
    cloud.no_faults()
    said = [json.loads(process.communicate(timeout=240)[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert any(one["in_work_by_others"] for one in said)
    assert sum(one["answered"] for one in said) == paid(cloud) == 60
    cloud.check()


def test_an_output_without_a_configuration_is_a_usage_error(cloud):
    with pytest.raises(UsageError, match=r"_configuration\.json is not there"):
        retry_options(OUTPUT, "retryable")


def test_a_line_whose_answer_another_line_has_paid_for_meanwhile_adds_nothing_to_its_manifest(cloud, tmp_path):
    shared = {"ledger": f"sqlite:///{tmp_path}/ledger.sqlite", "reuse": "same-request"}
    cloud.upload("a.jsonl", prompts(3))
    cloud.fault(target="ai", status=400, code=5024, match="prompt 1")
    first = cloud.run(**shared)
    assert (first.exit_code, len(errors(cloud, "a.jsonl"))) == (3, 1)
    cloud.no_faults()
    cloud.upload("b.jsonl", prompts(2))
    second = cloud.run(**shared)
    before, calls = verify(OUTPUT), paid(cloud)
    assert before.input_tokens == first.spent.input_tokens + second.spent.input_tokens
    assert again(**shared) == (0, (1, 1, 0, 0))
    assert paid(cloud) == calls
    assert [row.get("shared", False) for row in cloud.rows("a.jsonl")] == [False, True, False]
    assert [row.get("shared", False) for row in cloud.rows("b.jsonl")] == [True, False]
    assert (verify(OUTPUT).input_tokens, verify(OUTPUT).lines) == (before.input_tokens, 5)
    cloud.check()
