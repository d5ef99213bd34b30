"""Records as a Parquet file, with types that hold every row's values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmdo.runners.inspecting.export.columns import ANSWER, VECTOR, VECTORS, Columns
from llmdo.runners.inspecting.export.reading import json_text
from llmdo.runners.inspecting.export.records import Record
from llmdo.runners.inspecting.export.types import EXACT, inferred, widened, written_type
from llmdo.storage.objects.store import Upload

_ERROR = pa.struct([("class", pa.string()), ("code", pa.string()), ("message", pa.string())])
_FIXED = {
    **{name: pa.string() for name in (ANSWER, "model", "finish_reason", "source")},
    **{name: pa.int64() for name in ("input_tokens", "output_tokens", "offset")},
    "cost_usd": pa.float64(),
    "error": _ERROR,
}
# A row group ends with the batch that reaches one of these. Rows, bytes in Arrow's format.
_GROUP_ROWS, _GROUP_BYTES = 122_880, 64 << 20
# Dimensions that are not all the same. One that is missing counts: Parquet can hold a list of fixed size that is null,
# but pyarrow does not read it.
_DIFFERENT = -1


class _Column:
    """What is known of a column: a type for all values so far, or that they are of different kinds."""

    def __init__(self, kind: pa.DataType | None = None, *, label: bool = False) -> None:
        self._whole = kind == pa.int64()
        self.kind = pa.null() if kind is None else kind
        self._label = label  # of different kinds: texts as they are
        self._mixed = False
        self._largest = 0

    def learn(self, values: Sequence[Any]) -> pa.Array:
        """Takes in values; returns them in the type that is ``written`` from now on."""
        found = None if self._mixed else inferred(values, whole=self._whole)
        wider = None if found is None else widened(self.kind, found.type)
        if found is not None and found.type == pa.int64():
            bounds = pc.min_max(found).as_py()
            self._largest = max(self._largest, -(bounds["min"] or 0), bounds["max"] or 0)
        if found is None or wider is None or (wider == pa.float64() and self._largest > EXACT):
            self._mixed = True
            return self._texts(values)
        self.kind = wider
        kind = written_type(wider)
        if kind is None:
            return self._texts(values)
        if found.type == kind:
            return found
        try:
            return pa.array(values, kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # a whole number within that is no float
            self._mixed = True
            return self._texts(values)

    @property
    def written(self) -> pa.DataType:
        """Its type in a file; JSON text if there is no other."""
        return (None if self._mixed else written_type(self.kind)) or pa.string()

    def _texts(self, values: Sequence[Any]) -> pa.Array:
        plain = str if self._label else ()
        texts = [value if value is None or isinstance(value, plain) else json_text(value) for value in values]
        return pa.array(texts, pa.string())

    @property
    def is_json(self) -> bool:
        """Whether its texts are JSON."""
        return not self._label and (self._mixed or written_type(self.kind) is None)


class _Vectors:
    """A column of vectors, packed: all of one dimension, or of any; one a row, or a list of them."""

    is_json = False

    def __init__(self, *, several: bool) -> None:
        self._several = several
        self._size: int | None = None

    def learn(self, values: Sequence[Any]) -> pa.Array:
        """Takes in vectors; returns them in the type that is ``written`` from now on."""
        flat = self._flat(values)
        for size in {_DIFFERENT if vector is None else len(vector) // 4 for vector in flat}:
            self._size = size if self._size in (None, size) else _DIFFERENT
        kind = self.written
        vectors = self._vectors(flat, kind.value_type if self._several else kind)
        if not self._several:
            return vectors
        offsets: list[int | None] = []
        at = 0
        for one in values:
            offsets.append(None if one is None else at)
            at += len(one or ())
        return pa.ListArray.from_arrays(pa.array([*offsets, at], pa.int32()), vectors, type=kind)

    @property
    def written(self) -> pa.DataType:
        """Its type in a file."""
        vector = pa.list_(pa.float32(), self._size) if self._size and self._size > 0 else pa.list_(pa.float32())
        return pa.list_(vector) if self._several else vector

    def _flat(self, values: Sequence[Any]) -> list[bytes | None]:
        return [one for row in values for one in row or ()] if self._several else list(values)

    def _vectors(self, flat: list[bytes | None], kind: pa.DataType) -> pa.Array:
        if pa.types.is_fixed_size_list(kind):
            numbers = pa.array(np.frombuffer(b"".join(one or b"" for one in flat), "<f4"))
            return pa.FixedSizeListArray.from_arrays(numbers, type=kind)
        numbers = pa.array(np.frombuffer(b"".join(one or b"" for one in flat), "<f4"))
        ends = np.cumsum([0, *(len(one or b"") // 4 for one in flat)])
        offsets = [None if one is None else int(start) for one, start in zip(flat, ends[:-1], strict=True)]
        return pa.ListArray.from_arrays(pa.array([*offsets, int(ends[-1])], pa.int32()), numbers, type=kind)


class Parquet:
    """A TableFormat. Types follow the values, from the first row to the last: whole numbers beside floats are floats if
    that loses no digit, lists and structures have all fields that any has, and what is of different kinds is JSON text.
    """

    guesses = True

    def __init__(self, columns: Columns, kinds: Mapping[str, pa.DataType]) -> None:
        self.columns = columns
        self._known: dict[str, _Column | _Vectors] = {
            "id": _Column(label=True),
            VECTOR: _Vectors(several=False),
            VECTORS: _Vectors(several=True),
            **{name: _Column(kind) for name, kind in kinds.items()},
        }
        self._schema: pa.Schema | None = None
        self._writer: pq.ParquetWriter | None = None
        self._sink: _Sink | None = None
        self._learnt: list[pa.Array] = []
        self._group: list[pa.RecordBatch] = []

    def learn(self, records: Sequence[Record]) -> bool:
        """See TableFormat."""
        self.columns.learn(records)
        self._learnt = []
        for name in self.columns.names:
            values = [record.get(name) for record in records]
            self._learnt.append(
                pa.array(values, _FIXED[name])
                if name in _FIXED
                else self._known.setdefault(name, _Column()).learn(values)
            )
        return self._schema is None or self._schema.equals(self._schema_now(), check_metadata=True)

    def begin(self, upload: Upload) -> None:
        """See TableFormat."""
        self._schema, self._group = self._schema_now(), []
        self._sink = _Sink(upload)
        self._writer = pq.ParquetWriter(pa.PythonFile(self._sink, "w"), self._schema, compression="zstd")

    def write(self, records: Sequence[Record]) -> None:  # noqa: ARG002  as they were learnt
        """See TableFormat."""
        assert self._schema is not None  # noqa: S101  begun before
        self._group.append(pa.record_batch(self._learnt, schema=self._schema))
        if sum(map(len, self._group)) >= _GROUP_ROWS or sum(one.nbytes for one in self._group) >= _GROUP_BYTES:
            self._flush()

    def end(self) -> None:
        """See TableFormat."""
        assert self._writer is not None  # noqa: S101  begun before
        self._flush()
        self._writer.close()

    def drop(self) -> None:
        """See TableFormat."""
        if self._sink is not None:
            self._sink.upload = None  # pyarrow writes the end of a file also when it forgets it

    def _flush(self) -> None:
        if self._group and self._writer is not None:
            table = pa.Table.from_batches(self._group, self._schema)
            self._writer.write_table(table, row_group_size=max(1, len(table)))
        self._group = []

    def _schema_now(self) -> pa.Schema:
        return pa.schema([self._field(name) for name in self.columns.names])

    def _field(self, name: str) -> pa.Field:
        if name in _FIXED:
            return pa.field(name, _FIXED[name])
        column = self._known.setdefault(name, _Column())
        return pa.field(name, column.written, metadata={"llmdo": "json"} if column.is_json else None)


class _Sink:
    """An Upload as a file for pyarrow."""

    closed = False

    def __init__(self, upload: Upload) -> None:
        self.upload: Upload | None = upload

    def write(self, data: Any) -> int:
        if self.upload is not None:
            self.upload.write(memoryview(data))
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass
