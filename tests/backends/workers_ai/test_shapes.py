import json

import pytest

from llmdo.backends.errors import BadReply, ContentFiltered
from llmdo.backends.openai.messages import as_text
from llmdo.backends.openai.shapes import read_usage, read_vectors
from llmdo.backends.usage import Usage
from llmdo.backends.workers_ai.shapes import Reply, read_chat, unwrap

MODEL = "@cf/meta/llama-3.3-70b-instruct-fp8-fast"
USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


def read(result, limit=100, **about):
    return read_chat(Reply(result, **about), MODEL, limit)


def chat(message, finish="stop", **more):
    return {
        "id": "c",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        **more,
    }


def responses(*output, **more):
    return {"id": "r", "object": "response", "status": "completed", "output": list(output), **more}


@pytest.mark.parametrize("odd", [-5, float("nan"), float("inf"), 1e300, "5", None])
def test_an_amount_that_cannot_be_is_not_told(odd):
    usage = {"prompt_tokens": odd, "completion_tokens": odd, "neurons": odd}
    assert read_usage({"usage": usage}) == Usage()
    assert read_usage({"usage": usage}, 7.0).neurons == 7.0


CALL = {"id": "call_7", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
FLAT = {"id": "call_0", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}


@pytest.mark.parametrize(
    ("result", "text", "finish"),
    [
        ({"response": "Paris", "usage": USAGE}, "Paris", None),
        ({"response": ""}, "", None),
        ({"response": {"a": 1}}, '{"a":1}', None),
        ({"response": ["a", "b"]}, '["a","b"]', None),
        ({"response": 42}, "42", None),
        ({"response": True}, "true", None),
        ({"response": None}, None, None),
        ({"response": "x", "finish_reason": "length"}, "x", "length"),
        (chat({"role": "assistant", "content": "Paris"}), "Paris", "stop"),
        (chat({"content": [{"type": "text", "text": "Pa"}, {"type": "text", "text": "ris"}]}), "Paris", "stop"),
        (chat({"content": ""}, response="Paris"), "Paris", "stop"),
        (chat({"content": None}, "unheard_of"), None, "unheard_of"),
        ({"choices": [{"text": "Paris", "finish_reason": "eos"}]}, "Paris", "stop"),
        (responses({"type": "message", "content": [{"type": "output_text", "text": "Paris"}]}), "Paris", "stop"),
        (responses(output_text="Paris"), "Paris", "stop"),
        (
            responses(output_text="Par", status="incomplete", incomplete_details={"reason": "max_output_tokens"}),
            "Par",
            "length",
        ),
    ],
)
def test_every_shape_of_an_answer_is_read(result, text, finish):
    response = read(result)
    assert (response.text, response.finish_reason) == (text, finish)
    assert response.model == MODEL


@pytest.mark.parametrize("result", [{"response": None}, chat({"content": None})])
def test_an_answer_without_any_text_says_so(result):
    assert read(result).warnings == ("the model sent no text",)


@pytest.mark.parametrize(
    ("result", "calls"),
    [
        ({"response": None, "tool_calls": [{"name": "f", "arguments": {"a": 1}}]}, (FLAT,)),
        ({"response": "", "tool_calls": [{"name": "f", "arguments": '{"a":1}'}]}, (FLAT,)),
        (chat({"content": None, "tool_calls": [CALL]}, "tool_calls"), (CALL,)),
        (responses({"type": "function_call", "call_id": "call_7", "name": "f", "arguments": '{"a":1}'}), (CALL,)),
    ],
)
def test_tool_calls_come_in_openais_shape_and_without_text(result, calls):
    response = read(result)
    assert response.tool_calls == calls
    assert (response.text, response.finish_reason, response.warnings) == (None, "tool_calls", ())


@pytest.mark.parametrize(
    "result",
    [
        chat({"content": None, "reasoning_content": "hmm"}, "length"),
        chat({"content": "", "reasoning": "hmm"}, "length"),
        responses(
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hmm"}]},
            status="incomplete",
            incomplete_details={"reason": "max_output_tokens"},
        ),
    ],
)
def test_a_model_that_thought_until_its_tokens_were_used_has_no_answer_but_a_warning(result):
    response = read(result)
    assert (response.text, response.reasoning, response.finish_reason) == (None, "hmm", "length")
    assert response.warnings == ("all 100 tokens went into reasoning: raise max_tokens",)


def test_reasoning_beside_an_answer_is_kept_apart():
    response = read(chat({"content": "Paris", "reasoning_content": "hmm"}))
    assert (response.text, response.reasoning, response.warnings) == ("Paris", "hmm", ())


def test_a_native_answer_that_used_all_tokens_is_known_to_be_cut():
    response = read({"response": "Par", "usage": USAGE}, limit=3)
    assert response.finish_reason == "length"
    assert response.warnings == ("the answer is cut off at 3 tokens: raise max_tokens",)


def test_another_model_than_asked_is_recorded_and_warned_of():
    response = read(chat({"content": "x"}, model="@cf/moonshotai/kimi-k2.6"))
    assert response.model == "@cf/moonshotai/kimi-k2.6"
    assert response.warnings == (f"model substituted: @cf/moonshotai/kimi-k2.6 answered instead of {MODEL}",)


@pytest.mark.parametrize("named", [MODEL, "llama-3.3-70b-instruct-fp8-fast", "", 7, None])
def test_the_same_model_by_another_name_is_no_substitute(named):
    response = read({"response": "x", "model": named})
    assert (response.model, response.warnings) == (MODEL, ())


def test_an_image_model_answers_with_a_description():
    assert read({"description": " a cat"}).text == " a cat"


def test_arguments_of_a_tool_call_that_are_no_json_are_warned_of():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a":'}}
    assert read(chat({"tool_calls": [call]}, "tool_calls")).warnings == ("the arguments for f are not valid JSON",)


def test_what_a_gateway_tells_and_log_probabilities_are_kept():
    result = {"choices": [{"message": {"content": "x"}, "logprobs": {"content": []}}]}
    response = read(result, details={"log_id": "l"})
    assert (response.details, response.body["choices"][0]["logprobs"]) == ({"log_id": "l"}, {"content": []})


def test_the_filters_refusal_is_an_error():
    with pytest.raises(ContentFiltered, match="change the prompt"):
        read(chat({"content": "par"}, "content_filter"))


@pytest.mark.parametrize(
    "result",
    [
        None,
        "text",
        7,
        [],
        {},
        {"choices": []},
        {"data": [[1.0]]},
        [{"label": "POSITIVE", "score": 0.9}],
        {"choices": 3},
    ],
)
def test_what_is_no_answer_is_a_bad_reply_with_a_remedy(result):
    with pytest.raises(BadReply, match="name a text generation model"):
        read(result, request_id="ray")


@pytest.mark.parametrize(
    "result",
    [
        {"choices": ["x"]},
        {"choices": [{"message": "x"}]},
        {"choices": [{"message": {"content": "x", "tool_calls": "y"}}]},
        {"output": ["x", {"type": "message", "content": ["y", None]}], "incomplete_details": "z"},
        {"response": "x", "usage": "y", "tool_calls": {"z": 1}},
        {"response": "x", "usage": {"prompt_tokens": "5", "prompt_tokens_details": 3, "neurons": "x"}},
        {"response": "x", "model": 7},
    ],
)
def test_malformed_parts_of_a_known_shape_never_crash(result):
    assert read(result).usage.input_tokens == 0


@pytest.mark.parametrize(
    ("usage", "read_as"),
    [
        (USAGE, Usage(5, 3)),
        ({"input_tokens": 5, "output_tokens": 3}, Usage(5, 3)),
        ({"prompt_tokens": 5, "total_tokens": 5}, Usage(5, 0)),
        (
            {
                **USAGE,
                "prompt_tokens_details": {"cached_tokens": 4},
                "completion_tokens_details": {"reasoning_tokens": 2},
            },
            Usage(5, 3, 4, 2),
        ),
        ({**USAGE, "neurons": 1.25}, Usage(5, 3, neurons=1.25)),
        ({}, Usage()),
    ],
)
def test_usage_is_read_by_either_naming(usage, read_as):
    assert read_usage({"usage": usage}, None) == read_as


def test_neurons_come_from_the_header_where_the_body_has_none():
    assert read_usage({"usage": USAGE}, 1.98).neurons == 1.98
    assert read_usage({"usage": {**USAGE, "neurons": 2.0}}, 1.98).neurons == 2.0
    assert read_usage(["a list"], 1.98) == Usage(neurons=1.98)


@pytest.mark.parametrize(
    "result",
    [
        {"shape": [2, 2], "data": [[1, 2.5], [3.0, 4]], "pooling": "cls"},
        {"object": "list", "data": [{"index": 0, "embedding": [1, 2.5]}, {"index": 1, "embedding": [3, 4]}]},
        {"response": [[1, 2.5], [3, 4]]},
    ],
)
def test_vectors_are_read_in_order(result):
    assert read_vectors(result, MODEL, 2) == ((1.0, 2.5), (3.0, 4.0))


@pytest.mark.parametrize(
    "result",
    [None, {}, {"data": None}, {"data": [[1.0]]}, {"data": [[], [1.0]]}, {"data": ["x", [1.0]]}, {"response": "x"}],
)
def test_too_few_vectors_are_a_bad_reply(result):
    with pytest.raises(BadReply, match="for 2 texts"):
        read_vectors(result, MODEL, 2)


def test_only_the_envelope_is_taken_off():
    assert unwrap({"result": [1], "success": True, "errors": [], "messages": []}) == [1]
    assert unwrap({"result": "a raw model's own field"}) == {"result": "a raw model's own field"}
    assert unwrap([1]) == [1]


def test_text_of_an_object_is_json_again():
    assert json.loads(as_text({"ä": [1, None, "\u2028"]})) == {"ä": [1, None, "\u2028"]}
