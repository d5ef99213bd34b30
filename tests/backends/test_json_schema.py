import json
import subprocess
import sys

import pytest

from backends.json_schema import problem_of, problem_of_schema

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
    assert problem_of(value, schema) is None


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
        ([1], {"items": False}, "$ does not fit items: Expected at most 0 items but found 1 extra: 1"),
        ({"a": 1}, {"properties": {"a": False}}, "$ must not have 1"),
        ({"a": 1}, {"dependentRequired": {"a": ["b"]}}, "$ does not fit dependentRequired: 'b' is a dependency of 'a'"),
        ({"name": "a", "below": [{"name": "b"}, {}]}, TREE, "$.below[1] lacks 'name'"),
        ("x" * 100, {"type": "integer"}, f"$ must be integer, not '{'x' * 76}..."),
    ],
)  # fmt: skip
def test_a_problem_names_its_place_and_what_is_wrong(value, schema, problem):
    assert problem_of(value, schema) == problem


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"type": "objekt"}, "$.type fits none of its 2 alternatives ($.type must be one of ['array', 'boolean'"),
        ({"properties": {"a": {"minimum": "three"}}}, "$.properties.a.minimum must be number, not 'three'"),
        ({"items": [1]}, "$.items must be object or boolean, not [1]"),
        ([1], "$ must be a JSON Schema, which is an object, not [1]"),
        ({"properties": {"a": {"$ref": "https://a.example/s"}}},
         "$.properties.a.$ref leads nowhere: 'https://a.example/s' is not in the schema, and nothing is fetched"),
        ({"$ref": "#/$defs/n"}, "$.$ref leads nowhere: '#/$defs/n'"),
        ({"pattern": "(?<js>x)"}, "$.pattern is no regex: '(?<js>x)'"),
        ({"patternProperties": {"[": {}}}, "$.patternProperties is no regex: '['"),
        ({"pattern": "a{99999999999}"}, "repeats a pattern too often"),
        ({"pattern": "a" * 1001}, "$ has a pattern of over 1,000 characters"),
    ],
)  # fmt: skip
def test_a_schema_that_cannot_be_used_says_where(schema, problem):
    assert problem in problem_of_schema(json.dumps(schema))


@pytest.mark.parametrize("schema", [TREE, True, {"enum": [{"$ref": "https://no.where"}], "minimumm": 3}, {}])
def test_a_schema_that_can_be_used_has_no_problem(schema):
    assert problem_of_schema(json.dumps(schema)) is None


def test_no_reference_is_ever_fetched(monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("it was fetched"))
    with pytest.raises(Exception, match="elsewhere"):
        problem_of(1, {"$ref": "https://elsewhere.example/s"})


def test_a_schema_that_refers_to_itself_without_end_ends():
    doubling = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(40)} | {"a40": {}}
    for schema in ({"$ref": "#"}, {"$defs": doubling, "$ref": "#/$defs/a0"}):
        assert problem_of_schema(json.dumps(schema)) is None
        assert problem_of(1, schema) == "$ cannot be checked: the schema refers to itself without end"


def test_the_library_is_not_loaded_before_a_schema_is_checked():
    script = "import sys, runners.cli; sys.exit('jsonschema' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
