"""A service that takes fewer texts a call is asked for no more again, and a bad text is no such limit."""

import asyncio
import threading

import pytest

from llmdo.backends.engine.engine import Engine
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import BadReply, ContextOverflow, InvalidRequest
from llmdo.backends.limits.arrays import ArrayLimits, named_limit
from llmdo.backends.limits.retry import set_instant
from llmdo.backends.responses import EmbedResponse
from llmdo.backends.sync import Model
from llmdo.backends.usage import Usage

# What services say of an array of 256 texts, after their documents and sources, and the limit that it tells.
SAID = [
    ("batch size 256 > maximum allowed batch size 32", 32),
    (
        "InternalError.Algo.InvalidParameter: batch size is invalid, it should not be larger than 10.",
        10,
    ),
    ("batch size is invalid, it should not be larger than 25.: input.contents", 25),
    ("* BatchEmbedContentsRequest.requests: at most 100 requests can be in one batch", 100),
    ("invalid request: total number of texts must be at most 96 - received 256", 96),
    ("too many texts: number of texts 256 exceeds maximum of 96", 96),
    ("Too many inputs. The max number of inputs is 16. We hope to increase the number soon.", 16),
    ("Too many inputs for model None. The max number of inputs is 1.", 1),
    ("'$.input' is invalid: array too long. Expected an array with maximum length 128, but got length 256.", 128),
    ("The batch size limit is 128. Your batch size is 256.", 128),
    ("body.input: List should have at most 64 items after validation, not 256", 64),
    ("ensure this value has at most 50 items", 50),
    ("data/input must NOT have more than 100 items", 100),
    ("input数组最大不得超过64条", 64),
    ("The number of documents must be between 1 and 20", 20),
    ("Batch size too large (HTTP 413): the limit is 200 inputs a request", 200),
]
NO_LIMIT = [
    "Too many inputs in request, split into more batches.",
    "This model's maximum context length is 128 tokens, your inputs have 700",
    "`inputs` must have less than 200 tokens. Given: 251",
    "input 17 of the batch is empty",
    "each of the texts has at most 200 characters",
    "the maximum sequence length of the inputs is 100",
    "batch size 256 > maximum allowed batch size 2048",
    "batch is not valid (HTTP 101)",
    "the input exceeds 8 KB",
    "unknown parameter",
]


@pytest.mark.parametrize(("said", "number"), [*SAID, *((said, None) for said in NO_LIMIT)])
def test_the_number_in_a_refusal_is_read(said, number):
    assert named_limit(f"embed-3-small: {said}", ["text"] * 256) == number


class Provider:
    """Embeds arrays of at most ``most`` texts; a text "bad" is refused."""

    name = "fake"

    def __init__(self, most, said="too many", texts=256):
        self.most, self.said, self.texts = most, said, texts
        self.asked = []

    async def embed(self, request):
        self.asked.append(len(request.texts))
        await asyncio.sleep(0)
        if len(request.texts) > self.most:
            raise InvalidRequest(f"m: {self.said}", status=400)
        if any(text.startswith("bad") for text in request.texts):
            raise ContextOverflow("m: a text is too long", status=400)
        vectors = tuple((float(text.removeprefix("t")),) for text in request.texts)
        return EmbedResponse(vectors, Usage(len(vectors)), request.model)

    def max_texts(self, model):
        return self.texts

    async def aclose(self):
        pass


@pytest.fixture
def embed():
    """Embeds texts as arrays that are cut before anything is known; gives Done by text."""
    engines = []

    def embed(provider, texts, size=256, window=4):
        engine = Engine(CallSettings(window), lambda _: provider)
        engines.append(engine)
        found, changed = {}, threading.Condition()

        def deliver(start):
            def deliver(index, done):
                with changed:
                    assert start + index not in found
                    found[start + index] = done
                    changed.notify_all()

            return deliver

        for start in range(0, len(texts), size):
            engine.submit_texts("fake", "m", texts[start : start + size], {}, deliver(start))
        with changed:
            assert changed.wait_for(lambda: len(found) == len(texts), 60)
        for index, done in found.items():
            if done.response:
                assert done.response.vectors == ((float(index),),)
        return found, engine

    set_instant(True)
    yield embed
    set_instant(False)
    for engine in engines:
        engine.close()


