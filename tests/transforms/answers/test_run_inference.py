import asyncio
import pickle
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType

import apache_beam as beam
import pytest
from apache_beam.ml.inference.base import PredictionResult, RunInference
from apache_beam.testing.test_pipeline import TestPipeline

from examples import run_inference
from llmdo.backends.engine import registry
from llmdo.backends.engine.registry import close_engines
from llmdo.backends.errors import (
    CallTimeout,
    InvalidRequest,
    ModelNotFound,
    ProviderUnusable,
    QuotaExhausted,
    ServiceAway,
    Unauthorized,
)
from llmdo.backends.limits import retry
from llmdo.backends.openai.vectors import Vector
from llmdo.backends.requests import ChatRequest, EmbedRequest, Message, RawRequest
from llmdo.backends.responses import ChatResponse, EmbedResponse, RawResponse
from llmdo.backends.usage import Usage
from llmdo.transforms.answers.run_inference import ModelHandler
from llmdo.transforms.prompts.models import ModelNotAllowed
from tests.fakes.loopback import Loopback, Reply

CHAT, EMBED = "workers-ai/@cf/chat", "workers-ai/@cf/baai/bge-m3"


class Backend:
    """Stands for a provider."""

    name = "workers-ai"

    def __init__(self):
        self.calls, self.running, self.most = [], 0, 0

    async def execute(self, request):
        text = request.messages[-1].content
        self.calls.append(text)
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.05)
        self.running -= 1
        if text == "bad":
            raise InvalidRequest("does not fit")
        if text == "quota":
            raise QuotaExhausted("used up")
        return ChatResponse(f"re: {text}", "stop", Usage(3, 2), request.model)

    async def embed(self, request):
        self.calls.append(request.texts)
        return EmbedResponse(tuple((float(len(t)),) for t in request.texts), Usage(1), request.model)

    async def run(self, request):
        return RawResponse(dict(request.input), Usage(), request.model)

    def max_texts(self, model):
        return 10 if "bge" in model else 1

    async def aclose(self):
        pass


@pytest.fixture
def backend(monkeypatch):
    backend = Backend()
    monkeypatch.setattr(registry, "connect", lambda name, gateway: backend)
    close_engines()
    retry.set_instant(True)
    yield backend
    retry.set_instant(False)
    close_engines()


def infer(handler, *examples):
    return list(handler.run_inference(examples, handler.load_model()))


FOUND = []


def collect(result):
    FOUND.append(result)


def test_run_inference_answers_with_beams_own_transform(backend):
    FOUND.clear()
    with TestPipeline(runner="FnApiRunner") as pipeline:
        texts = [f"hello {i}" for i in range(50)]
        handler = ModelHandler("@cf/chat", min_batch_size=50)
        _ = pipeline | beam.Create(texts, reshuffle=False) | RunInference(handler) | beam.Map(collect)
    assert sorted((r.example, r.inference.text, r.model_id) for r in FOUND) == sorted(
        (f"hello {i}", f"re: hello {i}", CHAT) for i in range(50)
    )


def test_the_examples_of_a_batch_are_asked_at_the_same_time(backend):
    infer(ModelHandler("@cf/chat", concurrency=40), *(f"p {i}" for i in range(40)))
    assert backend.most > 1


def test_one_example_fails_alone_and_results_are_in_the_examples_order(backend):
    results = infer(ModelHandler("@cf/chat"), "a", "bad", {"prompt": 5}, {"prompt": "b"}, "")
    assert [r.example for r in results] == ["a", "bad", {"prompt": 5}, {"prompt": "b"}, ""]
    found = [r.inference for r in results]
    assert [found[0].text, found[3].text] == ["re: a", "re: b"]
    assert isinstance(found[1], InvalidRequest)
    assert "must be a string" in found[2].message and "nothing to answer" in found[4].message


