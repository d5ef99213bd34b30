"""What a queue may do: deliver twice, late, out of order, about things that are gone or that nobody asked for."""

from __future__ import annotations

import json
import threading

import pytest

from llmdo.storage.output.manifests import read_manifest
from llmdo.transforms.files.open_files import SMALL_BYTES
from llmdo.transforms.lines import read_lines as lines
from tests.integration.cloud import MODEL, OUTPUT, prompts

LONG = 600


def paid(cloud):
    return cloud.stats()["paid"]["calls"]


def event(cloud, key, etag=None, action="PutObject", bucket="llmdo"):
    """What R2 says of an object, sent by hand."""
    info = cloud.store.stat(key) if etag is None else None
    thing = (
        {"key": key}
        if "Delete" in action
        else {"key": key, "size": info.size if info else 5, "eTag": etag or info.etag}
    )
    account = cloud.env["CLOUDFLARE_ACCOUNT_ID"]
    return {
        "account": account,
        "bucket": bucket,
        "eventTime": "2026-05-24T19:36:44.379Z",
        "action": action,
        "object": thing,
    }


def test_a_message_in_two_copies_and_again_after_the_file_is_settled_gives_one_answer_a_line(cloud, queue):
    cloud.upload("a.jsonl", prompts(20))
    message = event(cloud, "input/a.jsonl")
    queue.push_many([message, message])
    assert cloud.run().exit_code == 0
    queue.push_many([message])
    again = cloud.run()
    assert (again.exit_code, [settled.reason for settled in again.settled]) == (0, ["was done before"])
    cloud.check()
    assert (paid(cloud), cloud.backlog()) == (20, 0)


def test_delete_events_other_buckets_and_the_output_itself_are_acked_and_do_nothing(cloud, queue):
    cloud.upload("a.jsonl", prompts(2))
    queue.push_many(
        [
            event(cloud, "input/a.jsonl", action="DeleteObject"),
            event(cloud, "input/a.jsonl", action="LifecycleDeletion"),
            event(cloud, "output/llmdo/input/a.jsonl/e/shard-000000000000-aa.jsonl", "e"),
            event(cloud, "output/_open/x.jsonl", "e"),
            {"not": "an event"},
            "nor this",
        ]
    )
    summary = cloud.run()
    assert (summary.exit_code, summary.counts.messages_passed_over) == (0, 6)
    cloud.check()
    assert (paid(cloud), cloud.backlog()) == (2, 0)


def test_an_event_of_a_version_that_was_overwritten_long_ago_is_stale_and_the_newest_is_done(cloud, queue):
    cloud.upload("a.jsonl", prompts(5, "old"))
    old = event(cloud, "input/a.jsonl")
    cloud.upload("a.jsonl", prompts(7, "new"))
    queue.push_many([old])  # once more, after the newer one
    summary = cloud.run()
    assert (summary.counts.files_done, summary.counts.files_stale) == (1, 1)
    cloud.check()
    assert paid(cloud) == 7
    assert {row["response"]["body"]["choices"][0]["message"]["content"] for row in cloud.rows("a.jsonl")} == {
        f"echo: new {i}" for i in range(7)
    }


def test_an_event_of_an_object_that_is_gone_or_in_no_bucket_of_ours_stops_nothing(cloud, queue):
    cloud.upload("a.jsonl", prompts(3))
    queue.push_many(
        [event(cloud, "input/gone.jsonl", "e"), event(cloud, "input/a.jsonl", "e", bucket="no-such-bucket")]
    )
    for tries in (1, 2, 3):
        summary = cloud.run()
        (why,) = summary.left.values()
        assert "no-such-bucket" in why and ("_dead/" in why) == (tries == 3)
        assert summary.exit_code == 1
    assert cloud.run().exit_code == 0
    assert (paid(cloud), cloud.backlog()) == (3, 0)
    (letter,) = cloud.keys("output/_dead/")
    assert json.loads(cloud.store.read(letter)[0])["message"]["bucket"] == "no-such-bucket"


