import asyncio
import json
import random
import threading
import time
from collections import Counter
from types import SimpleNamespace

import apache_beam as beam
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.transforms.window import FixedWindows, TimestampedValue

from llmdo.backends.engine import registry
from llmdo.backends.engine.registry import close_engines
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import (
    BudgetSpent,
    InvalidRequest,
    ModelNotFound,
    ModelRetired,
    Overloaded,
    PriceUnknown,
    QuotaExhausted,
    Unauthorized,
)
from llmdo.backends.limits import retry
from llmdo.backends.money.limits import NO_LIMITS, Limits
from llmdo.backends.money.money import Budget
from llmdo.backends.money.prices import Prices
from llmdo.backends.responses import ChatResponse, EmbedResponse, ModelInfo, Models, Price, RawResponse
from llmdo.backends.usage import Usage
from llmdo.settings.environment import MissingSettings
from llmdo.storage.objects.store import Location
from llmdo.storage.output.costs import UNPAID, Cost, LaneCost
from llmdo.storage.output.manifests import ShardRecord
from llmdo.transforms import run_state as run_state_module
from llmdo.transforms.answers import bundle_calls
from llmdo.transforms.answers.infer import Infer
from llmdo.transforms.answers.ledger_settings import LedgerSettings
from llmdo.transforms.elements import Answer, Blank, Failure, FileVersion, KnownShard, Line, Stale, TooLong
from llmdo.transforms.prompts.parse import Defaults
from llmdo.transforms.run import Run
from tests.states import fresh_state, run_state

FILE = FileVersion("r2://bucket", "input/a.jsonl", "e1", 100_000)
SIZE = 1000
NO_PRICES = Prices(lambda provider: Models(()))


class Scripted:
    """Stands for a provider: answers each prompt as the prompt says, after a random moment."""

    name = "workers-ai"

    def __init__(self):
        self.calls = []

    async def execute(self, request):
        text = request.messages[-1].content
        self.calls.append(text)
        await asyncio.sleep(random.random() / 100)
        match text.split()[0]:
            case "busy":
                raise Overloaded("out of capacity", status=429, code=3040)
            case "bad":
                raise InvalidRequest("does not fit", status=400, code=5006)
            case "unknown":
                raise ModelNotFound(f"no model {request.model}")
            case "retired":
                raise ModelRetired(f"{request.model} is gone", status=410)
            case "token":
                raise Unauthorized("the token is not valid: check it", status=401)
            case "quota":
                raise QuotaExhausted("used up", status=429, code=3036)
        return ChatResponse(f"re: {text}", "stop", Usage(3, 2), request.model)

    async def embed(self, request):
        self.calls.append(request.texts)
        if "poison" in request.texts:
            raise InvalidRequest("no such text", status=400)
        return EmbedResponse(tuple((float(len(t)),) for t in request.texts), Usage(len(request.texts)), request.model)

    async def run(self, request):
        return RawResponse(dict(request.input), Usage(), request.model)

    def max_texts(self, model):
        return 10 if "bge" in model else 1

    def connect(self, name):
        if name == "braintrust":
            raise MissingSettings(["BRAINTRUST_API_KEY is not set: export it"])
        return self

    async def aclose(self):
        pass


@pytest.fixture
def provider(monkeypatch):
    scripted = Scripted()
    monkeypatch.setattr(registry, "connect", lambda name, gateway: scripted.connect(name))
    retry.set_instant(True)
    yield scripted
    retry.set_instant(False)
    close_engines()


def line(i, document):
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return Line(FILE, i * SIZE, (i + 1) * SIZE, data)


RUN = Run("run-1", Location("out", ""))

# A module global, since Beam pickles closures: what a step puts into a local list is never seen here.
FOUND = []


def collect(element):
    FOUND.append(element)


def outcomes(tiles, window=4, model="workers-ai/@cf/chat", line_models="same-provider", **options):
    """Runs Infer on FnApiRunner and returns what it emits, sorted by offset."""
    FOUND.clear()
    with TestPipeline(runner="FnApiRunner") as pipeline:
        step = Infer(Defaults(model, line_models=line_models), CallSettings(window, **options), RUN)
        result = pipeline | beam.Create(tiles, reshuffle=False) | step
        _ = result | beam.Map(collect)
    return sorted(FOUND, key=lambda outcome: getattr(outcome, "start", -1))