@pytest.mark.parametrize("most", [1, 10, 25, 32, 96, 100, 255])
def test_a_told_limit_costs_a_few_refusals_and_no_more(embed, most):
    texts = [f"t{n}" for n in range(256 * 12)]
    provider = Provider(most, f"batch size 256 > maximum allowed batch size {most}")
    found, engine = embed(provider, texts)
    assert all(done.response for done in found.values())
    refused = sum(size > most for size in provider.asked)
    assert 1 <= refused <= 4  # those of the window
    assert len(provider.asked) <= 12 * -(-256 // most) + refused
    assert engine.array_size("fake", "m") == most
    before = len(provider.asked)
    embedded, _ = embed(provider, texts[:100], size=most)
    assert len(embedded) == 100
    assert all(size <= most for size in provider.asked[before:])


@pytest.mark.parametrize("most", [1, 10, 32, 100])
@pytest.mark.parametrize("said", ["Too many inputs in request, split into more batches.", "it is not valid"])
def test_a_limit_that_is_not_told_is_learnt_too(embed, most, said):
    texts = [f"t{n}" for n in range(256 * 40)]
    provider = Provider(most, said)
    found, engine = embed(provider, texts)
    assert all(done.response for done in found.values())
    size = engine.array_size("fake", "m")
    assert most / 2 < size <= most
    refused = sum(size > most for size in provider.asked)
    # Words: the window's calls, at each size. None: the trees of halves of what is taken in, 8 arrays; of 40 without.
    assert refused <= (4 * 9 if "many" in said else 8 * 2 * 256 / size)
    assert sum(size > most for size in provider.asked[len(provider.asked) // 2 :]) == 0


@pytest.mark.parametrize("told", [True, False])
def test_a_bad_text_is_no_limit_and_is_found_in_an_array_that_the_service_takes(embed, told):
    texts = [f"t{n}" if n not in (5, 700, 701) else f"bad {n}" for n in range(256 * 8)]
    provider = Provider(32 if told else 256, "batch size 256 > maximum allowed batch size 32")
    found, engine = embed(provider, texts)
    assert {n for n, done in found.items() if done.error} == {5, 700, 701}
    assert all(isinstance(found[n].error, ContextOverflow) for n in (5, 700, 701))
    assert engine.array_size("fake", "m") == (32 if told else 256)


def test_a_number_that_a_refusal_quotes_from_a_text_is_no_limit(embed):
    texts = [f"t{n}" for n in range(256 * 4)]
    texts[3] = "bad: at most 2 items of a batch"
    provider = Provider(256)

    async def quoting(request, ask=provider.embed):
        if texts[3] in request.texts:
            provider.asked.append(len(request.texts))
            raise InvalidRequest(f"m: the input {texts[3]!r} is not allowed", status=400)
        return await ask(request)

    provider.embed = quoting
    found, engine = embed(provider, texts)
    assert [n for n, done in found.items() if done.error] == [3]
    assert engine.array_size("fake", "m") == 256


def test_what_is_answered_above_a_limit_shows_that_it_is_none():
    limits = ArrayLimits()
    assert limits.refused("p", "m", ["t"] * 256, "at most 2 items, please") == 2
    limits.answered("p", "m", 2, None)
    assert limits.most("p", "m") == 2
    limits.answered("p", "m", 256, None)
    assert limits.most("p", "m") == 256


def test_a_model_without_an_engine_learns_it_too():
    provider = Provider(32, "batch size 256 > maximum allowed batch size 32")
    with Model(provider, "m") as model:
        assert len(model.embed([f"t{n}" for n in range(300)]).vectors) == 300
        assert len(model.embed([f"t{n}" for n in range(40)]).vectors) == 40
        with pytest.raises(ContextOverflow):
            model.embed(["bad 1", "t2"])
    assert provider.asked == [256, *[32] * 9, 12, 32, 8, 2]


def test_a_reply_with_other_counts_is_no_limit(embed):
    provider = Provider(256)

    async def short(request):
        provider.asked.append(len(request.texts))
        raise BadReply("m sent 2 vectors for 256 texts: name another embedding model")

    provider.embed = short
    found, engine = embed(provider, [f"t{n}" for n in range(256)])
    assert all(done.error for done in found.values())
    assert engine.array_size("fake", "m") == 256