def test_an_examples_fields_are_data_beside_a_prompt_unless_they_are_asked_for(backend):
    example = {"text": "a", "model": "@cf/other", "temperature": "hot"}
    (plain,) = infer(ModelHandler("@cf/chat", prompt="{text}"), example)
    (counted,) = infer(ModelHandler("@cf/chat", prompt="{text}", line_parameters=True), example)
    assert (plain.inference.model, counted.inference.model) == ("@cf/chat", "@cf/other")


def test_an_example_asks_another_provider_only_where_the_handler_allows_it(backend):
    example = {"prompt": "a", "model": "openai/gpt-4o"}
    refused, own = infer(ModelHandler("@cf/chat"), example, {"prompt": "b", "model": "@cf/other"})
    assert isinstance(refused.inference, ModelNotAllowed)
    assert own.inference.text == "re: b"
    assert backend.calls == ["b"]
    (allowed,) = infer(ModelHandler("@cf/chat", line_models="any"), example)
    assert allowed.inference.text == "re: a"
    with pytest.raises(ValueError, match="matches no PROVIDER/MODEL"):
        ModelHandler("@cf/chat", line_models="openai")


def test_texts_share_calls(backend):
    results = infer(ModelHandler(EMBED), *("x" * n for n in range(1, 26)))
    assert [r.inference.vectors for r in results] == [((float(n),),) for n in range(1, 26)]
    assert sorted(map(len, backend.calls)) == [5, 10, 10]


def test_vectors_are_tuples_of_numbers_however_the_service_sent_them(backend, monkeypatch):
    async def embed(request):
        return EmbedResponse((Vector(b"[0.5,2]"), Vector(packed=b"\0\0\0\x3f")), Usage(1), request.model)

    monkeypatch.setattr(backend, "embed", embed)
    (result,) = infer(ModelHandler(EMBED), EmbedRequest("bge", ("a", "b")))
    assert result.inference.vectors == ((0.5, 2.0), (0.5,))
    assert [type(vector) for vector in result.inference.vectors] == [tuple, tuple]


def test_an_example_of_many_texts_has_one_result_and_shares_calls(backend):
    many = {"text": ["x" * n for n in range(1, 14)]}
    results = infer(ModelHandler(EMBED), many, EmbedRequest("bge", ("a", "bb")), "ccc")
    assert [len(r.inference.vectors) for r in results] == [13, 2, 1]
    assert results[0].inference.vectors == tuple((float(n),) for n in range(1, 14))
    assert sorted(map(len, backend.calls)) == [2, 4, 10]


def test_templates_parameters_and_whole_requests(backend):
    handler = ModelHandler("@cf/chat", prompt="Say {text}", system="Be brief.", parameters={"max_tokens": 3})
    request = ChatRequest("@cf/chat", (Message("user", "as it is"),))
    raw = RawRequest("@cf/other", {"q": 1})
    found = [r.inference for r in infer(handler, {"text": "hi"}, "ho", request, raw)]
    assert [found[0].text, found[1].text, found[2].text, found[3].result] == [
        "re: Say hi",
        "re: Say ho",
        "re: as it is",
        {"q": 1},
    ]


def test_an_error_that_no_call_survives_fails_the_batch_and_a_later_pipeline_begins_anew(backend):
    handler = ModelHandler("@cf/chat")
    with pytest.raises(QuotaExhausted):
        infer(handler, "quota")
    assert infer(handler, "a")[0].inference.text == "re: a"


def test_a_stopped_engine_is_replaced_only_when_the_calls_of_other_batches_have_ended(backend, monkeypatch):
    released = threading.Event()

    class Slow(Backend):
        async def execute(self, request):
            if request.messages[-1].content == "slow":
                self.calls.append("slow")
                while not released.is_set():  # noqa: ASYNC110 - a thread sets it, not the loop
                    await asyncio.sleep(0.01)
            return await super().execute(request)

    handler, slow = ModelHandler("@cf/chat"), Slow()
    monkeypatch.setattr(registry, "connect", lambda name, gateway: slow if not slow.calls else backend)
    with ThreadPoolExecutor(1) as other:
        found = other.submit(infer, handler, "slow")
        while "slow" not in slow.calls:
            time.sleep(0.01)
        with pytest.raises(QuotaExhausted):
            infer(handler, "quota")
        threading.Timer(0.3, released.set).start()
        assert infer(handler, "a")[0].inference.text == "re: a"
        assert found.result(30)[0].inference.text == "re: slow"