class CollectWindows(beam.DoFn):
    def process(self, outcome, window=beam.DoFn.WindowParam, timestamp=beam.DoFn.TimestampParam):
        FOUND.append((outcome.start // SIZE, int(window.start), int(timestamp)))


@pytest.mark.parametrize("count", [0, 1, 3, 100])
def test_every_line_has_one_outcome_in_windows_smaller_and_larger_than_the_input(provider, count):
    found = outcomes([line(i, {"id": i, "prompt": f"hello {i}"}) for i in range(count)])
    assert [(type(o), o.start, o.stop) for o in found] == [(Answer, i * SIZE, (i + 1) * SIZE) for i in range(count)]
    rows = [json.loads(o.row) for o in found]
    assert [r["response"]["body"]["choices"][0]["message"]["content"] for r in rows] == [
        f"re: hello {i}" for i in range(count)
    ]
    assert len(provider.calls) == count
    assert (run_state().counts.answered, run_state().counts.input_tokens) == (count, 3 * count)


def test_fewer_lines_than_an_eighth_of_the_window_are_not_waited_for_longer_than_they_take(provider, monkeypatch):
    monkeypatch.setattr(bundle_calls, "_LOOK_AGAIN", 200.0)
    monkeypatch.setattr(run_state_module, "Budget", lambda limits, _: Budget(limits, NO_PRICES))
    begin = time.monotonic()
    assert len(outcomes([line(i, {"prompt": f"hello {i}"}) for i in range(3)], window=64)) == 3
    assert time.monotonic() - begin < 150.0


def test_a_line_that_fails_does_not_disturb_the_others_and_refused_calls_get_twenty_tries(provider):
    tiles = [
        line(0, {"prompt": "hello"}),
        line(1, {"prompt": "bad one"}),
        line(2, {"prompt": "busy one"}),
        line(3, b"{broken"),
        TooLong(FILE, 4 * SIZE, 5 * SIZE),
        line(5, {"prompt": "unknown", "model": "@cf/other"}),
        line(6, {"prompt": "hello again"}),
    ]
    found = outcomes(tiles)
    assert [type(o) for o in found] == [Answer, Failure, Failure, Failure, Failure, Failure, Answer]
    errors = [json.loads(o.row)["error"] for o in found if isinstance(o, Failure)]
    assert [(e["class"], e["attempts"], e["retryable"]) for e in errors] == [
        ("InvalidRequest", 1, False),
        ("Overloaded", 20, True),
        ("BadLine", 0, False),
        ("LineTooLong", 0, False),
        ("ModelNotFound", 1, False),
    ]
    assert provider.calls.count("busy one") == 20


def test_what_needs_no_call_goes_through(provider):
    others = [
        Blank(FILE, 0, 1),
        Stale(FILE, "gone", True),
        KnownShard(FILE, ShardRecord("shard-000000000000-a.jsonl", "answers", "0+9", 1)),
    ]
    found = outcomes(others)
    assert len(found) == 3 and all(other in found for other in others)
    assert provider.calls == []


def test_texts_share_calls_and_a_bad_one_stands_alone(provider):
    texts = [f"text {'x' * i}" for i in range(25)]
    texts[13] = "poison"
    found = outcomes([line(i, {"text": t, "model": "@cf/bge"}) for i, t in enumerate(texts)])
    assert [i for i, o in enumerate(found) if isinstance(o, Failure)] == [13]
    vectors = [json.loads(o.row)["response"]["body"]["data"][0]["embedding"] for o in found if isinstance(o, Answer)]
    assert vectors == [[float(len(t))] for i, t in enumerate(texts) if i != 13]
    assert sorted(len(call) for call in provider.calls if "poison" not in call)[-2:] == [5, 10]
    assert len(provider.calls) <= 3 + 8


def data_of(outcome):
    return json.loads(outcome.row)["response"]["body"]["data"]


def test_the_texts_of_a_line_share_calls_with_those_of_others_and_a_bad_one_loses_no_other(provider):
    texts = [f"text {'x' * i}" for i in range(25)]
    texts[13] = "poison"
    tiles = [line(0, {"text": texts, "model": "@cf/bge"}), line(1, {"text": "y", "model": "@cf/bge"})]
    many, one = outcomes(tiles)
    assert [row["embedding"] for row in data_of(many)] == [[float(len(t))] if t != "poison" else None for t in texts]
    assert [row["error"] for row in data_of(many) if "error" in row] == [{"code": None, "message": "no such text"}]
    assert json.loads(many.row)["warnings"] == ["1 of 25 texts has no vector: the one with index 13"]
    assert [row["embedding"] for row in data_of(one)] == [[1.0]]
    assert (many.input_tokens + one.input_tokens, run_state().counts.answered, run_state().counts.failed) == (25, 2, 0)
    assert max(map(len, provider.calls)) == 10 and len(provider.calls) <= 3 + 8


def test_a_line_of_texts_that_are_all_refused_is_one_failure(provider):
    (found,) = outcomes([line(0, {"text": ["poison", "poison"], "model": "@cf/bge"})])
    assert isinstance(found, Failure)
    assert json.loads(found.row)["error"]["message"] == "no such text"


def test_each_text_of_a_line_is_paid_once_over_runs(provider, tmp_path):
    paid = LedgerSettings(f"sqlite:///{tmp_path}/ledger.sqlite")
    tile = line(0, {"text": ["a", "poison", "ccc"], "model": "@cf/bge"})
    (first,) = outcomes([tile], kept=paid)
    provider.calls.clear()
    (second,) = outcomes([tile], window=5, kept=paid)
    assert [row["embedding"] for row in data_of(first)] == [[1.0], None, [3.0]]
    assert data_of(second) == data_of(first)
    assert set(provider.calls) == {("poison",)}


def test_an_own_input_comes_back_with_the_models_own_result(provider):
    (found,) = outcomes([line(0, {"text": "a", "target_lang": "de", "model": "@cf/m2m100"})])
    assert json.loads(found.row)["response"]["body"] == {"text": "a", "target_lang": "de"}


def test_the_days_allocation_stops_the_run_and_lines_without_an_answer_have_no_outcome(provider):
    tiles = [line(0, {"prompt": "hello"}), line(1, {"prompt": "quota"})]
    tiles += [line(i, {"prompt": "late"}) for i in range(2, 200)]
    found = outcomes(tiles, window=1)
    assert all(isinstance(o, Answer) for o in found)
    assert found[0].start == 0
    assert all(o.start != SIZE for o in found)
    assert isinstance(run_state().stop_reason, QuotaExhausted)
    assert provider.calls == ["hello", "quota"]


@pytest.mark.parametrize(("prompt", "reason"), [("unknown", ModelNotFound), ("retired", ModelRetired)])
def test_the_runs_own_model_that_nobody_can_use_stops_the_run(provider, prompt, reason):
    assert outcomes([line(0, {"prompt": prompt})]) == []
    assert isinstance(run_state().stop_reason, reason)


def test_a_lines_own_model_that_is_retired_ends_that_line_only(provider):
    (found,) = outcomes([line(0, {"prompt": "retired", "model": "workers-ai/@cf/old"})])
    assert isinstance(found, Failure)
    assert run_state().stop_reason is None


def test_a_line_whose_provider_has_no_settings_fails_alone_and_says_what_to_set(provider):
    tiles = [line(0, {"prompt": "a"}), line(1, {"prompt": "b", "model": "braintrust/gpt-4o"}), line(2, {"prompt": "c"})]
    first, failed, last = outcomes(tiles, line_models="any")
    assert (type(first), type(failed), type(last)) == (Answer, Failure, Answer)
    error = json.loads(failed.row)["error"]
    assert error["class"] == "ProviderUnusable"
    assert error["message"] == "braintrust/gpt-4o: BRAINTRUST_API_KEY is not set: export it"
    assert run_state().stop_reason is None


def test_a_line_that_names_another_provider_is_an_error_without_a_call_that_a_retry_takes_back(provider):
    tiles = [line(0, {"prompt": "a"}), line(1, {"prompt": "b", "model": "openai/gpt-4o"})]
    answer, failed = outcomes(tiles)
    assert (type(answer), type(failed)) == (Answer, Failure)
    error = json.loads(failed.row)["error"]
    assert (error["class"], error["retryable"], error["attempts"]) == ("ModelNotAllowed", True, 0)
    assert provider.calls == ["a"]
    assert run_state().stop_reason is None
    assert [type(one) for one in outcomes(tiles, line_models="any")] == [Answer, Answer]


def test_the_runs_own_provider_without_settings_stops_the_run(provider):
    found = outcomes([line(0, {"prompt": "a"})], model="braintrust/gpt-4o")
    assert found == [] and isinstance(run_state().stop_reason, Unauthorized)


def test_a_provider_that_refuses_the_token_and_that_only_lines_name_is_asked_once(provider):
    tiles = [line(i, {"prompt": f"token {i}", "model": "openai/gpt-4o"}) for i in range(3)]
    tiles += [line(i, {"prompt": "a"}) for i in range(3, 9)]
    found = outcomes(tiles, window=1, line_models="openai/*")
    assert [type(outcome) for outcome in found] == [Failure] * 3 + [Answer] * 6
    errors = [json.loads(outcome.row)["error"] for outcome in found[:3]]
    assert {error["message"] for error in errors} == {"openai/gpt-4o: the token is not valid: check it"}
    assert [text for text in provider.calls if "token" in text] == ["token 0"]
    assert run_state().stop_reason is None


def test_the_runs_own_provider_that_refuses_the_token_stops_the_run(provider):
    assert outcomes([line(0, {"prompt": "token"})]) == []
    assert isinstance(run_state().stop_reason, Unauthorized)


def test_outcomes_keep_the_window_of_their_line(provider):
    FOUND.clear()
    with TestPipeline(runner="FnApiRunner") as pipeline:
        _ = (
            pipeline
            | beam.Create([TimestampedValue(line(i, {"prompt": f"p {i}"}), 10 * i) for i in range(40)], reshuffle=False)
            | beam.WindowInto(FixedWindows(100))
            | Infer(Defaults("workers-ai/@cf/chat"), CallSettings(4), RUN)
            | beam.ParDo(CollectWindows())
        )
    assert sorted(FOUND) == [(i, 10 * i // 100 * 100, 10 * i) for i in range(40)]


def test_two_steps_of_one_pipeline_have_each_their_own_ledger_gateway_and_budget(provider, monkeypatch, tmp_path):
    gateways = {"one": Scripted(), "two": Scripted()}
    monkeypatch.setattr(registry, "connect", lambda name, gateway: gateways[gateway])
    monkeypatch.setattr(run_state_module, "Budget", lambda limits, _: Budget(limits, NO_PRICES))
    tiles = [line(i, {"prompt": f"p {i}", "max_tokens": 5}) for i in range(30)]
    ledgers = {name: LedgerSettings(f"sqlite:///{tmp_path}/{name}.sqlite") for name in gateways}
    limits = {"one": Limits(max_tokens=10**9), "two": Limits(max_tokens=80)}  # a call uses 5

    def answer(model):
        FOUND.clear()
        with TestPipeline(runner="FnApiRunner") as pipeline:
            lines = pipeline | beam.Create(tiles, reshuffle=False)
            for name, paid in ledgers.items():
                step = Infer(Defaults(model), CallSettings(4, kept=paid, limits=limits[name], gateway=name), RUN)
                _ = lines | name >> step | f"Keep {name}" >> beam.Map(lambda outcome, of: collect((of, outcome)), name)
        return Counter(of for of, _ in FOUND)

    answered = answer("workers-ai/@cf/chat")
    assert answered["one"] == len(gateways["one"].calls) == 30
    assert 0 < answered["two"] == len(gateways["two"].calls) < 30
    assert isinstance(run_state().stop_reason, BudgetSpent)
    close_engines()
    fresh_state()
    limits["two"] = limits["one"]
    assert answer("workers-ai/@cf/chat") == {"one": 30, "two": 30}
    # The second pipeline paid only for what the second step's own ledger did not hold.
    assert (len(gateways["one"].calls), len(gateways["two"].calls)) == (30, 30)


def test_all_bundles_and_steps_with_the_same_settings_share_one_window(provider):
    running = []

    class Counting(Scripted):
        async def execute(self, request):
            running.append(1)
            most.append(len(running))
            await asyncio.sleep(0.01)
            running.pop()
            return ChatResponse("re", "stop", Usage(3, 2), request.model)

    most, counting = [], Counting()
    provider.connect = lambda name: counting
    with TestPipeline(runner="FnApiRunner") as pipeline:
        lines = pipeline | beam.Create([line(i, {"prompt": f"p {i}"}) for i in range(30)], reshuffle=False)
        for name in ("one", "two"):
            _ = lines | name >> Infer(Defaults("workers-ai/@cf/chat"), CallSettings(3), RUN)
    assert (len(most), max(most)) == (60, 3)


@pytest.fixture
def listed(monkeypatch):
    """Prices instead of a provider's list."""
    models = Models((ModelInfo("workers-ai/@cf/chat", price=Price(1.0, 2.0)), ModelInfo("workers-ai/@cf/free")))
    monkeypatch.setattr(run_state_module, "Budget", lambda limits, _: Budget(limits, Prices(lambda provider: models)))


@pytest.mark.parametrize("own", [{"prompt": "hello"}, {"text": ["hello", "hello"], "model": "@cf/bge"}])
def test_lines_that_share_a_call_count_it_once_now_and_from_the_ledger(provider, listed, tmp_path, own):
    paid = LedgerSettings(f"sqlite:///{tmp_path}/ledger.sqlite", "same-request")
    tiles, rows = [line(i, own | {"id": i}) for i in range(5)], []
    for window in (3, 4):  # another engine, and the tiles in another order
        fresh_state()
        found = outcomes(tiles if window == 3 else tiles[::-1], window=window, kept=paid)
        rows = [json.loads(outcome.row) for outcome in found]
        assert [row.get("shared", False) for row in rows].count(False) == 1
        (payer,) = [i for i, row in enumerate(rows) if "shared" not in row]
        usage = rows[payer]["usage"]
        free = Cost(0.0, lanes=(LaneCost(UNPAID, 1),))
        cost = [Cost(usage["cost_usd"], int(usage["cost_usd"] is None)) if i == payer else free for i in range(5)]
        tokens = (usage["input_tokens"], usage["output_tokens"])
        assert [(o.input_tokens, o.output_tokens) for o in found] == [
            tokens if i == payer else (0, 0) for i in range(5)
        ]
        assert [o.cost for o in found] == cost
        assert {row["usage"]["cost_usd"] for i, row in enumerate(rows) if i != payer} == {0.0}
        assert {row["usage"]["total_tokens"] for row in rows} >= {sum(tokens)}
        counts = run_state().counts
        assert (counts.answered, counts.input_tokens, counts.output_tokens) == (5, *tokens)
        calls = provider.calls
        assert run_state().budget.spent().calls == (1 if window == 3 else 0)
    assert calls == (["hello"] if "prompt" in own else [("hello",)])


def test_an_answer_has_its_cost_in_the_row_and_beside_it(provider, listed):
    found = outcomes([line(0, {"prompt": "hello"}), line(1, {"prompt": "hello", "model": "@cf/free"})])
    assert [json.loads(o.row)["usage"]["cost_usd"] for o in found] == [7e-6, None]  # 3 tokens at $1, 2 at $2 a million
    assert [o.cost for o in found] == [Cost(7e-6), Cost(None, 1)]


# Module globals too.
GATE, WAITED = threading.Event(), []


def open_the_gate(outcome):
    """When the answers of the provider whose prices are known have come."""
    FOUND.append(outcome)
    if len(FOUND) == 20:
        GATE.set()


def prices_at_the_gate(provider):
    if provider == "openai":
        WAITED.append(GATE.wait(60))
    return Models((ModelInfo(f"{provider}/m", price=Price(1.0, 2.0)),))


@pytest.mark.parametrize("limits", [NO_LIMITS, Limits(max_cost_usd=1.0)])
def test_answers_whose_prices_are_being_read_hold_no_other_answer_back(provider, monkeypatch, limits):
    monkeypatch.setattr(run_state_module, "Budget", lambda limits, _: Budget(limits, Prices(prices_at_the_gate)))
    tiles = [line(i, {"prompt": "a", "model": "openai/m" if i % 6 == 0 else None}) for i in range(24)]
    GATE.clear(), FOUND.clear(), WAITED.clear()
    with TestPipeline(runner="FnApiRunner") as pipeline:
        step = Infer(Defaults("workers-ai/m", line_models="any"), CallSettings(4, limits=limits), RUN)
        _ = pipeline | beam.Create(tiles, reshuffle=False) | step | beam.Map(open_the_gate)
    assert WAITED == [True], "the bundle waits for a list of prices"
    assert {json.loads(outcome.row)["usage"]["cost_usd"] for outcome in FOUND} == {7e-6}
    assert len({outcome.start for outcome in FOUND}) == 24
    assert [outcome.start // SIZE % 6 == 0 for outcome in FOUND] == [False] * 20 + [True] * 4


@pytest.mark.parametrize("model", [None, "@cf/free"])
def test_with_a_limit_of_cost_a_model_without_a_price_stops_the_run_only_if_it_is_the_runs_own(provider, listed, model):
    tiles = [line(i, {"prompt": "a"}) for i in range(3)] + [line(3, {"prompt": "b", "model": model})]
    limits = Limits(max_cost_usd=1.0)
    if model is None:
        assert outcomes(tiles, model="workers-ai/@cf/free", limits=limits) == []
        assert isinstance(run_state().stop_reason, PriceUnknown)
        assert provider.calls == []
        return
    found = outcomes(tiles, limits=limits)
    assert [type(outcome) for outcome in found] == [Answer] * 3 + [Failure]
    error = json.loads(found[3].row)["error"]
    assert (error["class"], error["attempts"]) == ("PriceUnknown", 0)
    assert error["message"].startswith("workers-ai/@cf/free: its price is not known, so max_cost= cannot be guaranteed")
    assert run_state().stop_reason is None
    assert provider.calls == ["a"] * 3


def test_each_answer_of_a_deprecated_model_says_so_and_the_log_does_once(provider, monkeypatch, caplog):
    models = Models((ModelInfo("workers-ai/@cf/chat", deprecated="2026-05-30"),))
    monkeypatch.setattr(run_state_module, "Budget", lambda limits, _: Budget(limits, Prices(lambda provider: models)))
    said = "@cf/chat is deprecated since 2026-05-30: name another model"
    rows = [json.loads(outcome.row) for outcome in outcomes([line(i, {"prompt": "a"}) for i in range(3)])]
    assert [row["warnings"] for row in rows] == [[said]] * 3
    assert caplog.messages.count(said) == 1


def test_templates_and_the_models_of_keys_reach_the_calls(provider, listed):
    FOUND.clear()
    defaults = Defaults("workers-ai/@cf/chat", prompt="say {word}", models=(("input/*", "workers-ai/@cf/free"),))
    with TestPipeline(runner="FnApiRunner") as pipeline:
        _ = (
            pipeline
            | beam.Create([line(0, {"word": "hi"}), line(1, {"no": "hi"})], reshuffle=False)
            | Infer(defaults, CallSettings(4), RUN)
            | beam.Map(collect)
        )
    assert provider.calls == ["say hi"]
    rows = sorted((json.loads(o.row) for o in FOUND), key=lambda row: "error" in row and bool(row["error"]))
    assert rows[0]["model"] == "workers-ai/@cf/free"
    assert "the line has no 'word'" in rows[1]["error"]["message"]


def test_a_frozen_run_says_what_is_true_whether_it_begins_again_by_itself_or_not():
    run_state().presence = SimpleNamespace(asleep=True)
    assert (
        str(run_state().asleep())
        == "this run was frozen or cut off for over 90 s: run the same command again to resume"
    )
    run_state().presence = SimpleNamespace(asleep=False)
    assert run_state().asleep() is None
