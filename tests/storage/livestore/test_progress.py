"""Where a store is read from next time."""

from __future__ import annotations

import pytest

from llmdo.storage.errors import StorageError
from llmdo.storage.livestore import progress
from llmdo.storage.livestore.frames import Cursor
from llmdo.storage.objects.local import LocalStore


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path)


def test_the_first_start_is_remembered(store):
    first, new = progress.begin_progress(store, "log/", None, 1000.0)
    assert new and first.since == 1000.0 and first.cursor is None
    assert progress.begin_progress(store, "log/", None, 2000.0) == (first, False)
    assert progress.begin_progress(store, "other/", None, 2000.0)[0].log != first.log


def test_reading_begins_behind_the_cursor(store):
    first, _ = progress.begin_progress(store, "", None, 1000.0)
    moved = first.model_copy(update={"backend": "b", "number": 7})
    progress.write_progress(store, "", moved)
    found, _ = progress.begin_progress(store, "", None, 3000.0)
    assert (found, found.cursor) == (moved, Cursor("b", 7))


def test_who_asks_for_older_messages_gets_them_and_who_asks_for_newer_ones_reads_on(store):
    first, _ = progress.begin_progress(store, "", None, 1000.0)
    progress.write_progress(store, "", first.model_copy(update={"backend": "b", "number": 7}))
    newer, _ = progress.begin_progress(store, "", 2000.0, 3000.0)
    assert (newer.since, newer.cursor) == (2000.0, Cursor("b", 7))
    older, _ = progress.begin_progress(store, "", 0.0, 3000.0)
    assert (older.since, older.cursor, older.log) == (0.0, None, first.log)
    assert progress.begin_progress(store, "", None, 3000.0)[0] == older


def test_what_is_no_cursor_is_named(store):
    store.put("_cursor.json", b"{}")
    with pytest.raises(StorageError, match=r"_cursor\.json is not a cursor: remove it"):
        progress.begin_progress(store, "", None, 1000.0)
