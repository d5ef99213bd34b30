import pytest

from llmdo.backends.money.prices import Prices
from llmdo.backends.responses import ModelInfo, Models, Price
from llmdo.pipelines.options import check_options
from llmdo.pipelines.usage import UsageError
from llmdo.runners.running import checks
from llmdo.runners.running.checks import (
    check_configuration,
    check_consumers,
    check_files,
    check_folder,
    check_ledger,
    check_prices,
    of_gateway,
    prepare,
)
from llmdo.storage.objects.store import Location
from llmdo.storage.queues.client import Consumer
from llmdo.transforms.answers.ledger_settings import LedgerSettings


def test_files_that_are_not_there_are_said_before_any_work(tmp_path):
    options = check_options(
        files=(str(tmp_path / "*.jsonl"),), output=str(tmp_path / "out"), model="local/smollm2-135m-instruct"
    )
    with pytest.raises(UsageError, match="does not exist, or matches no file"):
        prepare(options)


@pytest.mark.parametrize("ledger", [None, "none"])
@pytest.mark.parametrize("place", ["a-file", "a-file/below", "/proc/none", "/proc"])
def test_an_output_in_which_nothing_can_be_written_is_one_sentence(tmp_path, place, ledger):
    (tmp_path / "a-file").write_text("")
    (tmp_path / "in.jsonl").write_text("{}")
    output = str(tmp_path / place)
    given = {"files": (str(tmp_path / "in.jsonl"),), "output": output, "model": "local/smollm2-135m-instruct"}
    with pytest.raises(UsageError) as raised:
        prepare(check_options(**given, ledger=ledger))
    (said,) = raised.value.problems
    assert said.startswith(f"--output {output}: nothing can be written there (")
    assert said.endswith("name a folder in which this user may write")


def test_a_ledger_in_which_nothing_can_be_written_is_one_sentence(tmp_path):
    with pytest.raises(UsageError, match=r"--ledger /proc/none: nothing can be written there \(.+\): name a folder"):
        check_ledger(LedgerSettings("sqlite:////proc/none/l.sqlite"))


def test_an_output_that_is_not_there_is_made_and_nothing_is_left_in_it(tmp_path):
    check_folder(Location(str(tmp_path), "a/b/"), "--output")
    assert list((tmp_path / "a/b").iterdir()) == []


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


@pytest.mark.parametrize(
    ("found", "remedy"),
    [
        ((), "no consumer; run: npx wrangler queues consumer http add prompts$"),
        # A queue has one consumer at most: another one cannot be added beside it.
        ((Consumer(type="worker", max_retries=3),), r"worker remove prompts SCRIPT, then: .* http add prompts$"),
    ],
)
def test_a_queue_that_cannot_be_pulled_is_said_before_any_work(consumers, found, remedy):
    consumers(*found)
    with pytest.raises(UsageError, match=remedy):
        check_consumers("prompts", "id")


def test_a_queue_without_dead_letters_is_warned_of(consumers, caplog):
    consumers(Consumer(type="http_pull", max_retries=3))
    check_consumers("prompts", "id")
    assert "deleted after 3 tries" in caplog.text and "--dead-letter-queue" in caplog.text
    caplog.clear()
    consumers(Consumer(type="http_pull", dead_letter_queue="prompts-dead", max_retries=3))
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
    with pytest.raises(UsageError, match="openai/other is not known: name it in a --price-file, or use --max"):
        check_prices(options, prices)
    check_prices(options.model_copy(update={"max_cost": None}), prices)


def test_each_file_that_is_not_there_is_named_and_a_pattern_without_files_is_warned_of(tmp_path, caplog):
    (tmp_path / "a.jsonl").write_text("{}")
    (tmp_path / "b.txt").write_text("{}")

    def given(*names):
        files = tuple(str(tmp_path / name) for name in names)
        return check_options(files=files, output=str(tmp_path / "out"), model="local/smollm2-135m-instruct")

    with pytest.raises(UsageError, match=r"none.jsonl does not exist, or matches no file: check the path"):
        check_files(given("none.jsonl"))
    with pytest.raises(UsageError, match="no file ends in"):
        check_files(given("*.txt"))
    check_files(given("a.jsonl", "c*.jsonl"))
    assert caplog.messages == [f"{tmp_path / 'c*.jsonl'} matches no file"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"gateway": "g"}, None),
        ({"mode": "batch"}, None),
        ({"gateway": "g", "mode": "batch"}, "batches do not go through the AI Gateway"),
        ({"gateway": "g", "model": "openai/gpt-4o"}, "--gateway is for Workers AI: openai/gpt-4o is called without"),
    ],
)
def test_calls_that_do_not_go_by_the_gateway_are_said(monkeypatch, tmp_path, given, says):
    for name in ("CLOUDFLARE_ACCOUNT_ID", "CLOUDFLARE_API_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "0" * 32)
    monkeypatch.delenv("LLMDO_GATEWAY", raising=False)
    found = of_gateway(check_options(files=("x",), output=str(tmp_path), **given))
    assert found == [] if says is None else says in found[0]
