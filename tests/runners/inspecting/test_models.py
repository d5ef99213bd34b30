import json

import pytest

from llmdo.backends.errors import Overloaded
from llmdo.backends.responses import ModelInfo, Models, Price
from llmdo.runners.cli.main import main
from llmdo.runners.inspecting import models
from llmdo.runners.inspecting.models import Listed, price_text, problems, table
from llmdo.settings.environment import MissingSettings

LLAMA = "workers-ai/@cf/meta/llama-3.3-70b-instruct-fp8-fast"


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("BRAINTRUST_API_KEY", "BRAINTRUST_PROJECT_ID", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def elsewhere(monkeypatch):
    """The stand-in counts as a service on another machine, whose lists are kept."""
    monkeypatch.setattr("llmdo.backends.listing.is_loopback", lambda url: False)


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        main(["models", *arguments])
    said = capsys.readouterr()
    return left.value.code or 0, said.out, said.err


def test_a_providers_models_stand_in_a_table_with_context_and_price(cloudflare, capsys):
    code, out, err = run(capsys, "workers-ai")
    assert (code, err) == (0, "")
    (row,) = [line for line in out.splitlines() if LLAMA in line]
    assert "24,000" in row
    assert "0.29 / 2.25" in row
    assert "Text Generation" in row


def test_a_task_chooses(cloudflare, capsys):
    names = [line.split()[0] for line in run(capsys, "workers-ai", "--task", "embed")[1].splitlines()[1:]]
    assert "workers-ai/@cf/baai/bge-m3" in names
    assert LLAMA not in names


def test_json_holds_everything_and_the_second_list_is_from_the_cache(cloudflare, elsewhere, capsys):
    first, second = (json.loads(run(capsys, "workers-ai", "--json")[1])[0] for _ in range(2))
    assert first["models"] == second["models"]
    assert (first["age_s"], second["age_s"] > 0) == (0.0, True)
    (llama,) = [model for model in first["models"] if model["name"] == LLAMA]
    assert (llama["price"]["input"], llama["context_tokens"]) == (0.29, 24_000)


def test_when_the_service_is_away_the_old_list_is_shown_and_said(cloudflare, elsewhere, capsys, monkeypatch):
    run(capsys, "openai")
    monkeypatch.setattr("llmdo.backends.listing.FRESH_S", 0.0)
    cloudflare.fault("ai", status=503)
    code, out, err = run(capsys, "openai")
    assert (code, "openai/@cf/echo/chat" in out) == (0, True)
    assert "the list of openai is 0 minutes old" in err


def test_all_providers_are_listed_as_far_as_they_can_be(cloudflare, capsys):
    code, out, err = run(capsys)
    assert code == 0
    assert LLAMA in out
    assert "local/smollm2-135m-instruct" in out
    assert "openai/@cf/echo/chat" in out
    assert "braintrust is not listed: BRAINTRUST_API_KEY is not set" in err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nobody"], 2, "'nobody' is not a provider"),
        (["braintrust"], 2, "BRAINTRUST_PROJECT_ID is not set"),
        (["anthropic"], 2, "ANTHROPIC_API_KEY is not set"),
        (["openai"], 1, "503"),
    ],
)
def test_what_cannot_be_listed_is_one_sentence(cloudflare, capsys, arguments, code, says):
    cloudflare.fault("ai", status=503)
    left, out, err = run(capsys, *arguments)
    assert (left, out) == (code, "")
    assert says in err


def test_nothing_that_can_be_listed_is_a_failure(capsys, monkeypatch):
    def fail(name):
        raise MissingSettings(["X is not set"]) if name == "openai" else Overloaded("down")

    monkeypatch.setattr(models, "connect", fail)
    code, _, err = run(capsys)
    assert code == 1
    assert err.count("is not listed") == 5


def test_prices_of_all_kinds_are_shown():
    assert price_text(None) == ""
    assert price_text(Price(0.29, 2.25)) == "0.29 / 2.25"
    assert price_text(Price(0.0118)) == "0.0118"
    assert price_text(Price(0.0005, unit="audio minute")) == "0.0005 audio minute"


def test_a_date_of_end_stands_in_the_table_and_names_are_no_markup():
    old = ModelInfo("p/[bold]x", deprecated="2026-05-30", capabilities=frozenset({"tools", "json"}))
    lists = [Listed("p", Models((old,), 7200.0, "down")), Listed("q", None, "no key")]
    cells = [list(column.cells) for column in table(lists).columns]
    assert [str(cell[0]) for cell in cells] == ["p/[bold]x", "", "", "", "json, tools", "2026-05-30"]
    assert problems(lists) == ["the list of p is 120 minutes old: down", "q is not listed: no key"]


def test_a_task_that_nothing_has_is_said(cloudflare, capsys):
    code, _, err = run(capsys, "workers-ai", "--task", "zzz")
    assert (code, "no model's task, or name, contains 'zzz'" in err) == (1, True)


def test_the_table_says_in_what_it_counts(cloudflare, capsys):
    head = run(capsys, "workers-ai")[1].splitlines()[0]
    assert "CONTEXT, TOKENS" in head and "USD IN / OUT, PER M TOKENS" in head
