"""Errors counted by class."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from llmdo.storage.objects.opening import open_store
from llmdo.storage.output.error_classes import ErrorRow, count_errors, errors_of_files, read_error_shards
from tests.storage.output.test_overview import done, error_row


def test_the_most_frequent_class_comes_first_with_its_first_example():
    rows = [ErrorRow("A", "", "a1"), ErrorRow("B", "3036", "b1"), ErrorRow("B", "3036", "b2"), ErrorRow("B", "", "b3")]
    found = count_errors(rows)
    assert [(one.name, one.code, one.count, one.example) for one in found] == [
        ("B", "3036", 2, "b1"),
        ("A", "", 1, "a1"),
        ("B", "", 1, "b3"),
    ]
    assert found[1].as_json() == {"class": "A", "code": None, "count": 1, "example": "a1"}
    assert count_errors([]) == ()


def test_only_the_errors_of_these_files_count(tmp_path):
    store = open_store(str(tmp_path))
    done(store, "a.jsonl", errors=[("A", None, "one"), ("A", None, "two")])
    done(store, "b.jsonl", errors=[("B", 404, "three")])
    done(store, "c.jsonl")
    folder = "out/bucket/{}.jsonl/e/"
    (found,) = errors_of_files(store, [folder.format(name) for name in ("a", "c", "gone")])
    assert (found.name, found.count, found.example) == ("A", 2, "one")
    assert errors_of_files(store, []) == ()


@pytest.mark.parametrize("row", [b"torn", b"[]", b'{"error": null}', b'{"error": {}}', b"{}"])
def test_a_row_that_is_not_one_of_an_error_is_counted_as_such(tmp_path, row):
    store = open_store(str(tmp_path))
    store.put("errors.jsonl", error_row(0) + b"\n" + row + b"\n")
    with ThreadPoolExecutor(1) as reads:
        ((name, rows),) = read_error_shards(store, ["errors.jsonl"], reads, 100, 60.0)
    assert name == "errors.jsonl"
    assert [one.name for one in rows] == ["ModelError", "unreadable"]


def test_no_more_than_about_so_many_rows_are_read(tmp_path):
    store = open_store(str(tmp_path))
    names = [f"{at}.jsonl" for at in range(200)]
    for name in names:
        store.put(name, error_row(0) + b"\n")
    with ThreadPoolExecutor(4) as reads:
        assert 50 <= len(list(read_error_shards(store, names, reads, 50, 60.0))) < 100
