"""Models behind one form of request, answer and error. No Beam here; usable alone:

    from llmdo.backends import connect

    with connect("workers-ai/@cf/meta/llama-3.3-70b-instruct-fp8-fast") as model:
        print(model.execute("What is the capital of France?", max_tokens=20).text)

``connect_async`` gives the same as coroutines, for a program with a loop of its own.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmdo.backends.backend import Backend
    from llmdo.backends.providers import connect as connect_async
    from llmdo.backends.providers import split_model
    from llmdo.backends.sync import Model, connect

__all__ = ["Backend", "Model", "connect", "connect_async", "split_model"]

# Imported when first used: the errors and limits below this package are needed where nothing is asked.
_PLACES = {
    "Backend": ("backend", "Backend"),
    "Model": ("sync", "Model"),
    "connect": ("sync", "connect"),
    "connect_async": ("providers", "connect"),
    "split_model": ("providers", "split_model"),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, there = _PLACES[name]
    return getattr(importlib.import_module(f"{__name__}.{module}"), there)
