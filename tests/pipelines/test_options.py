import pytest

from llmdo.backends.limits.concurrency_limit import Concurrency
from llmdo.pipelines.options import JsonlOptions, check_options
from llmdo.pipelines.usage import UsageError
from llmdo.storage.objects.store import Location
from llmdo.transforms.files.source import Listing, Notifications

ENVIRONMENT = {
    "CLOUDFLARE_ACCOUNT_ID": "0123456789abcdef0123456789abcdef",
    "CLOUDFLARE_API_TOKEN": "token-value",
    "R2_ACCESS_KEY_ID": "key-value",
    "R2_SECRET_ACCESS_KEY": "secret-value",
}
LOCAL = {"files": ("a.jsonl",), "output": "out/", "model": "local/smollm2-135m-instruct"}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def test_local_files_need_no_environment(monkeypatch):
    for name in ENVIRONMENT:
        monkeypatch.delenv(name)
    options = check_options(**LOCAL)
    assert options.source == Listing(("a.jsonl",))
    assert options.output_location.store_url.endswith("/out")
    assert options.output_location.bucket == ""


def test_a_queue_and_r2_give_their_places():
    options = check_options(queue="q", output="r2://bucket/output", prefix="input/")
    assert options.source == Notifications("q", "input/")
    assert options.output_location == Location("r2://bucket", "output/")
    assert options.model == "workers-ai/@cf/meta/llama-3.3-70b-instruct-fp8-fast"
    assert check_options(input="r2://bucket/in/", output="r2://bucket").output_location == Location("r2://bucket", "")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"files": ()}, "name the prompts: either FILES, or --queue (neither given)"),
        ({"queue": "q"}, "either FILES, or --queue (both given)"),
        ({"output": "s3://bucket/x"}, "s3:// is not known here"),
        ({"output": "r2://b/x"}, "3 to 63 characters"),
        ({"model": "gpt-4o"}, "--model 'gpt-4o': 'gpt-4o' names no provider"),
        ({"runner": "spark"}, "--runner 'spark'"),
        ({"concurrency": "many"}, "--concurrency 'many': write a number, or fixed:NUMBER"),
        ({"concurrency": "0"}, "--concurrency"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"temperature": -1}, "--temperature -1"),
        ({"prompt": "Hello"}, "--prompt 'Hello': it has no field"),
        ({"prompt": "{a.b}"}, "{a.b} is not a field"),
        ({"model_for": ("x/*",)}, "--model-for: 'x/*' has no pattern or no model: write GLOB=PROVIDER/MODEL"),
        ({"model_for": ("x/*=gpt-4o",)}, "'gpt-4o' names no provider"),
        ({"line_models": "openai"}, "--line-models 'openai': 'openai' matches no PROVIDER/MODEL: write same-provider"),
        ({"response_schema": {"name": "x"}}, "--schema"),
        ({"response_schema": {"type": "objekt"}}, "--schema: answers cannot be checked by it: $.type fits none"),
        ({"response_schema": {"items": {"$ref": "https://a.b"}}}, "$.items.$ref leads nowhere: 'https://a.b'"),
        (
            {"response_schema": {"items": {"pattern": "(?=a)"}}},
            "$.items.pattern cannot be used as a regular expression",
        ),
        ({"max_cost": 0}, "--max-cost 0"),
        ({"max_cost": float("nan")}, "--max-cost"),
        ({"max_tokens_total": 0}, "--max-tokens-total 0"),
        ({"poll_seconds": 0.01}, "--poll-seconds 0.01"),
        ({"mode": "later"}, "--mode 'later'"),
        ({"deadline": 0}, "--deadline 0"),
        ({"deadline": float("inf")}, "--deadline inf"),
        ({"workers": 0}, "--workers 0"),
        ({"gateway": "two words"}, "--gateway 'two words': write the gateway's id, or the URL"),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(changed, says):
    with pytest.raises(UsageError) as raised:
        check_options(**{**LOCAL, **changed})
    assert says in str(raised.value)


