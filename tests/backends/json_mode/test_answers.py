import asyncio

import pytest

from llmdo.backends.errors import InvalidRequest
from llmdo.backends.json_mode.answers import (
    asked_again,
    check_format,
    check_schema,
    check_schema_now,
    format_problem,
    schema_of,
    wants_json,
    without_fence,
)
from llmdo.backends.requests import ChatRequest, Message
from llmdo.backends.responses import ChatResponse
from llmdo.backends.usage import Usage, added

SCHEMA = {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}
BARE = {"type": "json_schema", "json_schema": SCHEMA}
WRAPPED = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
OBJECT = {"type": "json_object"}


def answer(text, finish="stop", **more):
    return ChatResponse(text, finish, Usage(3, 7), "m", **more)


def found(response, response_format):
    return asyncio.run(format_problem(response, response_format))


def test_json_is_wanted_by_two_types_and_no_other():
    assert [wants_json(f) for f in (BARE, OBJECT, {"type": "text"}, None, "json", {})] == [True, True] + [False] * 4


def test_the_schema_is_found_in_either_form():
    assert schema_of(BARE) == schema_of(WRAPPED) == SCHEMA
    assert schema_of({"type": "json_schema"}) is True


@pytest.mark.parametrize("wanted", [BARE, WRAPPED])
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"city": "Paris"}', None),
        ('{"city": 3}', "the answer does not fit the JSON schema: $.city must be string, not 3"),
        ('["city"]', "the answer does not fit the JSON schema: $ must be object, not ['city']"),
        ("Paris", "the answer is not valid JSON (expected value at line 1 column 1)"),
        (None, "the answer is not valid JSON (EOF while parsing a value at line 1 column 0)"),
    ],
)
def test_an_answer_is_checked_against_the_schema(wanted, text, problem):
    assert found(answer(text), wanted) == problem


@pytest.mark.parametrize(("text", "problem"), [("{}", None), ("[]", "the answer is JSON but not an object")])
def test_a_json_object_must_be_one(text, problem):
    assert found(answer(text), OBJECT) == problem


def test_a_cut_answer_says_what_to_raise():
    problem = found(answer('{"city": "Pa', "length"), BARE)
    assert problem == "the JSON is cut off at 7 tokens: raise max_tokens"


def test_tool_calls_and_requests_without_json_are_not_checked():
    assert found(answer(None, "tool_calls", tool_calls=({"id": "1"},)), BARE) is None
    assert found(answer("Paris"), None) is None


@pytest.mark.parametrize("text", ['```json\n{"a": 1}\n```', '```\n{"a": 1}```\n', '\n```JSON\n{"a": 1}\n```'])
def test_a_fence_around_json_is_taken_off_with_a_warning(text):
    bare = without_fence(answer(text))
    assert (bare.text, bare.warnings) == ('{"a": 1}', ("a code fence around the JSON was removed",))


@pytest.mark.parametrize("text", ['{"a": "```"}', "see ```x```", None])
def test_a_fence_inside_an_answer_stays(text):
    assert without_fence(answer(text)) == answer(text)


def test_the_model_is_shown_its_answer_and_what_is_wrong_with_it():
    request = ChatRequest("m", (Message("user", "Where?"),), {"response_format": BARE}, "id-1")
    again = asked_again(request, answer("Paris"), "the answer is not valid JSON")
    assert [(m.role, m.content) for m in again.messages] == [
        ("user", "Where?"),
        ("assistant", "Paris"),
        ("user", "This cannot be used: the answer is not valid JSON. Answer again, with nothing but JSON that fits."),
    ]
    assert (again.parameters, again.request_id) == (request.parameters, "id-1")


@pytest.mark.parametrize(("one", "other", "both"), [(1.0, 2.0, 3.0), (None, 2.0, 2.0), (None, None, None)])
def test_usage_is_added_up(one, other, both):
    assert added(Usage(1, 2, 3, 4, one), Usage(10, 20, 30, 40, other)) == Usage(11, 22, 33, 44, both)


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"type": "json_schema", "json_schema": {"type": "objekt"}}, r"m: .* cannot be used: \$.type"),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": {"$ref": "https://a.b/c"}}}, "leads nowhere"),
        ({"type": "json_schema", "json_schema": {"pattern": r"(a)\1"}}, "write it without look-around"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused_before_a_call(wanted, says):
    check_format(wanted, "m", "p")
    with pytest.raises(InvalidRequest, match=says):
        check_schema_now(wanted, "m", "p")
    with pytest.raises(InvalidRequest, match=says):
        asyncio.run(check_schema(wanted, "m", "p"))


@pytest.mark.parametrize("wanted", [OBJECT, {"type": "text"}, None, "json", BARE, WRAPPED, {"type": "json_schema"}])
def test_any_other_format_has_no_schema_to_refuse(wanted):
    check_schema_now(wanted, "m", "p")
    asyncio.run(check_schema(wanted, "m", "p"))
