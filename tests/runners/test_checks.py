import pytest

from pipelines.options import UsageError, check_options
from runners import checks
from runners.checks import check_consumers, prepare
from storage.queues import Consumer


def test_files_that_are_not_there_are_said_before_any_work(tmp_path):
    options = check_options(
        files=(str(tmp_path / "*.jsonl"),), output=str(tmp_path / "out"), model="local/smollm2-135m-instruct"
    )
    with pytest.raises(UsageError, match="no file ends in"):
        prepare(options)


class _Queue:
    """Stands for the queue's client: says which consumers there are."""

    found: tuple

    def __init__(self, account, queue_id):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def consumers(self):
        return self.found


@pytest.fixture
def consumers(monkeypatch):
    monkeypatch.setattr(checks, "QueueClient", _Queue)
    monkeypatch.setattr(checks, "cloudflare_account", lambda: None)

    def be(*found):
        _Queue.found = found

    return be


@pytest.mark.parametrize("found", [(), (Consumer("worker", None, 3, None),)])
def test_a_queue_that_cannot_be_pulled_is_said_before_any_work(consumers, found):
    consumers(*found)
    with pytest.raises(UsageError, match="queues consumer http add prompts"):
        check_consumers("prompts", "id")


def test_a_queue_without_dead_letters_is_warned_of(consumers, caplog):
    consumers(Consumer("http_pull", None, 3, None))
    check_consumers("prompts", "id")
    assert "deleted after 3 tries" in caplog.text and "--dead-letter-queue" in caplog.text
    caplog.clear()
    consumers(Consumer("http_pull", "prompts-dead", 3, None))
    check_consumers("prompts", "id")
    assert caplog.text == ""