def test_all_that_is_wrong_is_said_at_once(monkeypatch):
    for name in ENVIRONMENT:
        monkeypatch.delenv(name)
    with pytest.raises(UsageError) as raised:
        check_options(queue="q", output="r2://bucket/x", batch_size=0, concurrency="x")
    said = "\n".join(raised.value.problems)
    for name in ("--batch-size", "--concurrency", *ENVIRONMENT):
        assert name in said
    assert len(raised.value.problems) == len(set(raised.value.problems))


def test_concurrency_is_a_number_or_fixed():
    assert check_options(**LOCAL, concurrency="fixed:7").concurrency == Concurrency(7, fixed=True)
    assert check_options(**LOCAL, concurrency="9").concurrency == Concurrency(9)
    assert check_options(**LOCAL, concurrency=Concurrency(5, fixed=True)).concurrency == Concurrency(5, fixed=True)
    again = check_options(**LOCAL, concurrency="fixed:7").model_dump(mode="json")
    assert JsonlOptions(**again).concurrency == Concurrency(7, fixed=True)


@pytest.mark.parametrize("value", ["-1", "4097", "1e2", 2.5, True, None, "fixed:", "fixed:0", "fixed:\u0663"])
def test_what_is_no_number_of_calls_is_refused(value):
    with pytest.raises(UsageError, match="--concurrency"):
        check_options(**LOCAL, concurrency=value)


@pytest.mark.parametrize("fixed", [True, False])
def test_that_the_concurrency_is_fixed_is_said_in_one_place_only(fixed):
    with pytest.raises(UsageError, match="--fixed"):
        check_options(**LOCAL, fixed=fixed)


def test_only_prism_checkpoints_its_reader():
    assert check_options(**LOCAL).reading.checkpoint_seconds is None
    assert check_options(**LOCAL, runner="prism").reading.checkpoint_seconds == 30


def test_the_fingerprint_follows_what_decides_an_answer_and_nothing_else():
    plain = check_options(**LOCAL).configuration
    assert check_options(**LOCAL, concurrency=3, batch_size=7, runner="prism").configuration == plain
    how = {
        "mode": "batch",
        "deadline": 5.0,
        "workers": 2,
        "gateway": "mine",
        "rpm": 60,
        "tpm": 1000,
        "line_models": "any",
    }
    assert check_options(**LOCAL, **how).configuration == plain
    others = [{"max_tokens": 5}, {"temperature": 0}, {"system": "Be kind."}, {"model": "@cf/x/y"}]
    prints = {check_options(**{**LOCAL, **other}).configuration for other in others}
    assert len(prints | {plain}) == 5


# Written by the version before there were templates: outputs of that time must go on.
BEFORE = {
    "8c062ce3ad03c5a8": {},
    "1f63212e5c91ac1e": {"max_tokens": 5, "temperature": 0.5, "system": "Be kind."},
}


def test_how_vectors_are_written_decides_only_where_it_is_not_as_numbers():
    plain, packed = (check_options(**LOCAL, **given) for given in ({"vectors": "float"}, {"vectors": "base64"}))
    assert (plain.configuration, plain.decisive) == (
        check_options(**LOCAL).configuration,
        check_options(**LOCAL).decisive,
    )
    assert (packed.decisive["vectors"], packed.configuration != plain.configuration) == ("base64", True)


def test_whether_lines_have_parameters_beside_a_template_decides_an_answer_and_is_said_only_with_one():
    given = {**LOCAL, "prompt": "Say {text}"}
    options = check_options(**given)
    assert options.configuration == check_options(**given, line_parameters=False).configuration
    assert "line_parameters" not in options.decisive and options.defaults.only_content
    counted = check_options(**given, line_parameters=True)
    assert counted.configuration != options.configuration and not counted.defaults.only_content
    with pytest.raises(UsageError, match="--line-parameters needs --prompt"):
        check_options(**LOCAL, line_parameters=True)


@pytest.mark.parametrize(("fingerprint", "given"), BEFORE.items())
def test_an_output_of_an_earlier_version_keeps_its_fingerprint(fingerprint, given):
    options = check_options(**LOCAL, **given)
    assert set(options.decisive) == {"model", "parameters", "system"}
    assert options.configuration == fingerprint
    unset = {"prompt": "", "model_for": (), "response_schema": None, "max_cost": 3.0, "max_tokens_total": 9}
    assert check_options(**LOCAL, **given, **unset).configuration == fingerprint


