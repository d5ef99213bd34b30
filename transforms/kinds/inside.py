"""What a look into a file shows before it is read: its format, where it ends, or that it is not what its name says."""

from __future__ import annotations

from dataclasses import replace

from llmdo.transforms.elements import FileVersion
from llmdo.transforms.kinds.first_look import format_by_content, head_of, unpacked_head, wrong_format
from llmdo.transforms.tables.needed_columns import ANY_COLUMNS, NeededColumns, columns_of
from llmdo.transforms.tables.rows import with_rows
from llmdo.transforms.unreadable import CorruptData


def look_inside(
    file: FileVersion, content: bytes | None = None, needed: NeededColumns = ANY_COLUMNS, *, checked: bool = True
) -> FileVersion:
    """The file with its format and, where its name or size does not say it, its end.

    Args:
        content: the whole file as stored, if it is in memory.
        needed: which columns a table must have; it is not looked for them unless it is ``checked``.
        checked: a file that is of another kind than its name says raises CorruptData, with one sentence about it.

    Raises CorruptData, and StorageError.
    """
    if file.compression and not file.kind.packs:
        unpack = "gunzip" if file.compression == "gzip" else "unzstd"
        what = f"is compressed as a whole, and {file.kind.name} has compression of its own"
        raise CorruptData(what, f"unpack it: {unpack}").about(file.place)
    head = b""
    if checked or file.kind.ambiguous:
        head = head_of(file) if content is None else content
        if file.kind.ambiguous:
            file = replace(file, format=format_by_content(file, head))
        problem = wrong_format(file, head) if checked else None
        if problem is not None:
            raise CorruptData(problem, remedy="")
    try:
        if file.has_rows:
            file = with_rows(file, content)
        if checked and needed != ANY_COLUMNS:
            columns = columns_of(file, *unpacked_head(file, head))
            if columns is not None:
                needed.check(columns)
    except CorruptData as error:
        raise error.about(file.place) from error
    return file
