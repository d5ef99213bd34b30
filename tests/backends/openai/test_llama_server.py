"""A real server that speaks OpenAI's API: llama.cpp's own, with the embedded weights, on a port of this machine."""

import asyncio
import json

import pytest
from openai.types.responses import Response

from llmdo.backends.errors import ContextOverflow, InvalidRequest, Unauthorized
from llmdo.backends.llama_cpp import files as llama_files
from llmdo.backends.openai.backend import OpenAI, Service
from llmdo.backends.requests import ChatRequest, EmbedRequest, Message, RawRequest

pytestmark = pytest.mark.model

KEY = "hush-hush-hush"


@pytest.fixture(scope="module")
def server():
    """Its base URL. It listens as long as the object lives."""
    library = llama_files.library()
    params = library.CommonParams()
    params.model.path = str(llama_files.weights())
    params.n_parallel, params.n_ctx = 1, 1024
    params.cpuparams.n_threads = 1
    params.verbosity = -1
    params.warmup = False
    params.cache_ram_mib = 0
    params.fit_params = False
    params.api_keys = [KEY]
    params.ui = False
    serving = library.Server(params)
    yield f"{serving.listening_address}/v1"


def call(server, method, *arguments, key=KEY):
    async def scenario():
        service = Service("openai", server, {"authorization": f"Bearer {key}"}, "OPENAI_API_KEY")
        backend = OpenAI(service)
        try:
            if method == "execute_stream":
                return [chunk async for chunk in backend.execute_stream(*arguments)]
            return await getattr(backend, method)(*arguments)
        finally:
            await backend.aclose()

    return asyncio.run(scenario())


def ask(text="What is the capital of France?", **parameters):
    system = Message("system", "You are a helpful assistant.")
    return ChatRequest("smollm2", (system, Message("user", text)), {"max_tokens": 20, "temperature": 0, **parameters})


def test_a_question_is_answered_whole_and_in_pieces(server):
    whole = call(server, "execute", ask())
    assert "Paris" in whole.text
    assert (whole.finish_reason, whole.usage.output_tokens > 2) == ("stop", True)
    pieces = call(server, "execute_stream", ask())
    assert "".join(piece.text for piece in pieces) == whole.text
    assert sum(piece.kind == "content" for piece in pieces) > 2
    assert (pieces[-1].finish_reason, pieces[-1].usage.output_tokens) == ("stop", whole.usage.output_tokens)


def test_json_is_enforced(server):
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
    wanted = {"type": "json_schema", "json_schema": schema}
    text = call(server, "execute", ask("Is Paris in France?", response_format=wanted)).text
    assert "".join(text.split()) in ('{"yes":true}', '{"yes":false}')


def test_its_refusals_are_understood(server):
    with pytest.raises(ContextOverflow, match="1024"):
        call(server, "execute", ask("word " * 2000))
    with pytest.raises(InvalidRequest, match="temperature"):
        call(server, "execute", ask(temperature="hot"))
    with pytest.raises(InvalidRequest, match="embeddings"):
        call(server, "embed", EmbedRequest("smollm2", ("a",)))
    with pytest.raises(Unauthorized, match="OPENAI_API_KEY"):
        call(server, "execute", ask(), key="wrong-wrong")


def test_it_is_healthy_and_tells_its_context_window(server):
    call(server, "health")
    (model,) = call(server, "list_models")
    assert model.context_tokens == 1024


def test_it_answers_by_the_responses_api(server):
    body = {"input": "What is the capital of France?", "instructions": "Be short", "temperature": 0}
    whole = call(server, "run", RawRequest("smollm2", {**body, "max_output_tokens": 20}, "r", "responses"))
    assert "Paris" in Response.model_validate(whole.result).output_text
    assert (whole.usage.output_tokens > 2, whole.warnings) == (True, ())
    cut = call(server, "run", RawRequest("smollm2", {**body, "max_output_tokens": 2}, "r", "responses"))
    assert "may be cut off" in cut.warnings[0]
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    text = {"format": {"type": "json_schema", "name": "n", "schema": schema}}
    asked = {**body, "input": "Is Paris in France?", "text": text, "max_output_tokens": 30}
    in_json = call(server, "run", RawRequest("smollm2", asked, "r", "responses"))
    assert json.loads(Response.model_validate(in_json.result).output_text).keys() == {"a"}
