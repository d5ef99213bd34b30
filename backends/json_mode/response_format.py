"""A JSON schema as requests have it."""

from __future__ import annotations

import re
from typing import Any


def named_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema as OpenAI's API takes it: wrapped, with a name of letters, digits, _ and -; not strict: few can be."""
    name = re.sub(r"[^\w-]+", "_", str(schema.get("title") or "answer"), flags=re.ASCII)[:64]
    return {"name": name, "schema": schema}
