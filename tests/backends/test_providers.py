import ast
from pathlib import Path

import pytest

from llmdo import connect_async
from llmdo.backends.errors import ModelNotFound
from llmdo.backends.providers import PROVIDERS, chats, passes_routes_on, split_model, takes_own_input
from llmdo.settings.environment import MissingSettings, secrets_of
from llmdo.settings.secrets import SECRET_VARIABLES


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("@cf/baai/bge-m3", ("workers-ai", "@cf/baai/bge-m3")),
        ("workers-ai/@cf/baai/bge-m3", ("workers-ai", "@cf/baai/bge-m3")),
        ("local/smollm2-135m-instruct", ("local", "smollm2-135m-instruct")),
        ("openai/gpt-4o", ("openai", "gpt-4o")),
        ("openai/@cf/baai/bge-m3", ("openai", "@cf/baai/bge-m3")),
        ("braintrust/gpt-4o", ("braintrust", "gpt-4o")),
    ],
)
def test_a_full_name_splits_into_provider_and_model(name, parts):
    assert split_model(name) == parts


@pytest.mark.parametrize("name", ["", "gpt-4o", "nobody/gpt-4o", "local/", "local", "/x"])
def test_a_name_without_a_known_provider_is_refused_with_the_known_ones(name):
    with pytest.raises(ModelNotFound, match="workers-ai/"):
        split_model(name)


def test_every_provider_in_the_table_can_be_connected(monkeypatch):
    for provider in PROVIDERS.values():
        for key in secrets_of(provider.access):
            monkeypatch.setenv(key, "k")
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", "0" * 32)
    monkeypatch.setenv("BRAINTRUST_PROJECT_ID", "p")
    assert [connect_async(provider).name for provider in PROVIDERS] == list(PROVIDERS)


def test_the_key_of_every_provider_in_the_table_is_kept_secret():
    for provider in PROVIDERS.values():
        keys = secrets_of(provider.access)
        assert bool(keys) == (provider.access is not None)
        assert set(keys) <= set(SECRET_VARIABLES)


def test_a_backend_can_be_had_by_a_models_full_name():
    assert connect_async("local/smollm2-135m-instruct").name == "local"


def test_missing_settings_are_named(monkeypatch):
    monkeypatch.delenv("CLOUDFLARE_ACCOUNT_ID", raising=False)
    monkeypatch.delenv("CLOUDFLARE_API_TOKEN", raising=False)
    with pytest.raises(MissingSettings, match=r"CLOUDFLARE_ACCOUNT_ID.*CLOUDFLARE_API_TOKEN"):
        connect_async("workers-ai")


def test_what_differs_by_provider_is_asked_of_the_table():
    llama, flux = "@cf/meta/llama-3.1-8b-instruct", "@cf/black-forest-labs/flux-1-schnell"
    assert [takes_own_input("workers-ai", model) for model in (llama, flux)] == [False, True]
    assert [chats("workers-ai", model) for model in (llama, flux)] == [True, False]
    assert (takes_own_input("openai", flux), chats("openai", flux)) == (False, True)
    assert [name for name in PROVIDERS if passes_routes_on(name)] == ["openai", "braintrust"]


def test_no_step_names_a_provider_that_the_table_tells_apart():
    steps = Path(__file__).parents[2] / "transforms"
    words = {
        node.value
        for path in steps.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
    }
    assert not words & {"workers-ai", "braintrust", "local"}
