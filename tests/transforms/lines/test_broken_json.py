import pytest

from llmdo.transforms.lines.broken_json import hint
from llmdo.transforms.prompts.line_json import BadLine, json_object
from llmdo.transforms.tables.look_ahead import BOM


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'\xef\xbb\xbf{"prompt": "a"}', "byte order mark"),
        (b'{"prompt": "a", "score": NaN}', "NaN and Infinity are not JSON"),
        (b'{"prompt": "a", "score": [-Infinity]}', "NaN and Infinity are not JSON"),
        (b'{"prompt": "a"},', "comma behind the object"),
        (b'{"prompt": "a, }", "tags": ["b", ], }', "comma before a closing bracket"),
        (b"{'prompt': 'a'}", "Python dict"),
        (b'{"prompt": "a"}{"prompt": "b"}', "several objects"),
        (b"{", "over several lines"),
        ("{“prompt”: “a”}".encode(), "typographic quotes"),
        (b'"{""prompt"": ""a""}"', "quoted as a cell of a table"),
        (b"What is the capital of France?", 'plain text: write {"prompt": "'),
        ("Übersetze „Hallo“ ins Englische.".encode(), "plain text"),
        (b'{"prompt": "caf\xe9"}', "not UTF-8"),
    ],
)
def test_a_line_that_is_not_json_says_what_is_likely_wrong(line, said):
    with pytest.raises(BadLine, match=r"not valid JSON: .*; ") as raised:
        json_object(line)
    assert said in raised.value.message


@pytest.mark.parametrize(
    "line", [b'{"prompt": "a', b"12 sha256:12", b"oid = {12}", b"", b'{"a": "}, ]"', b'{"a": "x" "b"}']
)
def test_nothing_is_guessed_where_nothing_is_known(line):
    assert hint(line) == ""


@pytest.mark.parametrize("part", [b",", b'"', b"\\", b", ", b"}{", b"[", b"{'", b'",'])
def test_a_hostile_line_is_looked_at_only_up_to_a_length(part):
    assert isinstance(hint(b"{" + part * (60_000 // len(part))), str)
    assert hint(BOM + part * 70_000) == ""
