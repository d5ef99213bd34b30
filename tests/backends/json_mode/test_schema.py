import contextlib
import json
import socket
import subprocess
import sys

import pytest

from llmdo.backends.json_mode.schema import problem_of_schema, problem_of_value


@contextlib.contextmanager
def any_length_of_numbers():
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(before)


TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "required": ["name"],
            "properties": {"name": {"type": "string"}, "below": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
        }
    },
    "$ref": "#/$defs/node",
}


@pytest.mark.parametrize(
    ("value", "schema"),
    [
        (1, True),
        (1, {}),
        (1, None),
        ({"a": 1}, {"type": "object", "properties": {"a": {"type": "integer"}}}),
        (1.0, {"type": "integer"}),
        (1, {"type": "number"}),
        (None, {"type": ["string", "null"]}),
        (None, {"type": "string", "nullable": True}),
        ("b", {"enum": ["a", "b"]}),
        ([1, 2], {"items": {"minimum": 1, "maximum": 2}, "minItems": 2, "maxItems": 2, "uniqueItems": True}),
        ([True, 1], {"uniqueItems": True}),
        ("ab", {"minLength": 2, "maxLength": 2, "pattern": "^a"}),
        (0.3, {"multipleOf": 0.1}),
        (1, {"anyOf": [{"type": "string"}, {"type": "integer"}]}),
        (1, {"oneOf": [{"type": "string"}, {"type": "integer"}]}),
        (1, {"allOf": [{"minimum": 1}, {"maximum": 1}]}),
        (1, {"not": {"type": "string"}}),
        ({"x-a": 1}, {"patternProperties": {"^x-": {"type": "integer"}}, "additionalProperties": False}),
        (["a", 1], {"prefixItems": [{"type": "string"}], "items": {"type": "integer"}}),
        ({"name": "a", "below": [{"name": "b"}]}, TREE),
        (1, {"$id": "https://example.com/s", "$defs": {"n": {"type": "integer"}}, "$ref": "#/$defs/n"}),
        (1, {"$defs": {"n": {"$anchor": "n", "type": "integer"}}, "$ref": "#n"}),
        (["a"], {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "string"}]}),
        (1, {"format": "date", "x-order": 3, "title": "t"}),
    ],
)
def test_a_value_that_fits_has_no_problem(value, schema):
    assert problem_of_value(value, json.dumps(schema)) is None


