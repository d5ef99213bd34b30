"""Which ids a row of an answer may have: those of today, and those that earlier versions wrote."""

import json

import pytest

from llmdo.runners.inspecting.oracle import ShardRow, SourceLine, differs

PLACE = "k.jsonl:0"


def differences(line, own, custom):
    data = json.dumps(line).encode()
    row = ShardRow("s", 0, len(data), {"id": own, "custom_id": custom}, "answers")
    return list(differs(row, SourceLine(0, len(data), data), "k.jsonl"))


@pytest.mark.parametrize(
    ("line", "own", "custom"),
    [
        ({"id": 5}, 5, "5"),
        ({"id": 5}, 5, 5),  # as earlier versions wrote it
        ({"id": 1e22, "custom_id": {"a": 1.0}}, 1e22, '{"a":1.0}'),
        ({"id": True}, True, "true"),
        ({"custom_id": "c"}, "c", "c"),
        ({"id": None, "custom_id": "c"}, "c", "c"),
        ({"id": None, "custom_id": "c"}, PLACE, "c"),  # as earlier versions wrote it
        ({"key": 7, "request": {}}, 7, "7"),
        ({"key": 7, "request": {}}, PLACE, PLACE),  # with a template
        ({"recordId": "r", "modelInput": {}}, "r", "r"),
        ({"key": "k"}, PLACE, PLACE),
        ({}, PLACE, PLACE),
    ],
)
def test_the_lines_own_ids_are_right(line, own, custom):
    assert differences(line, own, custom) == []


@pytest.mark.parametrize(
    ("line", "own", "custom"),
    [
        ({"id": 5}, "5", "5"),
        ({"id": 1}, True, "1"),
        ({"id": 5}, 5, "6"),
        ({"id": 5}, 5, None),
        ({"id": "5"}, 5, "5"),
        ({"custom_id": "5"}, "5", 5),
        ({"id": 5}, PLACE, "5"),
        ({"key": 7}, 7, "7"),
        ({"key": "k", "request": "text"}, "k", "k"),
        ({}, "a", "a"),
    ],
)
def test_other_ids_are_found(line, own, custom):
    assert differences(line, own, custom) != []
