"""Exports of outputs, and what is in the tables."""

import csv
import json

import pyarrow.parquet as pq

from llmdo.runners.inspecting.export.making import Export, export


def made(output, to, *files, **how):
    """Exports an output, as the command does."""
    return export(Export(getattr(output, "place", str(output)), str(to), files, **how), lambda done, total: None)


def rows_of(path):
    """The rows of a table by Python's own readers; a cell of CSV is text, or None."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    return pq.ParquetFile(path).read().to_pylist()


def column(path, name):
    return [row[name] for row in rows_of(path)]


def names(folder):
    return sorted(path.name for path in folder.iterdir())
