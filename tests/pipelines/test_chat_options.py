from pathlib import Path

import pytest

from llmdo.pipelines.chat_options import SYSTEM_PROMPT, check_chat_options, log_of, log_to_explain
from llmdo.pipelines.usage import UsageError
from llmdo.storage.objects.store import Location

FILES = {"events": ("a.jsonl",), "output": "/out"}
STORES = {"livestore": "wss://sync.example.com", "stores": ("s",), "log": "/log"}
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
    for name in ("STORE_ID", "STORE_IDS", "LIVESTORE_SYNC_URL", "LIVESTORE_PAYLOAD"):
        monkeypatch.delenv(name, raising=False)


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
    ledgers = {check_chat_options(**FILES, stores=stores).kept.ledger for stores in ((), "a", ["b"])}
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
        ({}, "one of --events, --queue and --livestore (none given)"),
        ({**FILES, **QUEUES}, "one of --events, --queue and --livestore (2 given)"),
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
        ({**FILES, "stores": "a,b"}, "several stores are answered with --livestore"),
        ({**QUEUES, "stores": ("a", "b")}, "several stores are answered with --livestore"),
        ({**FILES, "started": False}, "--no-started is for --livestore"),
        ({**QUEUES, "started": False}, "--no-started is for --livestore"),
        ({**FILES, **STORES}, "one of --events, --queue and --livestore (2 given)"),
        ({**FILES, **QUEUES, **STORES}, "one of --events, --queue and --livestore (3 given)"),
        ({**STORES, "stores": ()}, "--livestore needs --store (or STORE_IDS) and --log"),
        ({**STORES, "stores": " , "}, "--livestore needs --store (or STORE_IDS) and --log"),
        ({**STORES, "log": None}, "--livestore needs --store (or STORE_IDS) and --log"),
        ({**STORES, "output": "o"}, "excludes --output and --reply-queue"),
        ({**STORES, "reply_queue": "q"}, "excludes --output and --reply-queue"),
        ({**STORES, "deltas": True}, "--deltas is not possible with --livestore: each event makes"),
        ({**STORES, "runner": "direct"}, "--runner prism"),
        ({**STORES, "livestore": "sync.example.com"}, "write wss://HOST"),
        ({**STORES, "livestore": "wss://me:hush@host"}, "LIVESTORE_PAYLOAD"),
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
    assert len(error.value.problems) == 1 and "hush" not in str(error.value)


def test_stores_go_on_for_ever_on_prism_each_with_a_log_of_its_own():
    options = check_chat_options(**{**STORES, "stores": "s, t,s"})
    assert (options.runner, options.continuous, options.started, options.stores) == ("prism", True, True, ("s", "t"))
    assert options.logs == {"s": Location("/log/s", ""), "t": Location("/log/t", "")}
    assert options.output_location == Location("/log", "")
    assert check_chat_options(**FILES).logs == {}


def test_stores_and_their_backend_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("LIVESTORE_SYNC_URL", "ws://localhost:8787")
    monkeypatch.setenv("STORE_ID", "one")
    options = check_chat_options(log="/log")
    assert (options.livestore, options.stores) == ("ws://localhost:8787", ("one",))
    monkeypatch.setenv("STORE_IDS", "a, b,,a")
    assert check_chat_options(log="/log").stores == ("a", "b")
    assert check_chat_options(log="/log", stores="c").stores == ("c",)


@pytest.mark.parametrize("given", [FILES, QUEUES])
def test_the_environment_of_stores_changes_nothing_where_other_events_are_named(given, monkeypatch):
    before = check_chat_options(**given)
    monkeypatch.setenv("LIVESTORE_SYNC_URL", "wss://me:hush@host")
    monkeypatch.setenv("LIVESTORE_PAYLOAD", "no JSON")
    monkeypatch.setenv("STORE_IDS", "a,b")
    assert check_chat_options(**given) == before


@pytest.mark.parametrize("given", [{"output": "/out"}, {"reply_queue": "q", "log": "/log"}])
def test_options_of_other_events_are_not_taken_for_those_of_stores(given, monkeypatch):
    monkeypatch.setenv("LIVESTORE_SYNC_URL", "ws://localhost:8787")
    with pytest.raises(UsageError, match="none given"):
        check_chat_options(**given)


@pytest.mark.parametrize("payload", ["hush", "{'a': 'hush'}", '{"a": NaN}', '"\\ud800hush"', "[" * 100_000])
def test_a_payload_that_cannot_be_sent_is_refused_unquoted(payload, monkeypatch):
    monkeypatch.setenv("LIVESTORE_PAYLOAD", payload)
    with pytest.raises(UsageError, match="LIVESTORE_PAYLOAD is not JSON: write what the app sends") as error:
        check_chat_options(**STORES)
    assert "hush" not in str(error.value)


def test_the_way_to_a_backend_is_checked_before_the_start(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1080")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(UsageError, match=r"sync\.example\.com into NO_PROXY"):
        check_chat_options(**STORES, model="local/smollm2-135m-instruct")


def test_the_log_to_explain_is_that_of_the_store(monkeypatch):
    assert log_to_explain("/log", None) == Location("/log", "")
    assert log_to_explain("/log", "s") == Location("/log/s", "")
    monkeypatch.setenv("STORE_IDS", "a")
    assert log_to_explain("/log", None) == Location("/log/a", "")
    monkeypatch.setenv("STORE_IDS", "a,b")
    assert log_to_explain("/log", "b") == Location("/log/b", "")
    with pytest.raises(UsageError, match="such as --store a"):
        log_to_explain("/log", None)
    monkeypatch.setenv("STORE_ID", "b")
    assert log_to_explain("/log", None) == Location("/log/b", "")


def test_all_that_is_missing_in_the_environment_is_said_at_once(monkeypatch):
    for name in ENVIRONMENT:
        monkeypatch.delenv(name)
    with pytest.raises(UsageError) as error:
        check_chat_options(**QUEUES)
    for name in ENVIRONMENT:
        assert name in str(error.value)
    check_chat_options(**FILES, model="local/smollm2-135m-instruct")