class Unprintable(dict):
    """Fails whatever is done with it."""

    def keys(self):
        raise RuntimeError("no keys")

    __iter__ = items = __getitem__ = keys


NESTED = {"prompt": "a"}
NESTED["metadata"] = NESTED
BAD = [
    "half \ud83d of a pair",
    {"prompt": "half \ud83d of a pair"},
    b"bytes",
    b"\xff\xfe",
    object(),
    {"prompt": object()},
    {"prompt": float("nan")},
    {"prompt": "fine", "metadata": {"n": float("inf")}},
    {1: "one"},
    {("a", "b"): "c"},
    {"prompt": 10**5000},
    NESTED,
    Unprintable(),
    None,
    5,
    [],
    EmbedRequest("bge", ("fine", None)),
    EmbedRequest("bge", ("fine", 7)),
    EmbedRequest("bge", None),
    EmbedRequest("bge", ()),
]


@pytest.mark.parametrize("model", [CHAT, EMBED])
def test_an_example_that_is_no_request_gets_its_error_and_the_others_are_answered(backend, model):
    good = ["first", "last", {"prompt" if model == CHAT else "text": "x" * 1_000_000}]
    results = infer(ModelHandler(model), *BAD, *good)
    assert [result.example is example for result, example in zip(results, [*BAD, *good], strict=True)] == [True] * (
        len(BAD) + 3
    )
    found = [result.inference for result in results]
    assert [type(one).__mro__[1] for one in found[: len(BAD)]] == [InvalidRequest] * len(BAD)
    assert all(not isinstance(one, Exception) for one in found[len(BAD) :])
    assert "the example cannot be written as JSON: " in found[0].message


def test_a_batch_of_bad_examples_alone_and_an_empty_one_make_no_call(backend):
    handler = ModelHandler("@cf/chat")
    assert [type(result.inference).__name__ for result in infer(handler, b"bytes", "\ud83d")] == ["BadLine"] * 2
    assert infer(handler) == []
    assert backend.calls == []


def test_a_mapping_that_is_no_dict_is_an_example_too(backend):
    (result,) = infer(ModelHandler("@cf/chat"), MappingProxyType({"prompt": "a"}))
    assert result.inference.text == "re: a"


def test_a_wrong_key_of_one_handler_leaves_those_of_other_providers_alone(backend, monkeypatch):
    class Refusing(Backend):
        name = "openai"

        async def execute(self, request):
            raise Unauthorized("the key is wrong")

    monkeypatch.setattr(registry, "connect", lambda name, gateway: Refusing() if name == "openai" else backend)
    wrong, right = ModelHandler("openai/gpt-4o"), ModelHandler("@cf/chat", line_models="any")
    model = right.load_model()
    engine = model._held.get()
    with pytest.raises(Unauthorized):
        infer(wrong, "a")
    assert engine.usable and engine.stopped is None and model._held.get() is engine
    (answered, refused) = infer(right, "b", {"prompt": "c", "model": "openai/gpt-4o"})
    assert answered.inference.text == "re: b"
    assert isinstance(refused.inference, ProviderUnusable)


def test_two_handlers_in_one_pipeline_of_which_one_has_a_wrong_key(backend, monkeypatch):
    class Refusing(Backend):
        async def execute(self, request):
            raise Unauthorized("the key is wrong")

    monkeypatch.setattr(registry, "connect", lambda name, gateway: Refusing() if name == "openai" else backend)
    FOUND.clear()
    with TestPipeline(runner="FnApiRunner") as pipeline:
        texts = pipeline | beam.Create([f"hello {i}" for i in range(10)], reshuffle=False)
        safely = RunInference(ModelHandler("openai/gpt-4o")).with_exception_handling()
        _, failed = texts | "Wrong" >> safely
        _ = texts | "Right" >> RunInference(ModelHandler("@cf/chat")) | beam.Map(collect)
        _ = failed.failed_inferences | "Failures" >> beam.Map(collect)
    answered = [found for found in FOUND if isinstance(found, PredictionResult)]
    assert sorted(one.inference.text for one in answered) == sorted(f"re: hello {i}" for i in range(10))
    assert len(FOUND) > len(answered)


