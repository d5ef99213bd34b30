"""How a field of options appears on the command line, beside its type, default and limits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo


@dataclass(frozen=True, slots=True)
class Shown:
    """Marks a field that users set on the command line; made by a Panel.

    Attributes:
        panel: the heading that ``--help`` lists it under.
        help: what it does, for ``--help``.
        name: the option's name; by default the field's, with dashes.
        short: its letter, with the dash.
        positional: an argument instead of an option.
        file: the value is a JSON object in a file that the option names; or a text, or ``@FILE`` with the text.
        default: says what the default is, where it depends on the environment.
        as_text: the model reads a form of its own, so the command line passes on what was written.
        unquoted: errors do not repeat the value, since it is long, or their words name what is wrong in it.
        near_secret: somebody may write a secret here by mistake, so errors repeat only what comes before ``=``.
    """

    panel: str
    help: str
    name: str | None = None
    short: str | None = None
    positional: bool = False
    file: Literal["text", "json"] | None = None
    default: str | None = None
    as_text: bool = False
    unquoted: bool = False
    near_secret: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """A heading of ``--help``. Called with an option's help, it makes the mark of that option's field."""

    title: str

    def __call__(self, help: str, **how: Any) -> Shown:
        """``how``: see Shown."""
        return Shown(self.title, help, **how)


INPUT, MODEL, MONEY, PACE = Panel("Input"), Panel("Model & prompt"), Panel("Money"), Panel("Pace")
OUTPUT, RESUME, ADVANCED = Panel("Output"), Panel("Resume"), Panel("Advanced")
FLINK, DATAFLOW = Panel("Runner flink"), Panel("Runner dataflow")
# In the order of ``--help``.
PANELS = tuple(one.title for one in (INPUT, MODEL, MONEY, PACE, OUTPUT, RESUME, ADVANCED, FLINK, DATAFLOW))


@dataclass(frozen=True, slots=True)
class Option:
    """A field of a model as an option. ``group`` is the field of the model that holds it, if it is not its own."""

    field: str
    info: FieldInfo
    shown: Shown
    group: str | None = None

    @property
    def name(self) -> str:
        """As users write it, such as ``--batch-size``."""
        return self.shown.name or name_of(self.field)


def name_of(field: str) -> str:
    """An option's name, unless its ``Shown`` has another.

    >>> name_of("batch_size")
    '--batch-size'
    """
    return f"--{field.replace('_', '-')}"


def options_of(model: type[BaseModel]) -> dict[str, Option]:
    """All marked fields, by name, including those of the models that its fields hold."""
    return {option.field: option for option in _options(model)}


def _options(model: type[BaseModel], group: str | None = None) -> Iterator[Option]:
    for field, info in model.model_fields.items():
        kind: Any = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _options(kind, field)
        for mark in info.metadata:
            if isinstance(mark, Shown):
                yield Option(field, info, mark, group)
