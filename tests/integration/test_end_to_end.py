"""From an event to a manifest, against the stand-in for Cloudflare with its echo model."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import zstandard

from llmdo.backends.collector import THRESHOLDS
from llmdo.runners.lean_beam import OPTIONAL
from tests.integration.cloud import MODEL, OUTPUT, prompts

FILES = {
    "plain.jsonl": prompts(250),
    "one.jsonl": b'{"prompt": "only"}',
    "empty.jsonl": b"",
    "blank.jsonl": b"\n \r\n\n",
    "windows.jsonl": b'\xef\xbb\xbf{"prompt": "first"}\r\n\r\n{"prompt": "last"}',
    "packed.jsonl.gz": gzip.compress(prompts(30, "packed")),
    "empty.jsonl.gz": b"",
    "odd name+ü %41.jsonl": prompts(3),
    "embed.jsonl": b"".join(
        json.dumps({"id": i, "text": f"text {i}", "model": "@cf/baai/bge-m3"}).encode() + b"\n" for i in range(130)
    ),
    "broken.jsonl": b'{"prompt": "good"}\n{broken\n[1]\n{"id": 4}\n\xff\xfe\n{"prompt": "x", "model": "@cf/none/x"}\n',
}


def upload_all(cloud):
    for name, body in FILES.items():
        cloud.upload(name, body)


@pytest.mark.fast("direct")
@pytest.mark.parametrize("runner", ["direct", pytest.param("prism", marks=pytest.mark.prism)])
def test_every_line_of_every_kind_of_file_is_answered_once_and_every_message_acked(cloud, runner):
    upload_all(cloud)
    summary = cloud.run(runner=runner)
    assert (summary.problem, summary.in_work, summary.left) == (None, (), {})
    assert summary.exit_code == 3
    assert {s.file.key.removeprefix("input/") for s in summary.settled} == set(FILES)
    cloud.check()
    assert cloud.backlog() == 0
    counts = {s.file.key.removeprefix("input/"): (s.answered, s.failed) for s in summary.settled}
    assert counts == {
        "plain.jsonl": (250, 0),
        "one.jsonl": (1, 0),
        "empty.jsonl": (0, 0),
        "blank.jsonl": (0, 0),
        "windows.jsonl": (2, 0),
        "packed.jsonl.gz": (30, 0),
        "empty.jsonl.gz": (0, 0),
        "odd name+ü %41.jsonl": (3, 0),
        "embed.jsonl": (130, 0),
        "broken.jsonl": (1, 5),
    }
    answers = cloud.rows("plain.jsonl")
    assert [row["id"] for row in answers] == list(range(250))
    assert answers[7]["response"]["body"]["choices"][0]["message"]["content"] == "echo: prompt 7"
    assert [row["error"]["class"] for row in cloud.rows("broken.jsonl") if row["error"]] == [
        "BadLine",
        "BadLine",
        "BadLine",
        "BadLine",
        "ModelNotFound",
    ]
    vectors = [row["response"]["body"]["data"][0]["embedding"] for row in cloud.rows("embed.jsonl")]
    assert len({tuple(vector) for vector in vectors}) == 130


@pytest.mark.prism
def test_direct_and_prism_give_the_same_rows(cloud):
    upload_all(cloud)
    cloud.run(input="r2://llmdo/input/", ledger="none")
    direct = {name: comparable(cloud.rows(name)) for name in FILES}
    for key in cloud.keys():  # noqa: SIM118  a method, no dict
        cloud.store.delete(key)
    cloud.run(input="r2://llmdo/input/", runner="prism", ledger="none")
    assert {name: comparable(cloud.rows(name)) for name in FILES} == direct


def comparable(rows):
    """Rows without what differs from call to call."""
    for row in rows:
        row.pop("latency_ms", None)
        if row.get("response"):
            row["response"]["request_id"] = row["response"]["body"]["id"] = None
    return rows


def test_a_listing_gives_the_same_as_the_queue_and_a_second_run_finds_nothing_to_do(cloud):
    upload_all(cloud)
    assert cloud.run(input="r2://llmdo/input/").exit_code == 3
    cloud.check()
    paid = cloud.stats()
    again = cloud.run()
    assert {s.reason for s in again.settled} == {"was done before"}
    assert cloud.backlog() == 0
    assert cloud.stats()["ai"] == paid["ai"]
    cloud.check()


def test_a_queue_with_nothing_for_us_is_no_failure(cloud):
    summary = cloud.run()
    assert (summary.exit_code, summary.settled) == (0, ())


def test_what_a_killed_run_left_is_finished_by_the_next_one_and_only_the_gaps_are_paid(cloud):
    lines, window = 600, 16
    cloud.upload("big.jsonl", prompts(lines))
    cloud.fault(target="ai", probability=1.0, latency_s=0.3)  # the lines after two shards take seconds
    process = cloud.command(
        "run", "--queue", "llmdo-input", "--output", OUTPUT, "--model", MODEL, "--concurrency", str(window), "--json"
    )
    wait_until(lambda: sum("/shard-" in key for key in cloud.keys("output/llmdo/")) >= 2 and cloud.backlog() == 0)
    process.kill()
    process.communicate()
    assert len(cloud.keys("output/_open/")) == 1
    kept = [key for key in cloud.keys("output/llmdo/") if "/shard-" in key]
    cloud.no_faults()
    summary = cloud.run()
    assert summary.exit_code == 0
    cloud.check()
    assert set(kept) <= set(cloud.keys("output/llmdo/"))
    paid = sum(cloud.stats()["paid"]["by_prompt"].values())
    # Without a ledger a kill repeats what was in no shard yet: a batch, and what was in flight or read ahead.
    assert lines <= paid <= lines + 100 + 3 * window


def test_ctrl_c_writes_what_is_answered_and_the_next_run_goes_on(cloud):
    cloud.upload("big.jsonl", prompts(400))
    cloud.fault(target="ai", probability=1.0, latency_s=0.3)
    process = cloud.command(
        "run", "--queue", "llmdo-input", "--output", OUTPUT, "--model", MODEL, "--concurrency", "8", "--json"
    )
    wait_until(lambda: cloud.stats()["ai"]["calls"] >= 40)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 1
    said = json.loads(out)
    assert "run the same command again" in said["problem"]
    paid = sum(cloud.stats()["paid"]["by_prompt"].values())
    cloud.no_faults()
    assert cloud.run().exit_code == 0
    cloud.check()
    assert sum(cloud.stats()["paid"]["by_prompt"].values()) == 400
    assert said["answered"] == paid


def test_a_wrong_token_stops_at_once_and_acks_nothing(cloud, monkeypatch):
    cloud.upload("a.jsonl", prompts(3))
    process = cloud.command("run", "--queue", "llmdo-input", "--output", OUTPUT, CLOUDFLARE_API_TOKEN="wrong")
    _, err = process.communicate(timeout=240)
    assert process.returncode == 1
    assert b"CLOUDFLARE_API_TOKEN" in err
    assert b"Traceback" not in err
    assert b"wrong" not in err.replace(b"wrong token", b"").replace(b"is wrong", b"")
    assert cloud.backlog() == 1
    assert cloud.keys() == []


def test_a_wrong_account_stops_at_once_and_acks_nothing(cloud):
    cloud.upload("a.jsonl", prompts(3))
    process = cloud.command("run", "--queue", "llmdo-input", "--output", OUTPUT, CLOUDFLARE_ACCOUNT_ID="0" * 32)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 1
    assert b"CLOUDFLARE_ACCOUNT_ID" in err and b"Traceback" not in err
    assert (cloud.backlog(), cloud.keys()) == (1, [])


def test_a_queue_that_does_not_exist_is_a_usage_error_that_names_those_there_are(cloud):
    process = cloud.command("run", "--queue", "absent", "--output", OUTPUT)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 2
    assert b"absent" in err and b"llmdo-input" in err and b"Traceback" not in err


def test_a_token_that_the_model_refuses_stops_the_run_and_the_next_one_goes_on(cloud):
    cloud.upload("a.jsonl", prompts(30))
    cloud.fault(target="ai", probability=1.0, status=401, code=10000)
    summary = cloud.run()
    assert summary.exit_code == 1
    assert "CLOUDFLARE_API_TOKEN" in summary.problem
    assert len(cloud.keys("output/_open/")) == 1
    assert cloud.backlog() == 0
    cloud.no_faults()
    assert cloud.run().exit_code == 0
    cloud.check()


def test_the_days_allocation_stops_the_run_and_keeps_what_is_answered(cloud):
    cloud.upload("a.jsonl", prompts(60))
    cloud.fault(target="ai", probability=1.0, status=429, code=3036, match="prompt 45")
    summary = cloud.run(concurrency=4)
    assert summary.exit_code == 1
    assert 1 <= summary.counts.answered < 60
    cloud.no_faults()
    assert cloud.run().exit_code == 0
    cloud.check()
    assert sum(cloud.stats()["paid"]["by_prompt"].values()) == 60


def test_an_unknown_model_stops_the_run_with_its_name_and_no_line_is_lost(cloud):
    cloud.upload("a.jsonl", prompts(5))
    summary = cloud.run(model="@cf/none/such")
    assert summary.exit_code == 1
    assert "@cf/none/such" in summary.problem
    assert cloud.run().exit_code == 0
    cloud.check()


def test_overload_is_tried_again_and_ends_as_error_lines_only_after_three_tries(cloud):
    cloud.upload("a.jsonl", prompts(20))
    cloud.fault(target="ai", probability=1.0, status=429, code=3040, count=5)
    assert cloud.run(concurrency=4).exit_code == 0
    cloud.check()
    assert max(row["attempts"] for row in cloud.rows("a.jsonl")) >= 2


def test_a_message_that_is_no_event_is_acked_and_one_that_cannot_be_decoded_is_kept(cloud):
    account = f"/client/v4/accounts/{cloud.env['CLOUDFLARE_ACCOUNT_ID']}"
    queues = cloud.api.get(f"{account}/queues").json()["result"]
    (queue,) = [q["queue_id"] for q in queues if q["queue_name"] == "llmdo-input"]
    for body, kind in (({"hello": 1}, "json"), ("no event", "text")):
        cloud.api.post(
            f"{account}/queues/{queue}/messages", json={"body": body, "content_type": kind}
        ).raise_for_status()
    cloud.upload("a.jsonl", prompts(2))
    cloud.s3.delete_object(Bucket="llmdo", Key="input/none.jsonl")
    summary = cloud.run()
    assert summary.exit_code == 0
    assert summary.counts.messages_passed_over + summary.counts.messages_undecodable == 2
    assert cloud.backlog() == 0
    cloud.check()


def test_an_object_overwritten_before_it_is_read_ends_as_stale_and_its_new_version_is_answered(cloud):
    cloud.upload("a.jsonl", prompts(5, "old"))
    cloud.upload("a.jsonl", prompts(7, "new"))
    summary = cloud.run()
    assert sorted((s.status, s.answered) for s in summary.settled) == [("done", 7), ("stale", 0)]
    assert cloud.keys("output/_open/") == []
    assert cloud.backlog() == 0


def test_a_missing_bucket_is_named(cloud):
    process = cloud.command("run", "--input", "r2://absent/input/", "--output", OUTPUT)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 2
    assert b"r2://absent" in err and b"there is no such bucket" in err
    assert b"Traceback" not in err


def test_a_compressed_file_that_is_torn_ends_as_stale_and_stops_no_other(cloud):
    cloud.upload("torn.jsonl.gz", gzip.compress(prompts(500))[:-20])
    cloud.upload("a.jsonl", prompts(5))
    cloud.s3.put_object(Bucket="llmdo", Key="input/z.jsonl.zst", Body=zstandard.compress(prompts(9)))
    summary = cloud.run(input="r2://llmdo/input/")
    status = {s.file.key.removeprefix("input/"): s.status for s in summary.settled}
    assert status == {"torn.jsonl.gz": "stale", "a.jsonl": "done", "z.jsonl.zst": "done"}
    assert len(cloud.rows("z.jsonl.zst")) == 9


def wait_until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.mark.fast("direct")
@pytest.mark.parametrize("runner", ["direct", pytest.param("prism", marks=pytest.mark.prism)])
def test_the_command_has_the_garbage_collector_to_itself(cloud, tmp_path, runner):
    (tmp_path / "a.jsonl").write_bytes(prompts(3))
    command = ["run", str(tmp_path / "a.jsonl"), "--output", OUTPUT, "--model", MODEL, "--runner", runner, "--json"]
    told = "left.code, gc.get_threshold(), gc.get_freeze_count() > 10_000, gc.get_stats()[2]['collections']"
    assert at_the_end(cloud, command, told) == f"0 {THRESHOLDS} True 0"


@pytest.mark.fast("direct")
@pytest.mark.parametrize("runner", ["direct", pytest.param("prism", marks=pytest.mark.prism)])
def test_a_run_without_r2_imports_none_of_beams_optional_packages(cloud, tmp_path, runner):
    (tmp_path / "a.jsonl").write_bytes(prompts(3))
    command = ["run", str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "out"), "--model", MODEL]
    told = f"left.code, sorted({set(OPTIONAL)!r} & sys.modules.keys())"
    assert at_the_end(cloud, [*command, "--runner", runner, "--json"], told) == "0 []"


def at_the_end(cloud, command, told):
    """What the process of a command prints of itself when the command has ended; ``left`` is its SystemExit."""
    script = (
        "import gc, sys\nfrom llmdo.runners.cli.main import main\n"
        f"try:\n    main(sys.argv[1:])\nexcept SystemExit as left:\n    print({told}, file=sys.stderr)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, *command],
        env=os.environ | cloud.env,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return ended.stderr.splitlines()[-1]
