import json

import pytest

from llmdo.transforms.prompts.models import ModelNotAllowed, rules_of
from llmdo.transforms.prompts.parse import Defaults, parse_prompt

RUN = "workers-ai/@cf/meta/llama"
KIMI, GPT, BGE = "workers-ai/@cf/moonshotai/kimi", "openai/gpt-4o", "workers-ai/@cf/baai/bge-m3"
RULES = (("embed/*", BGE), ("gpt/*", GPT))


def asked(model, allowed=None, key="a.jsonl"):
    """The model that a line which names ``model`` asks; None where it is not allowed, and no provider is looked at."""
    looked_at = []
    given = {} if allowed is None else {"line_models": allowed}
    defaults = Defaults(RUN, models=RULES, **given)
    line = json.dumps({"prompt": "x", "model": model}).encode()
    try:
        prompt = parse_prompt(line, "r", defaults, lambda provider, _: looked_at.append(provider) or 1, key)
    except ModelNotAllowed:
        assert looked_at == []
        return None
    return f"{prompt.provider}/{prompt.request.model}"


@pytest.mark.parametrize(
    ("allowed", "answered"),
    [
        (None, {RUN, KIMI}),
        ("same-provider", {RUN, KIMI}),
        ("any", {RUN, KIMI, GPT, "local/m"}),
        ("none", {RUN}),
        ("openai/*", {RUN, GPT}),
        ("openai/gpt-3*", {RUN}),
        ("same-provider,openai/gpt-4o, local/*", {RUN, KIMI, GPT, "local/m"}),
        ("@cf/moonshotai/*", {RUN, KIMI}),
        ("*/gpt-4o", {RUN, GPT}),
        ("*", {RUN, KIMI, GPT, "local/m"}),
        ("ignore", {RUN}),
    ],
)
def test_a_line_gets_the_runs_model_or_one_that_is_allowed_and_no_other(allowed, answered):
    assert {asked(model, allowed) for model in (RUN, KIMI, GPT, "local/m")} - {None} == answered


def test_the_same_provider_is_that_of_the_model_the_files_lines_would_get():
    assert asked(GPT, key="gpt/a.jsonl") == GPT
    assert asked("openai/gpt-5", key="gpt/a.jsonl") == "openai/gpt-5"
    assert asked("gpt-5", key="gpt/a.jsonl") == "openai/gpt-5"  # a bare name is the file's provider's
    assert asked(KIMI, key="gpt/a.jsonl") is None
    assert asked(GPT) is None


@pytest.mark.parametrize("where", ["batch line", "body"])
def test_the_body_of_a_batch_line_names_no_other_provider_either(where):
    line = {"url": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "x"}]}}
    (line if where == "batch line" else line["body"])["model"] = GPT
    with pytest.raises(ModelNotAllowed):
        parse_prompt(json.dumps(line).encode(), "r", Defaults(RUN), lambda *_: 1)


@pytest.mark.parametrize(
    ("allowed", "more"),
    [
        ("same-provider", "same-provider,openai/*"),
        ("none", "openai/*"),
        ("@cf/*,local/*", "workers-ai/@cf/*,local/*,openai/*"),
    ],
)
def test_the_error_names_the_option_that_allows_the_line_and_quotes_nothing_of_the_line_in_it(allowed, more):
    hostile = "openai/x'; touch /tmp/x '"
    line = json.dumps({"prompt": "x", "model": hostile}).encode()
    with pytest.raises(ModelNotAllowed) as error:
        parse_prompt(line, "r", Defaults(RUN, line_models=allowed), lambda *_: 1)
    assert error.value.message == (
        f"the line names {hostile}, and --line-models {allowed} does not allow that: allow it with --line-models "
        f"'{more}' (in Python line_models), also for this line with llmdo retry OUTPUT --line-models '{more}'"
    )
    defaults = Defaults(RUN, line_models=more)
    assert parse_prompt(line, "r", defaults, lambda *_: 1).provider == "openai"


@pytest.mark.parametrize(
    "text", ["openai", "", "same_provider", "any,openai/*", "openai/*,", "none,local/*", "ignore,local/*"]
)
def test_what_can_match_no_model_is_refused(text):
    with pytest.raises(ValueError, match="matches no PROVIDER/MODEL: write same-provider, any, none, ignore, or globs"):
        rules_of(text)


# Models that a provider is known not to have


@pytest.mark.parametrize(
    ("run", "base_url", "named"),
    [
        (RUN, "", "claude-sonnet-4-5"),
        (RUN, "", "gpt-4o"),
        ("openai/gpt-4o", "", "claude-sonnet-4-5"),
        ("openai/gpt-4o", "", "gemini-2.5-flash"),
    ],
)
@pytest.mark.parametrize("shape", ["anthropic", "openai", "prompt"])
def test_a_model_of_another_service_makes_no_call_and_the_remedy_works(run, base_url, named, shape, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", base_url)
    messages = [{"role": "user", "content": "x"}]
    line = {
        "anthropic": {"custom_id": "a", "params": {"model": named, "max_tokens": 5, "messages": messages}},
        "openai": {"custom_id": "a", "url": "/v1/chat/completions", "body": {"model": named, "messages": messages}},
        "prompt": {"id": "a", "model": named, "prompt": "x"},
    }[shape]
    data = json.dumps(line).encode()
    for allowed in ("same-provider", "any"):
        with pytest.raises(ModelNotAllowed) as error:
            parse_prompt(data, "r", Defaults(run, line_models=allowed), lambda *_: 1)
        assert f"the line names {named}, which is not a model of {run.partition('/')[0]}: --line-models ignore" in (
            error.value.message
        )
    prompt = parse_prompt(data, "r", Defaults(run, line_models="ignore"), lambda *_: 1)
    assert (f"{prompt.provider}/{prompt.request.model}", prompt.own_model, prompt.metadata) == (run, False, {})
    assert prompt.warnings == (f"model '{named}' was left out: --line-models ignore asks the run's own",)


def test_a_server_of_ones_own_may_have_a_model_of_any_name(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "https://api.anthropic.com/v1")
    line = {"custom_id": "a", "params": {"model": "claude-x", "messages": [{"role": "user", "content": "x"}]}}
    prompt = parse_prompt(json.dumps(line).encode(), "r", Defaults("openai/claude-y"), lambda *_: 1)
    assert (prompt.request.model, prompt.own_model) == ("claude-x", True)


def test_with_ignore_a_line_names_no_model_where_it_names_none():
    prompt = parse_prompt(b'{"prompt": "x"}', "r", Defaults(RUN, line_models="ignore"), lambda *_: 1)
    assert prompt.warnings == ()
