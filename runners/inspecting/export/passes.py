"""Makes tables of files that are done, in one pass over their rows, or in two."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmdo.runners.ending import Ending
from llmdo.runners.inspecting.export.columns import MOST_COLUMNS, Columns, needs_source
from llmdo.runners.inspecting.export.formats import CONTENT_TYPES, Csv, JsonLines, TableFormat
from llmdo.runners.inspecting.export.joining import NotJoined, SourceLines, SourceRows, source_of
from llmdo.runners.inspecting.export.plan import PlannedFile, Target, beside, place_url
from llmdo.runners.inspecting.export.records import Record, RecordMaker, RowSource
from llmdo.runners.inspecting.export.saying import packed_vector, vector_numbers
from llmdo.runners.inspecting.export.schemas import properties_of
from llmdo.runners.inspecting.export.writing import TableFile
from llmdo.storage.errors import ObjectNotFound, StorageError
from llmdo.storage.objects.opening import open_store, open_upload
from llmdo.storage.objects.store import Location, ObjectStore
from llmdo.storage.output.manifests import Manifest, ShardKind, read_manifest
from llmdo.storage.output.rows import parsed_rows_in_order

# A batch ends at this number of records, or bytes of rows and lines, whichever comes first: more do not fit in a
# processor's cache.
_BATCH_ROWS, _BATCH_BYTES = 1_000, 1 << 20
# The first pass shows what the second one has to write. Others are for an output that changes meanwhile.
_PASSES = 4
_BOTH: frozenset[ShardKind] = frozenset(("answers", "errors"))
_ANSWERS: frozenset[ShardKind] = frozenset(("answers",))


@dataclass(slots=True)
class TableMade:
    """A table, and the files that it is in."""

    written: list[str] = field(default_factory=list)
    answers: int = 0
    errors: int = 0
    joined: int = 0
    notes: list[str] = field(default_factory=list)


class _Again(Exception):
    """This pass was begun with what proved wrong."""


class TableMaker:
    """Makes one table after the other.

    Args:
        schema: of the answers, or {}.
        templated: whether lines were filled into a template.
        columns: those to write, in their order, or None for all.
        join: whether fields of the input come from the sources.
        errors: ``separate``, ``inline`` or ``drop``.
        says: hears how many rows are read.
        ending: raises what ends the export.
    """

    def __init__(
        self,
        store: ObjectStore,
        target: Target,
        *,
        schema: Mapping[str, Any],
        templated: bool,
        columns: Sequence[str] | None,
        join: bool,
        errors: str,
        says: Callable[[int], None],
        ending: Ending,
    ) -> None:
        self._store, self._target, self._errors, self._says = store, target, errors, says
        self._ending = ending
        self._schema, self._columns = properties_of(schema), columns
        vector = packed_vector if target.form == "parquet" else vector_numbers
        self._records = RecordMaker(tuple(self._schema), templated=templated, vector=vector)
        self._properties = tuple(self._records.property_columns.values())
        self._root = schema
        self._joins = join and needs_source(self._properties, columns)
        self._read = 0
        self._gone: ObjectNotFound | None = None
        self._unseen: set[str] | None = None

    def make(self, place: Location, files: Sequence[PlannedFile]) -> TableMade:
        """Writes a table, and that of its error lines. Raises StorageError and UsageError."""
        apart = beside(place, self._target.ending)
        answers = self._file(place, needed=True)
        errors = self._file(apart, needed=_is_there(apart)) if self._errors == "separate" else None
        both = [answers] if errors is None else [errors, answers]
        unreadable: dict[str, str] = {}  # folder of a file → why its source cannot be read
        before = self._read
        self._gone = None
        try:
            for _ in range(_PASSES):
                made = TableMade()
                if self._pass(files, answers, errors, unreadable, made) and all(one.is_right() for one in both):
                    break
                self._read = before
                for one in both:
                    one.again()
            else:
                raise self._gone or StorageError(
                    f"{self._store.url} changes while it is exported: run the command again"
                )
            # Those of errors first: if the answers are there, all is.
            if errors is not None and errors.finish():
                made.written.append(place_url(apart))
            answers.finish()
            made.written.insert(0, place_url(place))
        finally:
            with self._ending.hold():
                for one in both:
                    one.abort()
        if self._joins:
            made.joined = len(files) - len(unreadable)
            made.notes += _about(unreadable, files)
        if answers.rows:
            unseen = set(answers.form.columns.unseen)
            self._unseen = unseen if self._unseen is None else self._unseen & unseen
        return made

    def unseen(self) -> list[str]:
        """A sentence if columns were named that no table has."""
        if not self._unseen:
            return []
        return [f"no row has {', '.join(sorted(self._unseen))}: check --columns"]

    def _file(self, place: Location, *, needed: bool) -> TableFile:
        kind = CONTENT_TYPES[self._target.form]
        return TableFile(self._form(), lambda: open_upload(place, kind), self._ending, needed=needed)

    def _form(self) -> TableFormat:
        columns = Columns(self._properties, self._columns)
        if self._target.form == "jsonl":
            return JsonLines(columns)
        if self._target.form == "csv":
            return Csv(columns)
        from llmdo.runners.inspecting.export.parquet import Parquet  # noqa: PLC0415  pyarrow takes 0.2 s
        from llmdo.runners.inspecting.export.types import type_of_schema  # noqa: PLC0415  as above

        named = self._records.property_columns
        return Parquet(columns, {named[name]: type_of_schema(one, self._root) for name, one in self._schema.items()})

    def _pass(
        self,
        files: Sequence[PlannedFile],
        answers: TableFile,
        errors: TableFile | None,
        unreadable: dict[str, str],
        made: TableMade,
    ) -> bool:
        """Whether the pass came to its end: not if a source could not be read to its end, or a shard was replaced."""
        try:
            for rows, failed in self._batches(files, unreadable, made):
                answers.add(rows)
                if errors is not None:
                    errors.add(failed)
                for one in (answers, errors):
                    if one is not None and one.form.columns.count > MOST_COLUMNS:
                        raise StorageError(
                            f"there are more than {MOST_COLUMNS:,} columns, since the input's lines have other fields "
                            "each: name those that you want with --columns"
                        )
                self._ending.check()
                self._says(self._read)
        except _Again:
            return False
        except ObjectNotFound as error:  # by llmdo retry, perhaps: its manifest is another one then
            self._gone = error
            return False
        return True

    def _batches(
        self, files: Sequence[PlannedFile], unreadable: dict[str, str], made: TableMade
    ) -> Iterator[tuple[list[Record], list[Record]]]:
        """Records of the table, and those of its error lines if they are apart."""
        rows, failed, held = list[Record](), list[Record](), 0
        kinds = _ANSWERS if self._errors == "drop" else _BOTH
        apart = self._errors == "separate"
        make = self._records.record
        for file in files:
            manifest = self._manifest(file)
            source = RowSource(file.key, file.name, f"{self._store.url}/{file.folder}")
            lines = self._lines(file, manifest, unreadable)
            for row in parsed_rows_in_order(self._store, file.folder, manifest, kinds):
                line = None
                if row.kind == "errors":
                    made.errors += 1
                    (failed if apart else rows).append(make(row, source, None))
                else:
                    if lines is not None:
                        try:
                            line = lines.line(row.start, row.stop)
                        except NotJoined as error:
                            unreadable[file.folder] = str(error)
                            raise _Again from None
                        held += len(line)
                    made.answers += 1
                    rows.append(make(row, source, line))
                held += len(row.line)
                if held >= _BATCH_BYTES or len(rows) + len(failed) >= _BATCH_ROWS:
                    self._read += len(rows) + len(failed)
                    yield rows, failed
                    rows, failed, held = [], [], 0
        self._read += len(rows) + len(failed)
        yield rows, failed

    def _manifest(self, file: PlannedFile) -> Manifest:
        try:
            manifest = read_manifest(self._store, file.folder)
        except ValueError as error:
            raise StorageError(str(error)) from None
        if manifest is None:
            raise ObjectNotFound(f"{self._store.url}/{file.folder} was removed just now: run the command again")
        return manifest

    def _lines(
        self, file: PlannedFile, manifest: Manifest, unreadable: dict[str, str]
    ) -> SourceLines | SourceRows | None:
        if not self._joins or file.folder in unreadable:
            return None
        try:
            return source_of(manifest)
        except NotJoined as error:
            unreadable[file.folder] = str(error)
            return None


def _is_there(place: Location) -> bool:
    """Whether an earlier export wrote a file here, which would be out of date."""
    folder, _, name = (place.key if place.bucket else place.store_url).rpartition("/")
    store = open_store(place.store_url if place.bucket else folder or "/")
    try:
        store.stat(place.key if place.bucket else name)
    except ObjectNotFound:
        return False
    return True


def _about(unreadable: Mapping[str, str], files: Sequence[PlannedFile]) -> list[str]:
    """A sentence about sources that were not joined."""
    if not unreadable:
        return []
    file = next(file for file in files if file.folder in unreadable)
    others = f", and those of {len(unreadable) - 1:,} more," if len(unreadable) > 1 else ""
    return [
        f"the fields of {file.name}{others} are only those that its rows have, since the source cannot be read: "
        f"{unreadable[file.folder]}"
    ]
