"""The columns of an export, and what a field of the input is called beside them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

ANSWER = "answer"
# The vector of a line with one text, and the vectors of a line with several.
VECTOR, VECTORS = "embedding", "embeddings"
FIRST = ("id",)
LAST = ("error", "model", "input_tokens", "output_tokens", "cost_usd", "finish_reason", "source", "offset")
# What there may be in every export, whatever the input's fields and the schema's properties are called.
RESERVED = frozenset((*FIRST, ANSWER, VECTOR, VECTORS, *LAST))
INPUT_PREFIX, PROPERTY_PREFIX = "input_", "answer_"
# A table with more is not one that anybody wants, and would not fit in memory.
MOST_COLUMNS = 2_000
_REMEMBERED = 10_000


class ColumnNames(dict[str, str]):
    """Field → column. A name that is ``taken`` gets a prefix, and so does one that would then be its namesake.

    >>> names = ColumnNames({"model"}, "input_")
    >>> [names[field] for field in ("text", "model", "input_model")]
    ['text', 'input_model', 'input_input_model']
    """

    def __init__(self, taken: Collection[str], prefix: str) -> None:
        super().__init__()
        self._taken, self._prefix = taken, prefix
        self._plain: set[str] = set()  # those that are columns by their own names

    def renamed(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """The fields by their columns."""
        return fields if self._plain.issuperset(fields) else {self[name]: value for name, value in fields.items()}

    def __missing__(self, field: str) -> str:
        if len(self) >= _REMEMBERED:
            self.clear()
            self._plain.clear()
        bare = field
        while bare not in self._taken and bare.startswith(self._prefix):
            bare = bare.removeprefix(self._prefix)
        self[field] = name = self._prefix + field if bare in self._taken else field
        if name == field:
            self._plain.add(field)
        return name


class Columns:
    """The names of a table's columns in their order; those of the input are known when a row has had them.

    Args:
        properties: columns that the schema's properties have.
        chosen: the user's choice, in its order; None for all there are.
    """

    def __init__(self, properties: Sequence[str], chosen: Sequence[str] | None) -> None:
        self.chosen = None if chosen is None else tuple(chosen)
        self._properties = tuple(properties)
        self._always = frozenset((*FIRST, ANSWER, *properties, *LAST))
        self._fields: dict[str, None] = {}
        self._vectors: dict[str, None] = {}
        self._known = set(self._always)

    def learn(self, records: Iterable[Mapping[str, Any]]) -> bool:
        """Takes in what is new; returns whether anything was."""
        known, before = self._known, len(self._known)
        for record in records:
            if not known.issuperset(record):
                for name in record:
                    if name not in known:
                        (self._vectors if name in RESERVED else self._fields)[name] = None
                        known.add(name)
        return len(known) > before

    @property
    def count(self) -> int:
        """How many there are to be written."""
        return len(self._known) if self.chosen is None else len(self.chosen)

    @property
    def names(self) -> tuple[str, ...]:
        """What is written, from left to right."""
        if self.chosen is not None:
            return self.chosen
        vectors = [name for name in (VECTOR, VECTORS) if name in self._vectors]
        return (*FIRST, *self._fields, ANSWER, *self._properties, *vectors, *LAST)

    @property
    def unseen(self) -> list[str]:
        """Columns that were chosen and that no row had."""
        return [name for name in self.chosen or () if name not in self._known]


def needs_source(properties: Sequence[str], chosen: Sequence[str] | None) -> bool:
    """Whether the columns may include fields of the input."""
    return chosen is None or not RESERVED.union(properties).issuperset(chosen)