SCHEMA = {"title": "A label!", "type": "object", "properties": {"label": {"type": "string"}}}


def test_templates_schema_and_models_by_key_decide_an_answer():
    plain = check_options(**LOCAL).configuration
    others = [
        {"prompt": "Say {a}"},
        {"prompt": "Say {b}"},
        {"model_for": ("x/*=@cf/baai/bge-m3",)},
        {"model_for": ("y/*=@cf/baai/bge-m3",)},
        {"response_schema": SCHEMA},
        {"system": "Say {a}"},
    ]
    prints = {check_options(**{**LOCAL, **other}).configuration for other in others}
    assert len(prints | {plain}) == 7
    # Before there were templates, these braces stayed as they were.
    assert check_options(**LOCAL, system="Say {a}").decisive["system_fields"] == ["a"]
    assert "system_fields" not in check_options(**LOCAL, system='Say {"a": 1}').decisive


def test_the_defaults_have_templates_models_by_key_and_the_schema():
    options = check_options(
        **LOCAL, prompt="Say {a}", model_for=("a=b/*=@cf/baai/bge-m3",), response_schema=SCHEMA, max_tokens=9
    )
    assert options.defaults.prompt == "Say {a}"
    assert options.defaults.models == (("a=b/*", "workers-ai/@cf/baai/bge-m3"),)
    assert options.models == ("local/smollm2-135m-instruct", "workers-ai/@cf/baai/bge-m3")
    assert options.defaults.parameters == {
        "max_tokens": 9,
        "response_format": {"type": "json_schema", "json_schema": {"name": "A_label_", "schema": SCHEMA}},
    }
    assert options.decisive["schema"] == SCHEMA


def test_a_model_by_key_needs_its_provider_too(monkeypatch):
    monkeypatch.delenv("CLOUDFLARE_API_TOKEN")
    check_options(**LOCAL)
    with pytest.raises(UsageError, match="CLOUDFLARE_API_TOKEN"):
        check_options(**LOCAL, model_for=("x/*=@cf/baai/bge-m3",))


def test_no_option_holds_a_secret():
    dumped = check_options(queue="q", output="r2://bucket/x").model_dump_json()
    assert not any(secret in dumped for secret in ("token-value", "key-value", "secret-value"))
    assert not {name for name in JsonlOptions.model_fields if "token" in name} - {"max_tokens", "max_tokens_total"}


