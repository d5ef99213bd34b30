"""Parquet files for tests, as bytes."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def parquet(table: pa.Table | dict[str, Any], **how: Any) -> bytes:
    """A table as a file; ``how`` as ``pyarrow.parquet.write_table`` takes it."""
    out = io.BytesIO()
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), out, **how)
    return out.getvalue()


def prompts(count: int, **how: Any) -> bytes:
    """Rows with an id and a prompt."""
    return parquet({"id": [f"r{i}" for i in range(count)], "prompt": [f"What is {i}?" for i in range(count)]}, **how)
