"""What a benchmark prints on stdout."""

from __future__ import annotations

import json
from typing import Any


def measured(stdout: str) -> list[dict[str, Any]]:
    """Its rows, without the figures."""
    return [row for row in map(json.loads, stdout.splitlines()) if "figure" not in row]


def goals(stdout: str) -> dict[str, str]:
    """The goals of its figures, by the figures' names."""
    rows = map(json.loads, stdout.splitlines())
    return {row["figure"]: row["goal"] for row in rows if row.get("goal")}
