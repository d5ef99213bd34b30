import json
import pickle
from urllib.parse import quote

import pytest

from llmdo.backends.errors import StopRun
from llmdo.settings.environment import (
    OPENAI_API,
    PUBLIC_API,
    AiGateway,
    BraintrustAccess,
    MissingSettings,
    OpenAIAccess,
    ai_gateway,
    braintrust_access,
    cache_folder,
    cloudflare_account,
    default_gateway,
    default_queue,
    default_store,
    openai_access,
    r2_access,
)
from llmdo.settings.secrets import without_secrets
from llmdo.storage.errors import QueueError, StorageUnavailable

ACCOUNT = "0123456789abcdef0123456789ABCDEF"
NAMES = (
    "CLOUDFLARE_ACCOUNT_ID CLOUDFLARE_API_TOKEN CLOUDFLARE_BASE_URL R2_ENDPOINT_URL R2_ACCESS_KEY_ID "
    "R2_SECRET_ACCESS_KEY LLMDO_BUCKET LLMDO_QUEUE OPENAI_API_KEY OPENAI_BASE_URL BRAINTRUST_API_KEY "
    "BRAINTRUST_PROJECT_ID ANTHROPIC_API_KEY ANTHROPIC_BASE_URL STORE_ID XDG_CACHE_HOME LIVESTORE_PAYLOAD"
).split()


@pytest.fixture(autouse=True)
def _bare(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_all_that_is_missing_is_named_at_once():
    with pytest.raises(MissingSettings, match=r"CLOUDFLARE_ACCOUNT_ID.*CLOUDFLARE_API_TOKEN"):
        cloudflare_account()
    with pytest.raises(MissingSettings) as raised:
        r2_access()
    assert len(raised.value.problems) == 3
    assert "R2_ENDPOINT_URL" in str(raised.value)


def test_a_token_in_the_place_of_the_account_is_noticed(monkeypatch):
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", "v1.0-some-token")
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", ACCOUNT)
    with pytest.raises(MissingSettings, match="not 32 hexadecimal characters") as raised:
        cloudflare_account()
    assert "some-token" not in str(raised.value)


@pytest.mark.parametrize("base", ["", "http://127.0.0.1:9/client/v4/"])
def test_the_accounts_url_has_no_slash_at_its_end(monkeypatch, base):
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", ACCOUNT)
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "token")
    monkeypatch.setenv("CLOUDFLARE_BASE_URL", base)
    assert cloudflare_account().url == f"{(base or PUBLIC_API).rstrip('/')}/accounts/{ACCOUNT}"