@pytest.mark.parametrize(
    ("model", "missing"),
    [
        ("openai/gpt-4o", ["OPENAI_API_KEY"]),
        ("braintrust/gpt-4o", ["BRAINTRUST_API_KEY", "BRAINTRUST_PROJECT_ID"]),
        ("@cf/baai/bge-m3", ["CLOUDFLARE_ACCOUNT_ID", "CLOUDFLARE_API_TOKEN"]),
    ],
)
def test_the_environment_must_have_what_the_models_provider_needs(monkeypatch, model, missing):
    for name in (*ENVIRONMENT, "OPENAI_API_KEY", "OPENAI_BASE_URL", "BRAINTRUST_API_KEY", "BRAINTRUST_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError) as raised:
        check_options(**{**LOCAL, "model": model})
    assert [problem.partition(" ")[0] for problem in raised.value.problems] == missing
    for name in missing:
        monkeypatch.setenv(name, "0" * 32)
    assert check_options(**{**LOCAL, "model": model}).model.endswith(model)


@pytest.mark.parametrize(
    ("flink", "apart", "in_flight"),
    [
        ({"parallelism": 3}, False, 192),
        ({"parallelism": 3, "environment_type": "EXTERNAL"}, True, 64),
        ({"flink_master": "host:8081"}, True, 64),
        ({"flink_master": "host:8081", "environment_type": "LOOPBACK"}, False, 64),
    ],
)
def test_a_budget_is_refused_where_other_processes_would_call(flink, apart, in_flight):
    options = JsonlOptions(files=("a",), output="out", model="@cf/a/b", runner="flink", flink=flink)
    assert (options.apart, options.calls_in_flight) == (apart, in_flight)
    assert options.reading.planned
    if apart:
        with pytest.raises(ValueError, match="--max-cost and --max-tokens-total are counted in one process"):
            JsonlOptions(files=("a",), output="out", model="@cf/a/b", runner="flink", flink=flink, max_tokens_total=5)


QUEUE = {"queue": "q", "output": "r2://bucket/output", "continuous": True}
PROCESS = {"environment_type": "PROCESS", "environment_config": '{"command": "/usr/bin/true"}'}
APART = {**LOCAL, "runner": "flink", "flink": PROCESS, "max_tokens_total": 9}


@pytest.mark.parametrize(
    ("wrong", "said", "remedies"),
    [
        (QUEUE, "needs --queue, and --runner prism", [{"runner": "prism"}]),
        (
            APART,
            "use --budget, or --runner direct, prism, or flink with --environment-type LOOPBACK",
            [
                {"max_tokens_total": None, "budget": "2M tokens"},
                {"runner": "direct", "flink": None},
                {"runner": "prism", "flink": None},
                {"flink": {"environment_type": "LOOPBACK"}},
                {"max_tokens_total": None},
            ],
        ),
    ],
)
def test_what_is_said_of_wrong_options_makes_them_right(wrong, said, remedies):
    with pytest.raises(UsageError, match=said):
        check_options(**wrong)
    for remedy in remedies:
        check_options(**{name: value for name, value in {**wrong, **remedy}.items() if value is not None})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"continuous": True, "queue": "q", "files": (), "runner": "flink"}, "it is for --runner prism"),
        ({"runner": "prism"}, "it is for --runner direct"),
        ({"runner": "flink"}, "Flink has --parallelism"),
        ({"mode": "batch"}, "use --mode sync"),
        ({"reuse": "same-request"}, "use --reuse same-line"),
        ({"processes": 0}, "--processes 0"),
        ({"processes": 65}, "--processes 65"),
    ],
)
def test_what_several_processes_cannot_do_is_refused_with_what_to_do_instead(given, says):
    with pytest.raises(UsageError) as refused:
        check_options(**{**LOCAL, "processes": 3, **given})
    assert says in str(refused.value) and "--processes" in str(refused.value)


def test_the_number_of_processes_does_not_affect_answers():
    assert check_options(**LOCAL, processes=3).configuration == check_options(**LOCAL).configuration


@pytest.mark.parametrize(
    ("written", "usd", "tokens", "period"),
    [
        ("5 USD/day", 5.0, None, "day"),
        (" $1,200.50 / month ", 1200.5, None, "month"),
        ("5usd per week", 5.0, None, "week"),
        ("$5", 5.0, None, "ever"),
        (".25 USD/hour", 0.25, None, "hour"),
        ("2M tokens/day", None, 2_000_000, "day"),
        ("2Mtokens/day", None, 2_000_000, "day"),
        ("1.5k tokens", None, 1500, "ever"),
        ("70000 tokens/hour", None, 70_000, "hour"),
        ("1 token", None, 1, "ever"),
    ],
)
def test_a_budget_is_read_as_it_is_written_and_written_so_that_it_is_read(written, usd, tokens, period):
    budget = check_options(**LOCAL, budget=written).budget
    assert (budget.usd, budget.tokens, budget.period) == (usd, tokens, period)
    assert check_options(**LOCAL, budget=str(budget)).budget == budget


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("5 EUR/day", "prices are in US dollars, and EUR is given: write '5 USD/day'"),
        ("5", "and no unit is given"),
        ("€5/day", "prices are in US dollars, and € is given"),
        ("5 USD/fortnight", "'fortnight' is not a period: write hour, day, week, month"),
        ("5 USD/minute", "'minute' is not a period"),
        ("0 USD/day", "more than nothing"),
        ("0.4 tokens", "1 token at least"),
        ("$5 tokens", "1 token at least"),
        ("-5 USD/day", "write an amount and a period"),
        ("inf USD", "write an amount and a period"),
        ("", "write an amount and a period"),
        ("5 USD/", "write an amount and a period"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused_with_what_to_write(written, said):
    with pytest.raises(UsageError, match=said):
        check_options(**LOCAL, budget=written)


def test_a_budget_does_not_decide_answers():
    assert check_options(**LOCAL, budget="5 USD/day").configuration == check_options(**LOCAL).configuration