@pytest.mark.parametrize(
    ("value", "schema", "problem"),
    [
        ("3", {"type": "integer"}, "$ must be integer, not '3'"),
        (True, {"type": "integer"}, "$ must be integer, not True"),
        (1.5, {"type": "integer"}, "$ must be integer, not 1.5"),
        (1, {"type": ["string", "null"]}, "$ must be string or null, not 1"),
        ("c", {"enum": ["a", "b"]}, "$ must be one of ['a', 'b'], not 'c'"),
        (True, {"const": 1}, "$ must be 1, not True"),
        ({}, {"required": ["a"]}, "$ lacks 'a'"),
        ({"b": 1}, {"additionalProperties": False}, "$ must not have 'b'"),
        ({"b": "x"}, {"additionalProperties": {"type": "integer"}}, "$.b must be integer, not 'x'"),
        ({"a": {"b": [1, "x"]}}, {"properties": {"a": {"properties": {"b": {"items": {"type": "integer"}}}}}},
         "$.a.b[1] must be integer, not 'x'"),
        ({"x-a": "y"}, {"patternProperties": {"^x-": {"type": "integer"}}}, "$.x-a must be integer, not 'y'"),
        (0, {"minimum": 1}, "$ must be at least 1, not 0"),
        (2, {"maximum": 1}, "$ must be at most 1, not 2"),
        (1, {"exclusiveMinimum": 1}, "$ must be above 1, not 1"),
        (1, {"exclusiveMaximum": 1}, "$ must be below 1, not 1"),
        (0.35, {"multipleOf": 0.1}, "$ must be a multiple of 0.1, not 0.35"),
        ("a", {"minLength": 2}, "$ must have at least 2 characters, not 1"),
        ("abc", {"maxLength": 2}, "$ must have at most 2 characters, not 3"),
        ([], {"minItems": 1}, "$ must have at least 1 items, not 0"),
        ([1, 2], {"maxItems": 1}, "$ must have at most 1 items, not 2"),
        ({}, {"minProperties": 1}, "$ must have at least 1 fields, not 0"),
        ([1, 1], {"uniqueItems": True}, "$ must not have the same item twice"),
        ("b", {"pattern": "^a"}, "$ must match '^a', as 'b' does not"),
        (1, {"anyOf": [{"type": "string"}]}, "$ must be string, not 1"),
        (1, {"anyOf": [{"type": "string"}, {"type": "null"}]},
         "$ fits none of its 2 alternatives ($ must be string, not 1)"),
        (1, {"oneOf": [{"type": "integer"}, {"minimum": 0}]}, "$ must fit one of its alternatives, and fits several"),
        (1, {"allOf": [{"minimum": 2}]}, "$ must be at least 2, not 1"),
        (1, {"not": {"type": "integer"}}, "$ must not be 1"),
        ([1], {"items": False}, "$[0] must not be there"),
        ({"a": 1}, {"properties": {"a": False}}, "$.a must not be there"),
        ({"a": 1}, {"dependentRequired": {"a": ["b"]}}, "$ lacks 'b'"),
        ({"name": "a", "below": [{"name": "b"}, {}]}, TREE, "$.below[1] lacks 'name'"),
        ("x" * 100, {"type": "integer"}, f"$ must be integer, not '{'x' * 76}..."),
    ],
)  # fmt: skip
def test_a_problem_names_its_place_and_what_is_wrong(value, schema, problem):
    assert problem_of_value(value, json.dumps(schema)) == problem


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"type": "objekt"}, "$.type fits none of its 2 alternatives ($.type must be one of ['array', 'boolean'"),
        ({"properties": {"a": {"minimum": "three"}}}, "$.properties.a.minimum must be number, not 'three'"),
        ({"items": [1]}, "$.items must be boolean or object, not [1]"),
        ([1], "$ must be a JSON Schema, which is an object, not [1]"),
        ({"properties": {"a": {"$ref": "https://a.example/s"}}},
         "$.properties.a.$ref leads nowhere: 'https://a.example/s' is not in the schema, and nothing is fetched"),
        ({"$ref": "#/$defs/n"}, "$.$ref leads nowhere: '#/$defs/n'"),
        ({"pattern": "(?=x)y"}, "$.pattern cannot be used as a regular expression: '(?=x)y' (write it without look-"),
        ({"pattern": r"(a)\1"}, "without look-around such as (?=x), back-references such as \\1, and repetitions of m"),
        ({"patternProperties": {"[": {}}}, "$.patternProperties.[ cannot be used as a regular expression: '['"),
        ({"pattern": "a{99999999999}"}, "$.pattern cannot be used as a regular expression"),
        ({"pattern": "(a{1000}){1000}"}, "$.pattern cannot be used as a regular expression"),
        ({"enum": ["\ud800"]}, "$ cannot be read: "),
        ({"maximum": 10**4400}, "$ cannot be read: "),
        ({"not": {"$ref": "file:///etc/hostname"}}, "$.not.$ref leads nowhere"),
    ],
)  # fmt: skip
def test_a_schema_that_cannot_be_used_says_where(schema, problem):
    with any_length_of_numbers():
        text = json.dumps(schema)
    assert problem in problem_of_schema(text)


@pytest.mark.parametrize("schema", [TREE, True, {"enum": [{"$ref": "https://no.where"}], "minimumm": 3}, {}])
def test_a_schema_that_can_be_used_has_no_problem(schema):
    assert problem_of_schema(json.dumps(schema)) is None


def test_no_reference_is_ever_fetched():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        schema = {"$ref": f"http://127.0.0.1:{server.getsockname()[1]}/s"}
        assert "nothing is fetched" in problem_of_schema(json.dumps(schema))
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_schema_that_refers_to_itself_without_end_ends():
    assert problem_of_schema('{"$ref": "#"}') is None
    assert problem_of_value(1, json.dumps({"$ref": "#"})) is None


def test_a_draft_that_nobody_knows_is_taken_for_the_newest():
    assert (
        problem_of_value(1, json.dumps({"$schema": "https://example.com/mine", "type": "string"}))
        == "$ must be string, not 1"
    )


def test_a_pattern_that_backtracks_without_end_elsewhere_is_matched_at_once():
    assert "must match '^(a+)+$'" in problem_of_value("a" * 100_000 + "!", json.dumps({"pattern": "^(a+)+$"}))


def test_a_sentence_stays_short_whatever_is_wrong():
    long = "k" * 100_000
    for value, schema in (({long: {long: 1}}, {"additionalProperties": {"additionalProperties": {"type": "null"}}}),
                          ({}, {"required": [long]}), ({long: 1}, {"additionalProperties": False}),
                          (1, {"const": long}), (long, {"pattern": "x" * 5000})):  # fmt: skip
        assert len(problem_of_value(value, json.dumps(schema))) <= 1000


def test_the_library_is_not_loaded_before_a_schema_is_checked():
    script = "import sys, llmdo.runners.cli.main; sys.exit('jsonschema_rs' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