def test_a_handler_can_be_sent_to_workers_and_says_at_once_what_is_wrong_with_it():
    handler = pickle.loads(pickle.dumps(ModelHandler("local/smollm2-135m-instruct", max_batch_size=7)))
    assert handler.batch_elements_kwargs() == {"max_batch_size": 7}
    with pytest.raises(ModelNotFound):
        ModelHandler("gpt-4o")


def test_the_example_prints_an_answer_for_each_review(backend, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run_inference.py", CHAT])
    run_inference.main(CHAT)
    said = sorted(capsys.readouterr().out.splitlines())
    assert said[0] == "1: re: Is this review happy or angry? Review: It broke after a day. (2 tokens)"
    assert said[2].startswith("3: no answer, the line has no 'text'")


class OwnService:
    """OpenAI's API on loopback: keeps each call's headers; ``wait_s`` before it answers."""

    def __init__(self, wait_s=0.0):
        self.headers = []
        self._wait_s = wait_s
        self._server = Loopback(self._answer)
        self.url = f"{self._server.origin}/v1"
        self.close = self._server.close

    def _answer(self, asked):
        if asked.method == "GET":
            return Reply(None, 501)
        self.headers.append(dict(asked.headers))
        time.sleep(self._wait_s)
        choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
        return Reply({"object": "chat.completion", "model": "m", "choices": [choice]})


@pytest.fixture
def own_service(monkeypatch):
    """Starts servers that ``openai/…`` is asked at."""
    started = []

    def start(wait_s=0.0):
        started.append(OwnService(wait_s))
        monkeypatch.setenv("OPENAI_BASE_URL", started[-1].url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-loopback-only")
        return started[-1]

    close_engines()
    yield start
    close_engines()
    for server in started:
        server.close()


def test_a_handlers_headers_are_sent_with_the_values_of_the_environment(own_service, monkeypatch):
    service = own_service()
    monkeypatch.setenv("TEAM_HEADER", "blue-team-7")
    handler = pickle.loads(pickle.dumps(ModelHandler("openai/m", headers=["x-team=TEAM_HEADER"])))
    (result,) = infer(handler, "hello")
    assert result.inference.text == "hi"
    assert [headers["x-team"] for headers in service.headers] == ["blue-team-7"]
    assert b"blue-team-7" not in pickle.dumps(handler)


def test_a_handlers_calls_end_at_its_call_timeout(own_service):
    service = own_service(wait_s=3.0)
    (result,) = infer(ModelHandler("openai/m", call_timeout_s=0.2, patience_s=1.0), "hello")
    assert isinstance(result.inference, CallTimeout | ServiceAway)
    assert "no answer within 0.2 s" in result.inference.message
    assert len(service.headers) >= 1


def test_a_handlers_patience_ends_its_calls_of_a_service_that_is_away(own_service):
    own_service().close()
    began = time.monotonic()
    results = infer(ModelHandler("openai/m", patience_s=1.5), "a", "b")
    assert [type(result.inference) for result in results] == [ServiceAway] * 2
    assert time.monotonic() - began < 60, "the default patience is ten minutes"


@pytest.mark.parametrize(
    "given", [{"headers": ["x-team"]}, {"headers": ["x=sk-secret"]}, {"call_timeout_s": 0}, {"patience_s": -1}]
)
def test_settings_of_calls_that_cannot_be_are_refused_when_the_handler_is_made(given):
    with pytest.raises(ValueError, match=r"HEADER=VARIABLE|above 0") as caught:
        ModelHandler("openai/m", **given)
    assert "sk-secret" not in str(caught.value)
