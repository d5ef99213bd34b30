"""Our steps in Beam YAML: what ``llmdo/providers.yaml`` names. Configuration in, transforms out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import PCollection
from apache_beam.typehints.row_type import RowTypeConstraint
from apache_beam.typehints.schemas import named_fields_from_element_type
from pydantic_core import to_json

from llmdo.transforms.rows.ask_model import AskModel
from llmdo.transforms.rows.asking import fields_of_row

_OUTPUT, _ERRORS = "good", "output"  # Beam YAML's words for the main output, and for where errors go


@dataclass(eq=False)  # not frozen: Beam writes hints and labels into its transforms
class _Asking(beam.PTransform):
    step: AskModel
    errors: str

    def expand(self, rows: PCollection[Any]) -> dict[str, PCollection[Any]]:
        answers, failures = rows | self.step.with_exception_handling()
        fields = dict(named_fields_from_element_type(failures.element_type))
        kind = [("element", fields["row"]), ("msg", str), ("error_class", str), ("retryable", bool)]
        as_beam_has_them = failures | "Failures" >> beam.Map(
            lambda one: beam.Row(element=one.row, msg=one.message, error_class=one.error_class, retryable=one.retryable)
        ).with_output_types(RowTypeConstraint.from_fields(kind))
        return {_OUTPUT: answers, self.errors: as_beam_has_them}


def ask_model(model: str, error_handling: Mapping[str, str] | None = None, **config: Any) -> beam.PTransform:
    """Asks a model about each row; for the configuration see AskModel.

    Args:
        model: PROVIDER/MODEL.
        error_handling: ``{output: NAME}``: rows without an answer go there, as (element, msg, error_class, retryable);
            without it they have a column ``error``.
    """
    step = AskModel(model, **{name: value for name, value in config.items() if value is not None})
    return _Asking(step, error_handling[_ERRORS]) if error_handling else step


def embed_text(
    model: str, field: str = "text", error_handling: Mapping[str, str] | None = None, **config: Any
) -> beam.PTransform:
    """Adds the vector of a text to each row, as ``embedding``; for the configuration see AskModel.

    Args:
        model: PROVIDER/MODEL of a model for embeddings.
        field: with the text.
        error_handling: as in ``ask_model``.
    """
    return ask_model(model, error_handling, embed=field, **config)


@dataclass(eq=False)
class WriteRows(beam.PTransform):
    """Writes rows as JSONL: ``PATH/shard-00000-of-00001.jsonl``; the names of the files are the output.

    Args:
        path: a folder, or ``r2://BUCKET/PREFIX/``.
        shards: how many; 0 lets the runner choose.
    """

    path: str
    shards: int = 0

    def expand(self, rows: PCollection[Any]) -> PCollection[str]:
        """Rows → names of files."""
        lines = rows | "As JSON" >> beam.Map(lambda row: to_json(fields_of_row(row), fallback=_plain).decode())
        place = f"{self.path.rstrip('/')}/shard"
        return lines | "Write" >> beam.io.WriteToText(place, file_name_suffix=".jsonl", num_shards=self.shards)


def _plain(value: Any) -> Any:
    """What JSON has for a value: an object for a row, numbers for an array, else text."""
    if hasattr(value, "_asdict"):
        return value._asdict()
    return value.tolist() if hasattr(value, "tolist") else list(value) if isinstance(value, Sequence) else str(value)
