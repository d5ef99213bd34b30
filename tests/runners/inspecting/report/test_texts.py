"""Answers and prompts as people read them."""

import base64
import struct

import pytest

from llmdo.runners.inspecting.report.texts import SHOWN_CHARACTERS, answer_parts, part, prompt_parts, visible


def shown(parts):
    return [(one.label, one.text) for one in parts]


def chat(**message):
    return {"choices": [{"message": {"role": "assistant", **message}}]}


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        (chat(content="Blue."), [("", "Blue.")]),
        (chat(content='{"a":[1]}'), [("", '{\n  "a": [\n    1\n  ]\n}')]),
        (chat(content='{"a":'), [("", '{"a":')]),
        (chat(content="b", reasoning_content="since"), [("reasoning", "since"), ("", "b")]),
        (chat(content=None, refusal="No."), [("refusal", "No.")]),
        (chat(content=None), []),
        ({"choices": [{"text": "one"}, {"text": "two"}]}, [("choice 1", "one"), ("choice 2", "two")]),
        ({"choices": [None, 3]}, []),
        ({"output": [{"type": "message", "content": [{"type": "output_text", "text": "hi"}]}]}, [("", "hi")]),
        ({"result": "raw"}, [("", '{\n  "result": "raw"\n}')]),
        ("text", [("", "text")]),
        (None, [("", "null")]),
    ],
)
def test_an_answer_of_any_kind(body, parts):
    assert shown(answer_parts(body)) == parts


def test_a_call_of_a_tool_is_json():
    (one,) = answer_parts(chat(content=None, tool_calls=[{"function": {"name": "f"}}]))
    assert one.label == "tool calls" and one.code and '"name": "f"' in one.text


def test_vectors_are_summed_up_in_both_forms():
    numbers = [3.0, 4.0, *[0.0] * 10]
    packed = base64.b64encode(struct.pack("<12f", *numbers)).decode()
    items = [{"index": 0, "embedding": numbers}, {"index": 1, "embedding": packed}]
    items += [{"index": 2, "embedding": None, "error": {"message": "too long"}}, *[{"embedding": [1.0]}] * 5]
    said = "12 numbers, length 5: [3, 4, 0, 0, 0, 0, …]"
    assert shown(answer_parts({"object": "list", "data": items})) == [
        ("vector 0", said),
        ("vector 1", said),
        ("vector 2", "none: too long"),
        ("", "… and 5 more vectors"),
    ]
    assert shown(answer_parts({"object": "list", "data": [{"embedding": "?"}]}))[0][1].startswith("not a vector")


def test_long_texts_are_cut_and_the_rest_is_counted():
    one = part("", "x" * (SHOWN_CHARACTERS + 7))
    assert (len(one.text), one.cut) == (SHOWN_CHARACTERS, 7)
    (raw,) = answer_parts({"numbers": list(range(1000)), "image": "A" * 100_000})
    assert "… and 968 more" in raw.text and len(raw.text) <= SHOWN_CHARACTERS


def test_what_is_nested_without_end_is_shown_nevertheless():
    deep: object = "x"
    for _ in range(2_000):
        deep = [deep]
    assert answer_parts({"deep": deep})


def test_control_characters_and_those_that_reorder_text_are_shown_by_their_numbers():
    assert visible("a\tb\r\nc\x00\x1b[31m\u202egpj.exe\u2066\ufeff") == (
        "a\tb\nc⟨U+0000⟩⟨U+001B⟩[31m⟨U+202E⟩gpj.exe⟨U+2066⟩⟨U+FEFF⟩"
    )
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467 سلام"
    assert visible(family) == family


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ({"prompt": "why?"}, [("user", "why?")]),
        ({"prompt": "why?", "system": "Be brief."}, [("system", "Be brief."), ("user", "why?")]),
        ({"messages": [{"role": "user", "content": "hi"}, "?"]}, [("user", "hi")]),
        ({"url": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "hi"}]}}, [("user", "hi")]),
        ({"text": "embed me"}, [("text", "embed me")]),
        ({"other": 1}, [("line", '{\n  "other": 1\n}')]),
        ([1], [("line", "[\n  1\n]")]),
    ],
)
def test_what_a_line_asks(line, parts):
    assert shown(prompt_parts(line, "", "")) == parts


def test_a_template_is_filled_in_and_a_line_without_its_field_shows_it():
    assert shown(prompt_parts({"a": "x"}, "Is {a}?", "You know {a}.")) == [("system", "You know x."), ("user", "Is x?")]
    assert shown(prompt_parts({"b": "x"}, "Is {a}?", "")) == [("user", "Is {a}?")]
