"""The models of the local OpenAI: names of real ones, answered by the echo or by the embedded SmolLM2."""

from __future__ import annotations

from collections.abc import Mapping

from llmdo.backends.llama_cpp.backend import CHAT_MODEL, EMBEDDING_MODEL
from llmdo.local.ai.catalogue import EMBEDDINGS, TEXT_GENERATION, LocalModel
from llmdo.local.wire import OpenAIRefused

# Context window and, of an embedding, its dimensions.
_NAMES = {
    "gpt-4o": (128_000, 0),
    "gpt-4o-mini": (128_000, 0),
    "gpt-4.1": (1_047_576, 0),
    "gpt-4.1-mini": (1_047_576, 0),
    "gpt-5": (400_000, 0),
    "gpt-5-mini": (400_000, 0),
    "gpt-5.6-sol": (400_000, 0),
    "gpt-3.5-turbo-instruct": (4_096, 0),
    "text-embedding-3-small": (8_192, 1536),
    "text-embedding-3-large": (8_192, 3072),
}
_MAX_TEXTS = 2048  # of one call


def openai_models(*, echo: bool) -> dict[str, LocalModel]:
    """The rows by name: of the echo, which answers each by its own name, or of SmolLM2."""
    rows = {}
    for name, (context, dimensions) in _NAMES.items():
        task = EMBEDDINGS if dimensions else TEXT_GENERATION
        serves = name if echo else EMBEDDING_MODEL if dimensions else CHAT_MODEL
        rows[name] = LocalModel(
            name,
            task,
            "Answered on this machine.",
            serves,
            context if echo else 2048,
            dimensions=dimensions if echo else 0,
            max_texts=_MAX_TEXTS,
        )
    return rows


def openai_model(models: Mapping[str, LocalModel], name: object, task: str) -> LocalModel:
    """The row of a name. Raises OpenAIRefused if there is none for the task."""
    if not isinstance(name, str) or not name:
        raise OpenAIRefused(400, "you must provide a model parameter")
    found = models.get(name)
    if found is None:
        message = f"The model `{name}` does not exist or you do not have access to it."
        raise OpenAIRefused(404, message, "model_not_found")
    if found.task != task:
        message = f"The model `{name}` cannot be used with this endpoint."
        raise OpenAIRefused(400, message, "unsupported_model", "model")
    return found
