"""``--notify-queue``: a message for each settled file, as a consumer of the queue gets it."""

from __future__ import annotations

import json

import pytest

from llmdo.pipelines.usage import UsageError
from llmdo.settings.environment import cloudflare_account
from llmdo.storage.queues.client import QueueClient, find_queue
from tests.integration.cloud import MODEL, OUTPUT, prompts

NAME = "answers-are-there"


@pytest.fixture
def told(cloud):
    """What the queue holds, and was not asked for before."""
    account = f"/client/v4/accounts/{cloud.env['CLOUDFLARE_ACCOUNT_ID']}"
    queue = cloud.api.post(f"{account}/queues", json={"queue_name": NAME}).raise_for_status().json()["result"]
    consumer = {"type": "http_pull", "settings": {}}
    cloud.api.post(f"{account}/queues/{queue['queue_id']}/consumers", json=consumer).raise_for_status()

    def pull() -> list[dict]:
        with QueueClient(cloudflare_account(), find_queue(cloudflare_account(), NAME)) as client:
            messages = client.pull(visibility_timeout_s=60.0).messages
            client.settle([message.lease_id for message in messages])
        return sorted((message.body for message in messages), key=lambda body: body["file"])

    return pull


@pytest.mark.parametrize(
    "options",
    [
        {"runner": "direct"},
        pytest.param({"runner": "direct", "processes": 2}, marks=pytest.mark.slow),
        pytest.param({"runner": "prism"}, marks=[pytest.mark.prism, pytest.mark.slow]),
        pytest.param({"runner": "flink"}, marks=[pytest.mark.flink, pytest.mark.slow]),
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_each_settled_file_is_told_of_once(cloud, told, options):
    cloud.upload("a.jsonl", prompts(3) + b"{broken\n")
    cloud.upload("b.jsonl", prompts(1))
    cloud.upload("empty.jsonl", b"")
    cloud.upload("torn.jsonl.gz", b"no gzip")
    summary = cloud.run(notify_queue=NAME, **options)
    found = told()
    assert [(one["file"].rpartition("/")[2], one["status"]) for one in found] == [
        ("a.jsonl", "done"),
        ("b.jsonl", "done"),
        ("empty.jsonl", "done"),
        ("torn.jsonl.gz", "stale"),
    ]
    assert (found[0]["answered"], found[0]["failed"], found[0]["run_id"]) == (3, 1, summary.run_id)
    for one in found[:3]:
        manifest = json.loads(cloud.store.read(one["manifest"].removeprefix("r2://llmdo/"))[0])
        assert (manifest["answered"], manifest["failed"]) == (one["answered"], one["failed"])
        assert manifest["cost_usd"] == one["cost_usd"]
    cloud.run(notify_queue=NAME, **options)
    assert told() == []


def test_files_that_were_done_before_are_not_told_of_again(cloud, told):
    cloud.upload("a.jsonl", prompts(2))
    options = {"input": "r2://llmdo/input/", "notify_queue": NAME}
    cloud.run(**options)
    assert len(told()) == 1
    cloud.run(**options)
    assert told() == []


def test_a_retry_tells_of_the_files_whose_counts_changed(cloud, told):
    cloud.upload("a.jsonl", b'{"prompt": "x", "model": "@cf/meta/llama-3.1-8b-instruct-fast"}\n' + prompts(2))
    cloud.run(notify_queue=NAME, line_models="none")
    assert [(one["answered"], one["failed"]) for one in told()] == [(2, 1)]
    process = cloud.command("retry", OUTPUT, "--line-models", "any", "--notify-queue", NAME, "--json")
    out, err = process.communicate(timeout=110)
    assert process.returncode == 0, err
    assert json.loads(out)["answered"] == 1
    assert [(one["answered"], one["failed"]) for one in told()] == [(3, 0)]


@pytest.mark.parametrize(("name", "said"), [("nobody-s", "no queue of this name"), ("llmdo-input", "name another one")])
def test_a_queue_that_cannot_be_told_is_refused_before_any_call(cloud, name, said):
    cloud.upload("a.jsonl", prompts(1))
    with pytest.raises(UsageError, match=said):
        cloud.run(notify_queue=name)
    assert cloud.stats()["paid"]["calls"] == 0


def test_the_end_of_a_run_says_why_lines_failed_and_where_the_answers_are(cloud, tmp_path):
    source = tmp_path / "p.jsonl"
    source.write_bytes(prompts(2) + b"{broken\n{also broken\n" + b'{"messages": []}\n')
    out = tmp_path / "the answers"
    arguments = ("run", str(source), "-o", str(out), "-m", MODEL)
    process = cloud.command(*arguments, COLUMNS="200")
    said, err = process.communicate(timeout=110)
    assert process.returncode == 3, err
    text = said.decode()
    assert f"llmdo cat '{out}'" in text and f"llmdo export '{out}' --to answers.csv" in text
    assert len([line for line in text.splitlines() if "BadLine" in line]) == 1
    found = json.loads(cloud.command(*arguments, "--json").communicate(timeout=110)[0])["errors"]
    assert sum(one["count"] for one in found) == 3
    assert all(one["example"] and one["class"] for one in found)
