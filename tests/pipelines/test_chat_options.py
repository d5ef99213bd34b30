from pathlib import Path

import pytest

from llmdo.pipelines.chat_options import SYSTEM_PROMPT, check_chat_options, log_of
from llmdo.pipelines.usage import UsageError
from llmdo.storage.objects.store import Location

FILES = {"events": ("a.jsonl",), "output": "/out"}
QUEUES = {"queue": "in", "reply_queue": "out", "log": "r2://bucket/chat"}
ENVIRONMENT = {
    "CLOUDFLARE_ACCOUNT_ID": "a" * 32,
    "CLOUDFLARE_API_TOKEN": "x",
    "R2_ACCESS_KEY_ID": "x",
    "R2_SECRET_ACCESS_KEY": "x",
    "BRAINTRUST_API_KEY": "x",
    "BRAINTRUST_PROJECT_ID": "x",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("STORE_ID", raising=False)


def test_the_defaults_are_a_model_of_braintrust_and_the_prompt_that_comes_with_it():
    options = check_chat_options(**FILES)
    assert (options.model, str(options.concurrency), options.poll_seconds) == ("braintrust/gpt-4o", "256", 0.25)
    assert options.defaults.parameters == {"temperature": 0.7, "max_tokens": 1000}
    assert options.defaults.system == Path(SYSTEM_PROMPT).read_text() != ""


def test_files_run_here_and_end_and_a_queue_goes_on_for_ever_on_prism():
    files, queue = check_chat_options(**FILES), check_chat_options(**QUEUES)
    assert (files.runner, files.continuous) == ("direct", False)
    assert (queue.runner, queue.continuous) == ("prism", True)
    assert check_chat_options(**FILES, runner="prism").runner == "prism"


def test_the_log_is_in_the_output_or_below_the_log_and_has_the_stores_name(monkeypatch):
    assert check_chat_options(**FILES).output_location == Location("/out", "")
    assert check_chat_options(**QUEUES).output_location == Location("r2://bucket", "chat/")
    monkeypatch.setenv("STORE_ID", "my-store")
    assert check_chat_options(**FILES).output_location == Location("/out/my-store", "")
    assert check_chat_options(**QUEUES).output_location == Location("r2://bucket", "chat/my-store/")
    assert log_of("r2://bucket/chat/", "my-store") == Location("r2://bucket", "chat/my-store/")


@pytest.mark.parametrize("store", ["../up", "_open", "a/b", "ü"])
def test_no_stores_name_leads_out_of_its_folder_or_into_the_logs_own(store):
    key = log_of("r2://bucket/chat/", store).key
    assert key.startswith("chat/~") and key.count("/") == 2


def test_two_stores_of_one_folder_share_no_ledger():
    ledgers = {check_chat_options(**FILES, store=store).kept.ledger for store in (None, "a", "b")}
    assert ledgers == {f"sqlite:////out{store}/_ledger.sqlite" for store in ("", "/a", "/b")}


@pytest.mark.parametrize(
    ("given", "since"),
    [("1970-01-01T00:00:09Z", 9.0), ("1970-01-01T00:00:09", 9.0), ("9000", 9.0), (9000, 9.0), (None, None)],
)
def test_since_is_iso_or_milliseconds(given, since):
    assert check_chat_options(**FILES, since=given).since == since


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "one of --events and --queue (none given)"),
        ({**FILES, **QUEUES}, "one of --events and --queue (both given)"),
        ({"events": ("a",)}, "--events needs --output"),
        ({**FILES, "log": "l"}, "--events needs --output"),
        ({**FILES, "reply_queue": "q"}, "--events needs --output"),
        ({**FILES, "deltas": True}, "--deltas"),
        ({**QUEUES, "log": None}, "--queue needs --reply-queue and --log"),
        ({**QUEUES, "reply_queue": None}, "--queue needs --reply-queue and --log"),
        ({**QUEUES, "output": "o"}, "--queue needs --reply-queue and --log"),
        ({**QUEUES, "reply_queue": "in"}, "must differ from --queue"),
        ({**QUEUES, "runner": "direct"}, "--runner prism"),
        ({**QUEUES, "log": "s3://b/"}, "s3:// is not known"),
        ({**FILES, "since": "yesterday"}, "--since 'yesterday': must be a date"),
        ({**FILES, "model": "gpt-4o"}, "--model 'gpt-4o'"),
        ({**FILES, "temperature": 9}, "--temperature"),
        ({**FILES, "max_tokens": 0}, "--max-tokens"),
        ({**FILES, "concurrency": "many"}, "--concurrency"),
        ({**FILES, "fixed": True}, "--fixed"),
        ({**QUEUES, "poll_seconds": 0.1}, "--poll-seconds"),
    ],
)
def test_what_does_not_fit_together_is_said(given, said):
    with pytest.raises(UsageError) as error:
        check_chat_options(**given)
    assert said in str(error.value)


def test_all_that_is_missing_in_the_environment_is_said_at_once(monkeypatch):
    for name in ENVIRONMENT:
        monkeypatch.delenv(name)
    with pytest.raises(UsageError) as error:
        check_chat_options(**QUEUES)
    for name in ENVIRONMENT:
        assert name in str(error.value)
    check_chat_options(**FILES, model="local/smollm2-135m-instruct")
