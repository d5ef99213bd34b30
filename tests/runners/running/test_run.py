"""The end of a run over a queue, against the local Cloudflare."""

from llmdo.storage.errors import QueueError
from llmdo.storage.queues.client import QueueClient
from tests.integration.cloud import prompts
from tests.integration.conftest import cloud

__all__ = ["cloud"]


def test_messages_that_a_lost_pull_reply_hides_are_told_and_the_exit_code_stays_0(cloud):
    cloud.upload("a.jsonl", prompts(3))
    cloud.fault(target="queue", drop=True, after=True, count=1, match="/messages/pull")
    summary = cloud.run()
    assert (summary.exit_code, summary.counts.answered, summary.backlog) == (0, 0, 1)
    cloud.upload("b.jsonl", prompts(3))
    assert (cloud.run().counts.answered, cloud.backlog()) == (3, 1)


def test_a_queue_that_holds_nothing_more_and_a_run_without_one_say_nothing(cloud):
    cloud.upload("a.jsonl", prompts(3))
    assert cloud.run().backlog == 0
    assert cloud.run(input="r2://llmdo/input/").backlog is None


def test_a_queue_that_does_not_tell_is_no_failure(cloud, monkeypatch):
    def fail(_):
        raise QueueError("metrics: no reply", 500)

    monkeypatch.setattr(QueueClient, "backlog", fail)
    cloud.upload("a.jsonl", prompts(3))
    summary = cloud.run()
    assert (summary.exit_code, summary.counts.answered, summary.backlog) == (0, 3, None)


def test_a_run_that_stopped_early_does_not_ask_what_is_left(cloud):
    cloud.upload("a.jsonl", prompts(3))
    cloud.fault(target="ai", status=401, code=10000)
    summary = cloud.run()
    assert (summary.exit_code, summary.backlog) == (1, None)
