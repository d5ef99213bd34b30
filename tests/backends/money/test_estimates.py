from llmdo.backends.limits.sizes import CONVERSATION, DEFAULT_MAX_TOKENS, MESSAGE, PICTURE
from llmdo.backends.money.estimates import Estimates
from llmdo.backends.requests import ChatRequest, EmbedRequest, MediaReference, Message, RawRequest
from llmdo.backends.responses import ChatResponse
from llmdo.backends.usage import Usage


def chat(text, **parameters):
    return ChatRequest("m", (Message("user", text),), parameters)


def answer(input_tokens, output_tokens):
    return ChatResponse("x", "stop", Usage(input_tokens, output_tokens), "m")


def test_a_token_is_four_bytes_and_an_answer_has_its_limit():
    assert Estimates().most(chat("a" * 400, max_tokens=7)) == Usage(CONVERSATION + MESSAGE + 100, 7)
    assert Estimates().most(chat("ü" * 400, max_tokens=7)) == Usage(CONVERSATION + MESSAGE + 200, 7)
    assert Estimates().most(chat("a")).output_tokens == DEFAULT_MAX_TOKENS
    assert Estimates().most(chat("a", max_tokens=7, n=3)).output_tokens == 21
    assert Estimates().most(chat("a", n=3)).output_tokens == 3 * DEFAULT_MAX_TOKENS


def test_embeddings_have_no_output_and_own_inputs_are_counted_as_text():
    assert Estimates().most(EmbedRequest("m", ("a" * 40, "b" * 40))) == Usage(2 * MESSAGE + 20, 0)
    assert Estimates().most(RawRequest("m", {"text": "a" * 36})).input_tokens == CONVERSATION + 10
    assert Estimates().most(RawRequest("m", {"audio": "a" * 10_000, "max_tokens": 9})).output_tokens == 9
    assert Estimates().most(RawRequest("m", {"audio": "a" * 10_000})).input_tokens == CONVERSATION


def test_bodies_of_other_routes_are_counted_for_each_answer_that_they_ask_for():
    def output(path, **body):
        return Estimates().most(RawRequest("m", body, path=path)).output_tokens

    assert output("responses", input="a") == DEFAULT_MAX_TOKENS
    assert output("responses", input="a", max_output_tokens=9.0) == 9
    assert output("embeddings", input=[[1, 2]], max_tokens=9) == 0
    assert output("completions", prompt="a", max_tokens=9, n=2, best_of=3) == 27
    assert output("completions", prompt=["a", "b"], max_tokens=9) == 18
    assert output("completions", prompt=[1, 2, 3], max_tokens=9) == 9
    assert output("completions", prompt=[[1, 2], [3]], max_tokens=-1) == 2 * DEFAULT_MAX_TOKENS


def test_a_picture_is_not_counted_by_its_bytes():
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}
    found = Estimates().most(ChatRequest("m", (Message("user", (picture,)),)))
    assert PICTURE < found.input_tokens < PICTURE + 100


def test_tools_and_schemas_are_read_by_the_model_too():
    tools = [{"type": "function", "function": {"name": "f", "description": "d" * 4000}}]
    assert Estimates().most(chat("a", tools=tools)).input_tokens > 1000


def test_in_json_mode_the_model_may_be_asked_twice():
    once, twice = (
        Estimates().most(chat("a", max_tokens=5)),
        Estimates().most(chat("a", max_tokens=5, response_format={"type": "json_object"})),
    )
    assert twice.output_tokens == 10
    assert twice.input_tokens > 2 * once.input_tokens


def test_what_was_used_raises_the_estimate_and_never_lowers_it():
    estimates, request = Estimates(), chat("あ" * 1000, max_tokens=5)
    before = estimates.most(request)
    estimates.learn(request, answer(100, 1))
    assert estimates.most(request) == before
    estimates.learn(request, answer(1500, 1))
    assert estimates.most(request).input_tokens >= 1500
    estimates.learn(request, answer(10**9, 1))
    assert estimates.most(request).input_tokens <= CONVERSATION + MESSAGE + 3000  # a token has one byte at least
    estimates.learn(chat("a"), answer(10, 5000))
    assert estimates.most(chat("a")).output_tokens == 5000
    other = ChatRequest("other", (Message("user", "あ" * 1000),), {"max_tokens": 5})
    assert estimates.most(other) == before


def test_what_a_line_names_counts_by_its_kind_and_size():
    def most(part, path=""):
        message = {"role": "user", "content": [part]}
        request = (
            RawRequest("m", {"input": [message]}, path=path) if path else ChatRequest("m", (Message("user", (part,)),))
        )
        return Estimates().most(request).input_tokens

    def named(medium, size):
        return MediaReference.of("r2://bucket/" + "k" * 1000, "r2://bucket", "k", medium, "etag", size)

    picture = {"type": "image_url", "image_url": {"url": named("image", 10_000_000)}}
    assert PICTURE < most(picture) < PICTURE + 100
    assert PICTURE < most({"type": "input_image", "image_url": named("image", 9)}, "responses") < PICTURE + 100
    sound = {"type": "input_audio", "input_audio": {"data": named("audio", 1_000_000)}}
    assert 10_000 < most(sound) < 11_000
    document = {"type": "file", "file": {"file_data": named("file", 1_000_000)}}
    assert 250_000 < most(document) < 251_000
