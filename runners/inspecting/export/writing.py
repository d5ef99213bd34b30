"""A table that is written whole, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmdo.runners.ending import Ending
from llmdo.runners.inspecting.export.formats import TableFormat
from llmdo.runners.inspecting.export.records import Record
from llmdo.storage.objects.store import Upload

# Batches of records that are looked at before a file is begun.
_LOOKED_AT = 16


class TableFile:
    """A file with a table.

    It is begun with what the first records show: columns, types. If a later one shows that this was wrong, the file is
    given up, the rest is only learnt from, and the next pass over the same records writes it.

    Args:
        form: of its bytes; goes on to know what it has learnt.
        start: makes the upload.
        ending: waits until it is known that there is one, or none.
        needed: it is there also without a record.
    """

    def __init__(self, form: TableFormat, start: Callable[[], Upload], ending: Ending, *, needed: bool) -> None:
        self.form = form
        self.rows = 0
        self._start, self._ending, self._needed = start, ending, needed
        self._upload: Upload | None = None
        self._first: list[Sequence[Record]] = []
        self._wrong = False

    def add(self, records: Sequence[Record]) -> None:
        """Takes in records, in the order of the table."""
        if not records:
            return
        self.rows += len(records)
        holds = self.form.learn(records)
        if self._wrong:
            return
        if self._upload is None:
            self._first.append(records)
            if not self.form.guesses or len(self._first) >= _LOOKED_AT:
                self._begin()
        elif holds:
            self.form.write(records)
        else:
            self.abort()
            self._wrong = True

    def is_right(self) -> bool:
        """Whether all records, which were added, are in the file; otherwise they have to be added again, from the first
        one on.
        """
        if self._first and not self._wrong:
            self._begin()
        return not self._wrong

    def again(self) -> None:
        """Forgets the file, not what was learnt."""
        self.abort()
        self.rows, self._wrong = 0, False

    def finish(self) -> bool:
        """Makes the file appear; returns whether there is one."""
        if not self.rows and not self._needed:
            return False
        if self._upload is None:
            self._begin()
        if self._upload is not None:
            self.form.end()
            self._upload.finish()
        return True

    def abort(self) -> None:
        """Leaves nothing of the file, unless it is finished."""
        self._first = []
        if self._upload is not None:
            with self._ending.hold():
                self.form.drop()
                self._upload.abort()
                self._upload = None

    def _begin(self) -> None:
        with self._ending.hold():
            self._upload = self._start()
        self.form.begin(self._upload)
        first, self._first = self._first, []
        for records in first:
            if len(first) > 1 and not self.form.learn(records):  # again, as what all of them have shown
                self.abort()
                self._wrong = True
                return
            self.form.write(records)
