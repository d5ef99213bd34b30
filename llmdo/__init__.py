"""Answers files of prompts in object storage: nothing lost, nothing paid twice.

From a script, with no Beam:

    import llmdo

    with llmdo.connect("workers-ai/@cf/meta/llama-3.3-70b-instruct-fp8-fast") as model:
        print(model.execute("What is the capital of France?", max_tokens=20).text)

In a pipeline: ``rows | llmdo.AskModel("openai/gpt-4o-mini", prompt="Summarise: {text}")``. The steps of ``llmdo run``
with steps of your own: ``llmdo.run_graph``. All other modules may change between versions.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmdo.backends.errors import LineError, ModelError, Retryable, StopRun
    from llmdo.backends.providers import connect as connect_async
    from llmdo.backends.requests import ChatRequest, EmbedRequest, Message, RawRequest
    from llmdo.backends.responses import ChatResponse, EmbedResponse, RawResponse, StreamChunk
    from llmdo.backends.sync import Model, connect
    from llmdo.backends.usage import Usage
    from llmdo.pipelines.graph.steps import Steps
    from llmdo.pipelines.usage import UsageError
    from llmdo.runners.own_graph import run_graph
    from llmdo.runners.showing.summary import Summary
    from llmdo.settings.environment import MissingSettings
    from llmdo.storage.errors import StorageError
    from llmdo.transforms import elements
    from llmdo.transforms.answers.infer import Infer
    from llmdo.transforms.answers.run_inference import ModelHandler
    from llmdo.transforms.files.find_files import FindFiles
    from llmdo.transforms.files.open_files import OpenFiles
    from llmdo.transforms.files.settle_files import SettleFiles
    from llmdo.transforms.files.write_shards import WriteShards
    from llmdo.transforms.lines.read_lines import ReadLines
    from llmdo.transforms.own.change_lines import ChangeLines, Skip
    from llmdo.transforms.rows.ask_model import AskModel

__version__ = "0.1.0"

__all__ = [
    "AskModel",
    "ChangeLines",
    "ChatRequest",
    "ChatResponse",
    "EmbedRequest",
    "EmbedResponse",
    "FindFiles",
    "Infer",
    "LineError",
    "Message",
    "MissingSettings",
    "Model",
    "ModelError",
    "ModelHandler",
    "OpenFiles",
    "RawRequest",
    "RawResponse",
    "ReadLines",
    "Retryable",
    "SettleFiles",
    "Skip",
    "Steps",
    "StopRun",
    "StorageError",
    "StreamChunk",
    "Summary",
    "Usage",
    "UsageError",
    "WriteShards",
    "__version__",
    "connect",
    "connect_async",
    "elements",
    "run_graph",
]

# Imported when first used: Beam alone takes a second, and a script that asks one model does without.
_PLACES = {
    "llmdo.backends.errors": ("LineError", "ModelError", "Retryable", "StopRun"),
    "llmdo.backends.requests": ("ChatRequest", "EmbedRequest", "Message", "RawRequest"),
    "llmdo.backends.responses": ("ChatResponse", "EmbedResponse", "RawResponse", "StreamChunk"),
    "llmdo.backends.sync": ("Model", "connect"),
    "llmdo.backends.usage": ("Usage",),
    "llmdo.pipelines.graph.steps": ("Steps",),
    "llmdo.pipelines.usage": ("UsageError",),
    "llmdo.runners.own_graph": ("run_graph",),
    "llmdo.runners.showing.summary": ("Summary",),
    "llmdo.settings.environment": ("MissingSettings",),
    "llmdo.storage.errors": ("StorageError",),
    "llmdo.transforms.answers.infer": ("Infer",),
    "llmdo.transforms.answers.run_inference": ("ModelHandler",),
    "llmdo.transforms.files.find_files": ("FindFiles",),
    "llmdo.transforms.files.open_files": ("OpenFiles",),
    "llmdo.transforms.files.settle_files": ("SettleFiles",),
    "llmdo.transforms.files.write_shards": ("WriteShards",),
    "llmdo.transforms.lines.read_lines": ("ReadLines",),
    "llmdo.transforms.own.change_lines": ("ChangeLines", "Skip"),
    "llmdo.transforms.rows.ask_model": ("AskModel",),
}


if "apache_beam" in sys.modules:  # then r2:// is a place for all of Beam's IOs
    importlib.import_module("llmdo.storage.objects.r2_filesystem")


def _imported(name: str) -> Any:
    if name == "connect_async":
        return importlib.import_module("llmdo.backends.providers").connect
    if name == "elements":
        return importlib.import_module("llmdo.transforms.elements")
    for place, names in _PLACES.items():
        if name in names:
            value = globals()[name] = getattr(importlib.import_module(place), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if not TYPE_CHECKING:  # a type checker would take every name, and a wrong one as well
    __getattr__ = _imported


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
