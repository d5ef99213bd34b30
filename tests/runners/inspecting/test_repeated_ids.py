"""Ids that several lines of a file have."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdo.runners.inspecting.repeated_ids import RepeatedIds
from llmdo.runners.inspecting.verify import verify
from tests.integration.openai_service import answer, serving


@given(st.lists(st.integers(0, 20).map(str), max_size=80), st.integers(1, 9))
def test_each_line_whose_id_was_there_before_is_counted_once(names, batch):
    found = RepeatedIds(batch)
    for name in names:
        found.add(name)
    found.close()
    counts = Counter(names)
    assert found.repeated == len(names) - len(counts)
    assert (found.example is None) == (found.repeated == 0)
    assert found.example is None or counts[found.example] > 1


def test_many_ids_take_a_few_bytes_each():
    found = RepeatedIds()
    for number in range(300_000):
        found.add(f"line {number}")
    found.add("line 7")
    found.close()
    assert (found.repeated, found.example) == (1, "line 7")
    assert sum(seen.nbytes for seen in found._seen) == 8 * 300_000


@pytest.mark.parametrize(
    ("lines", "note"),
    [
        (
            [{"id": "a"}, {"id": "b"}, {"id": "a"}, {"custom_id": "a"}],
            "2 lines have an id that a line before has ('a')",
        ),
        ([{"id": 1}, {"custom_id": "1"}], "1 line has an id that a line before has ('1')"),
        ([{"id": "a"}, {"id": "b"}, {}, {}], None),
    ],
)
def test_verify_notes_them_once_a_file_and_is_content(tmp_path: Path, monkeypatch, lines, note):
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"say {at}", **line}) + "\n" for at, line in enumerate(lines)))
    with serving() as service:
        monkeypatch.setenv("OPENAI_BASE_URL", service.url)
        assert answer(source, output=tmp_path / "out").exit_code == 0
    found = verify(str(tmp_path / "out"), [str(source)])
    assert found.ok
    said = [one for one in found.notes if "an id that a line before" in one]
    expected = f"a.jsonl: {note}: their answers are told apart by source.offset" if note else None
    assert said == ([expected] if expected else [])