def test_the_accounts_own_endpoint_is_the_default(monkeypatch):
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", ACCOUNT)
    monkeypatch.setenv("R2_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("R2_SECRET_ACCESS_KEY", "secret")
    assert r2_access().endpoint == f"https://{ACCOUNT}.r2.cloudflarestorage.com"
    monkeypatch.setenv("R2_ENDPOINT_URL", f"https://{ACCOUNT}.eu.r2.cloudflarestorage.com")
    assert ".eu." in r2_access().endpoint


def test_no_secret_is_in_a_repr(monkeypatch):
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", ACCOUNT)
    for name in ("CLOUDFLARE_API_TOKEN", "R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "hush-hush")
    assert "hush" not in f"{cloudflare_account()!r} {r2_access()!r} {cloudflare_account()} {r2_access()}"


@pytest.mark.parametrize("text", ["hush-hush\n", " hush-hush", "hush–hush", "hush\x00"])
def test_a_badly_copied_secret_is_noticed_before_a_library_quotes_it(monkeypatch, text):
    monkeypatch.setattr("os.environ", dict.fromkeys(NAMES, text) | {"CLOUDFLARE_ACCOUNT_ID": ACCOUNT})
    for read, names in ((cloudflare_account, NAMES[1:2]), (r2_access, NAMES[4:6])):
        with pytest.raises(MissingSettings, match="copy it again") as raised:
            read()
        assert [problem.partition(" ")[0] for problem in raised.value.problems] == names
        assert "hush" not in str(raised.value)


def test_the_error_survives_pickling():
    error = pickle.loads(pickle.dumps(MissingSettings(["a is not set", "b is not set"])))
    assert error.problems == ["a is not set", "b is not set"]
    assert str(error) == "a is not set; b is not set"


def test_empty_defaults_are_none(monkeypatch):
    monkeypatch.setenv("LLMDO_BUCKET", "")
    assert default_queue() is None
    monkeypatch.setenv("LLMDO_QUEUE", "jobs")
    assert default_queue() == "jobs"


@pytest.mark.parametrize(
    ("secret", "said", "left"),
    [
        ("cf-token-123", "Bearer cf-token-123, cf-token-123", "Bearer <CLOUDFLARE_API_TOKEN>, <CLOUDFLARE_API_TOKEN>"),
        ("a/b+c=d&e", "?key=a%2Fb%2Bc%3Dd%26e", "?key=<CLOUDFLARE_API_TOKEN>"),
        ('with"quotes\\', json.dumps({"a": 'with"quotes\\'}), '{"a": "<CLOUDFLARE_API_TOKEN>"}'),
        ("short", "a short one", "a short one"),
        ("", "nothing is set", "nothing is set"),
    ],
)
def test_a_text_is_shown_without_secrets(monkeypatch, secret, said, left):
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", secret)
    assert without_secrets(said) == left


def test_the_values_of_a_payload_are_not_shown_however_deep_they_are(monkeypatch):
    payload = {"authToken": "hush/hush 100 %(1)", "more": [{"pin": 1234567890, "on": True, "kind": "s"}], "none": None}
    monkeypatch.setenv("LIVESTORE_PAYLOAD", json.dumps(payload))
    compact = json.dumps(payload, separators=(",", ":"))
    said = [
        *(json.dumps(payload), compact, str(payload), quote(compact), quote(quote(compact, safe="!~*'()"), safe="")),
        *(quote("hush/hush 100 %(1)"), quote(quote("hush/hush 100 %(1)", safe="!~*'()"), safe="!~*'()")),
    ]
    for text in said:
        shown = without_secrets(f"a {text} s true")
        assert "<LIVESTORE_PAYLOAD>" in shown and shown.endswith(" s true")
        assert "hush" not in shown and "1234567890" not in shown, shown
    monkeypatch.setenv("LIVESTORE_PAYLOAD", "no JSON, hush")
    assert without_secrets("no JSON, hush; s") == "<LIVESTORE_PAYLOAD>; s"
    monkeypatch.setenv("LIVESTORE_PAYLOAD", "[" * 100_000)
    assert without_secrets("a [ b") == "a [ b"


def test_no_error_quotes_a_secret_also_after_its_way_between_processes(monkeypatch):
    monkeypatch.setenv("R2_SECRET_ACCESS_KEY", "r2-secret-456")
    for error in (
        StorageUnavailable("you sent r2-secret-456"),
        QueueError("you sent r2-secret-456", 500, 7),
        StopRun("you sent r2-secret-456", status=500),
    ):
        for each in (error, pickle.loads(pickle.dumps(error))):
            assert str(each) == "you sent <R2_SECRET_ACCESS_KEY>"
            assert "r2-secret-456" not in repr(each) + repr(vars(each))
            assert getattr(each, "status", 500) == 500


def test_openai_itself_wants_a_key_and_other_servers_may_not(monkeypatch):
    with pytest.raises(MissingSettings, match="OPENAI_API_KEY is not set"):
        openai_access()
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:11434/v1/")
    assert openai_access() == OpenAIAccess("http://127.0.0.1:11434/v1", "")
    monkeypatch.setenv("OPENAI_API_KEY", "hush hush")
    with pytest.raises(MissingSettings, match="copy it again"):
        openai_access()
    monkeypatch.setenv("OPENAI_API_KEY", "hush-hush")
    monkeypatch.setenv("OPENAI_BASE_URL", "")
    assert openai_access() == OpenAIAccess(OPENAI_API, "hush-hush")
    assert "hush" not in repr(openai_access())


def test_braintrust_wants_a_key_and_a_project(monkeypatch):
    with pytest.raises(MissingSettings, match=r"BRAINTRUST_API_KEY.*BRAINTRUST_PROJECT_ID"):
        braintrust_access()
    monkeypatch.setenv("BRAINTRUST_API_KEY", "hush-hush")
    monkeypatch.setenv("BRAINTRUST_PROJECT_ID", "p")
    assert braintrust_access() == BraintrustAccess("p", "hush-hush")
    assert "hush" not in repr(braintrust_access())


def test_the_store_and_the_cache_have_their_places(monkeypatch, tmp_path):
    assert default_store() is None
    monkeypatch.setenv("STORE_ID", "store-1")
    assert default_store() == "store-1"
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder().parts[-2:] == (".cache", "llmdo")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "llmdo"


def test_a_gateway_is_named_by_the_environment_or_there_is_none(monkeypatch):
    for name in ("LLMDO_GATEWAY", "CLOUDFLARE_AI_GATEWAY_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    assert ai_gateway() is None
    monkeypatch.setenv("CLOUDFLARE_AI_GATEWAY_TOKEN", "gate-token-1")
    assert ai_gateway() is None
    monkeypatch.setenv("LLMDO_GATEWAY", "mine")
    gateway = ai_gateway()
    assert gateway == AiGateway("mine", "gate-token-1")
    assert "gate-token-1" not in repr(gateway)
    assert without_secrets("Bearer gate-token-1") == "Bearer <CLOUDFLARE_AI_GATEWAY_TOKEN>"


def test_a_gateway_that_is_named_wins_over_the_environments_and_wants_the_same_token(monkeypatch):
    monkeypatch.setenv("LLMDO_GATEWAY", "mine")
    monkeypatch.setenv("CLOUDFLARE_AI_GATEWAY_TOKEN", "gate-token-1")
    assert default_gateway() == "mine"
    assert ai_gateway("other") == AiGateway("other", "gate-token-1")
    monkeypatch.delenv("LLMDO_GATEWAY")
    assert (ai_gateway("other"), default_gateway()) == (AiGateway("other", "gate-token-1"), None)
    assert ai_gateway() is None


@pytest.mark.parametrize("name", ["LLMDO_GATEWAY", "CLOUDFLARE_AI_GATEWAY_TOKEN"])
def test_a_gateway_that_no_header_can_hold_is_refused_without_quoting_it(monkeypatch, name):
    monkeypatch.setenv("LLMDO_GATEWAY", "mine")
    monkeypatch.setenv(name, "two words")
    with pytest.raises(MissingSettings, match=f"{name} has a space") as caught:
        ai_gateway()
    assert "two words" not in str(caught.value)
