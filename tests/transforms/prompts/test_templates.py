import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdo.transforms.prompts.templates import MissingField, fields_of, fill_in, template_problem


@pytest.mark.parametrize(
    ("template", "values", "text"),
    [
        ("Summarise: {text}", {"text": "a story"}, "Summarise: a story"),
        ("{a}{b}{a}", {"a": "1", "b": "2"}, "121"),
        ('{{"k": "{a}"}}', {"a": "x"}, '{"k": "x"}'),
        ('As {"k": 1}: {a}', {"a": "x"}, 'As {"k": 1}: x'),
        ("{{a}} {a}", {"a": "x"}, "{a} x"),
        ("{{{a}}}", {"a": "x"}, "{x}"),
        ("{a} {", {"a": "x"}, "x {"),
        ("{größe} {first-name}", {"größe": 7, "first-name": True}, "7 true"),
        ("{a}", {"a": {"b": [1.5, "ü"]}}, '{"b":[1.5,"ü"]}'),
        ("{a}", {"a": ""}, ""),
    ],
)
def test_fields_are_filled_in_and_other_braces_stay(template, values, text):
    assert fill_in(template, values) == text


@pytest.mark.parametrize("values", [{}, {"b": None}])
def test_a_field_that_is_missing_or_null_is_named(values):
    with pytest.raises(MissingField, match=r"^b$"):
        fill_in("{a} {b}", {"a": 1, **values})


@given(st.text())
def test_a_value_is_never_read_as_a_template(value):
    assert fill_in("<{a}>", {"a": value, "b": "secret"}) == f"<{value}>"


@given(st.text())
def test_any_text_can_be_written_with_its_braces_doubled(text):
    template = text.replace("{", "{{").replace("}", "}}")
    assert fields_of(template) == frozenset()
    assert fill_in(template, {}) == text


@pytest.mark.parametrize(
    "template", ["{a.b}", "{a[0]}", "{a!r}", "{a:>9}", "{}", "{0}", "{ a }", "x {a} {a.__class__}"]
)
def test_what_looks_like_code_is_refused_and_never_run(template):
    assert "is not a field" in template_problem(template)


def test_a_template_that_asks_all_lines_the_same_is_refused():
    assert "no field" in template_problem("Hello")
    assert "no field" in template_problem("Hello {{text}}")
    assert template_problem('Answer with {"label": "…"}: {text}') is None
