"""Which columns a table must have so that its rows can be asked: one sentence for a table without them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from llmdo.transforms.elements import FileVersion
from llmdo.transforms.tables.csv_header import read_header
from llmdo.transforms.unreadable import CorruptData

# Fields of which a line has one, whatever API it was written for; see transforms/prompts/parse.py.
ASKING = frozenset(
    """prompt messages text input body params request contents conversations modelInput instances raw raw_base64
    custom_id url""".split()
)
# A line that names its model may be that model's own input, which may have any fields.
_MODEL = "model"
# The most columns that a sentence names, and the most characters of each.
_MOST, _LONGEST = 8, 40


@dataclass(frozen=True, slots=True)
class NeededColumns:
    """What the columns must have.

    Attributes:
        template: the fields of the run's templates, each of them a column.
        asking: whether there must be one of ASKING: not where a model takes inputs of its own, or a template asks.
    """

    template: frozenset[str] = frozenset()
    asking: bool = False

    def check(self, columns: Collection[str]) -> None:
        """Raises CorruptData for a table whose rows would all be errors."""
        if "body" in columns or "error" in columns:  # fields may be in it; rows of an earlier run are whole lines
            return
        missing = sorted(self.template.difference(columns))
        if missing:
            what = f"column {missing[0]}" if len(missing) == 1 else f"columns {', '.join(missing)}"
            raise CorruptData(
                f"has no {what}, which the template names ({_named(columns)})",
                "write the columns' own names into --prompt and --system",
            )
        if self.asking and not self.template and _MODEL not in columns and not ASKING.intersection(columns):
            example = next((name for name in columns if name not in ("id", "key")), "text")
            raise CorruptData(
                f"has no column prompt, messages, text or body ({_named(columns)})",
                f"say what to ask of each row, such as --prompt 'Summarise: {{{_short(example)}}}'",
            )


ANY_COLUMNS = NeededColumns()


def columns_of(file: FileVersion, content: bytes, whole: bool) -> tuple[str, ...] | None:
    """The columns of a table whose unpacked content begins so; None where that does not show them, or there are none.

    Raises CorruptData and StorageError.
    """
    if file.has_rows:
        from llmdo.transforms.tables.parquet import table_of  # noqa: PLC0415  pyarrow takes 0.2 s

        return table_of(file).names
    if file.kind.name not in ("csv", "tsv"):
        return None
    lines = content.splitlines(keepends=True)
    header = read_header(lines if whole else lines[:-1], file.kind.name, whole=whole)
    return None if header is None else header.columns


def _named(columns: Collection[str]) -> str:
    """The columns that there are, for a sentence."""
    if not columns:
        return "it has none"
    more = ", …" if len(columns) > _MOST else ""
    return f"it has {', '.join(map(_short, list(columns)[:_MOST]))}{more}"


def _short(name: str) -> str:
    name = " ".join(name.split())
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…"
