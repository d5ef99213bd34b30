import pytest

from backends.ir import ModelInfo, Models, Price
from backends.money import Prices
from pipelines.options import UsageError, check_options
from runners import checks
from runners.checks import check_configuration, check_consumers, check_prices, prepare
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


def test_another_configuration_is_named_with_what_only_one_of_them_has(tmp_path):
    given = {"files": ("a.jsonl",), "output": str(tmp_path), "model": "local/smollm2-135m-instruct"}
    first = check_options(**given, prompt="Say {a}", max_tokens=3)
    check_configuration(first, lambda run_id: False)
    (tmp_path / "shard-000000000000-x.jsonl").write_text("")  # it has answers by now
    with pytest.raises(UsageError) as raised:
        check_configuration(check_options(**given, response_schema={"type": "object"}), lambda run_id: False)
    said = str(raised.value)
    assert "prompt 'Say {a}' there, None now" in said
    assert "schema None there, {'type': 'object'} now" in said
    assert "fingerprint" not in said


def test_a_limit_of_cost_needs_a_price(tmp_path):
    given = {"files": ("a.jsonl",), "output": str(tmp_path), "model": "local/smollm2-135m-instruct"}
    prices = Prices(lambda provider: Models((ModelInfo("openai/known", price=Price(1.0, 1.0)),)))
    check_prices(check_options(**given, max_cost=1.0), prices)
    options = check_options(**given, max_cost=1.0).model_copy(update={"model": "openai/known"})
    check_prices(options, prices)
    options = options.model_copy(update={"model": "openai/other"})
    with pytest.raises(UsageError, match="price of openai/other is not known: use --max-tokens-total"):
        check_prices(options, prices)
    check_prices(options.model_copy(update={"max_cost": None}), prices)