def test_equal_contents_under_two_keys_are_two_files(cloud):
    cloud.upload("a.jsonl", prompts(4))
    cloud.upload("b.jsonl", prompts(4))
    cloud.upload("sub/a.jsonl", prompts(4))
    assert cloud.run().counts.files_done == 3
    cloud.check()
    assert paid(cloud) == 12


def test_equal_keys_in_two_buckets_are_two_files(cloud, queue):
    cloud.s3.create_bucket(Bucket="another")
    cloud.upload("a.jsonl", prompts(4))
    cloud.s3.put_object(Bucket="another", Key="input/a.jsonl", Body=prompts(4))
    queue.push_many([event(cloud, "input/a.jsonl", bucket="another")])
    assert cloud.run().counts.files_done == 2
    manifests = [key for key in cloud.keys("output/") if key.endswith("_manifest.json")]
    assert {read_manifest(cloud.store, key.removesuffix("_manifest.json")).bucket for key in manifests} == {
        "llmdo",
        "another",
    }
    assert (paid(cloud), cloud.keys("output/_open/")) == (8, [])


@pytest.mark.fast("new")
@pytest.mark.parametrize("last", ["new", "old"])
def test_a_file_that_is_overwritten_while_it_is_read_ends_with_its_newest_version_answered(cloud, monkeypatch, last):
    """old → new, and old → new → old again, which is answered again since it was not settled."""
    old, new = prompts(LONG, "old"), prompts(LONG + 80, "new")
    assert min(len(old), len(new)) > SMALL_BYTES  # a small file is read when it is opened
    cloud.upload("a.jsonl", old)
    overwritten = threading.Event()
    read = lines.read_range

    def overwrite_first(element, restriction, *more):
        if not overwritten.is_set():
            overwritten.set()
            cloud.upload("a.jsonl", new)
        yield from read(element, restriction, *more)

    monkeypatch.setattr(lines, "read_range", overwrite_first)
    first = cloud.run()
    assert first.counts.files_stale == 1
    if last == "old":
        cloud.upload("a.jsonl", old)
    assert cloud.run().problem is None
    cloud.check()
    assert {row["id"] for row in cloud.rows("a.jsonl")} == set(range(LONG if last == "old" else LONG + 80))
    assert cloud.backlog() == 0


def test_a_version_that_comes_back_while_it_is_given_up_is_not_forgotten(cloud, monkeypatch):
    old = prompts(LONG, "old")
    cloud.upload("a.jsonl", old)
    calls = []
    read = lines.read_range

    def overwrite_and_put_back(element, restriction, *more):
        calls.append(element.file.etag)
        if len(calls) == 1:
            cloud.upload("a.jsonl", prompts(3, "new"))
            try:
                yield from read(element, restriction, *more)
            finally:
                cloud.upload("a.jsonl", old)  # its message finds the record of the version that is given up
        else:
            yield from read(element, restriction, *more)

    monkeypatch.setattr(lines, "read_range", overwrite_and_put_back)
    assert cloud.run().counts.files_stale == 1
    assert cloud.run().problem is None
    cloud.check()
    assert {row["id"] for row in cloud.rows("a.jsonl")} == set(range(LONG))
    assert cloud.backlog() == 0


def test_two_runs_that_begin_together_with_different_models_are_not_mixed(cloud):
    cloud.upload("a.jsonl", prompts(40))
    cloud.fault(target="ai", probability=1.0, latency_s=0.05)
    listing = ["run", "--input", "r2://llmdo/input/", "--output", OUTPUT, "--json"]
    both = [cloud.command(*listing, "--model", MODEL, "--max-tokens", str(tokens)) for tokens in (7, 8)]
    for process in both:
        process.communicate(timeout=120)
    assert sorted(process.returncode for process in both) in ([0, 2], [2, 2])
    assert (
        cloud.run(input="r2://llmdo/input/", max_tokens=7 + both.index(min(both, key=lambda p: p.returncode))).problem
        is None
    )
    cloud.check()
    assert paid(cloud) == 40
