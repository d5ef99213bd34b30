import pytest

from runners.summary import Summary
from transforms.elements import FileVersion, Settled
from transforms.run_state import Counts

FILE = FileVersion("r2://bucket", "a.jsonl", "e", 1)


def summary(**fields):
    return Summary(**{"run_id": "r", "counts": Counts(), "settled": (), "in_work": (), "left": {}, **fields})


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({}, 0),
        ({"settled": (Settled(FILE, "done", 5, 0),)}, 0),
        ({"counts": Counts(files_done=1, files_with_errors=1)}, 3),
        ({"counts": Counts(files_stale=1)}, 3),
        ({"counts": Counts(files_with_errors=1), "in_work": (FILE,)}, 1),
        ({"left": {"x": "why"}}, 1),
        ({"problem": "the token is wrong"}, 1),
        ({"continuous": True, "in_work": (FILE,), "left": {"x": "why"}}, 0),
        ({"continuous": True, "problem": "the token is wrong"}, 1),
    ],
)
def test_the_exit_code_says_how_it_ended(fields, code):
    assert summary(**fields).exit_code == code
    assert summary(**fields).as_json()["exit_code"] == code
