"""The models of the local Workers AI, with prices and context windows as in Cloudflare's catalogue.

They include names of real models, so that a configuration for the real service works unchanged. The answers are those
of the echo or of the embedded SmolLM2, as the descriptions say.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmdo.backends.llama_cpp.backend import CHAT_MODEL, EMBEDDING_MODEL

TEXT_GENERATION = "Text Generation"
EMBEDDINGS = "Text Embeddings"
# developers.cloudflare.com/workers-ai/platform/pricing: $0.011 for 1,000 neurons
NEURONS_A_DOLLAR = 1000 / 0.011

_TASK_IDS = {
    TEXT_GENERATION: "c329a1f9-323d-4e91-b2aa-582dd4188d34",
    EMBEDDINGS: "0137cdcf-162a-4108-94f2-1ca59e8c65ee",
}


@dataclass(frozen=True, slots=True)
class LocalModel:
    """One model.

    Attributes:
        serves: the backend's name for it.
        dimensions: of an embedding; 0 for others, or if only the backend knows.
        max_texts: in one embedding call.
        price: dollars for a million tokens, in and out.
        openai_shape: whether ``/ai/run`` answers as chat.completion, as newer models do.
        batch: whether Cloudflare's catalogue lists it for the asynchronous batch API.
        able: properties that are "true" in the catalogue: function_calling, vision, reasoning …
        deprecated: the date on which it is, or was, switched off.
        answer: what replies to a call's body, and the model's name, in place of the backend; bytes are a picture.
    """

    name: str
    task: str
    description: str
    serves: str
    context_tokens: int
    dimensions: int = 0
    max_texts: int = 100
    price: tuple[float, float] = (0.0, 0.0)
    openai_shape: bool = False
    batch: bool = False
    able: tuple[str, ...] = ()
    deprecated: str = ""
    answer: Callable[[dict[str, Any], str], Any] | None = None

    @property
    def is_own(self) -> bool:
        """Whether it is Cloudflare's, and not another provider's that Cloudflare passes calls on to."""
        return self.name.startswith("@")

    def neurons(self, input_tokens: int, output_tokens: int) -> float:
        """What Cloudflare would count for these tokens."""
        dollars = (input_tokens * self.price[0] + output_tokens * self.price[1]) / 1e6
        return round(dollars * NEURONS_A_DOLLAR, 6)

    def as_json(self) -> dict[str, Any]:
        """One entry of ``/ai/models/search``."""
        properties: list[dict[str, Any]] = [
            *([{"property_id": "context_window", "value": str(self.context_tokens)}] if self.context_tokens else []),
            {
                "property_id": "price",
                "value": [
                    {"unit": f"per M {way} tokens", "price": price, "currency": "USD"}
                    for way, price in zip(("input", "output"), self.price, strict=True)
                    if price
                ],
            },
        ]
        able = [*self.able, *(["async_queue"] if self.batch else [])]
        properties += [{"property_id": name, "value": "true"} for name in able]
        if self.deprecated:
            properties.append({"property_id": "planned_deprecation_date", "value": self.deprecated})
        if self.dimensions:
            properties.append({"property_id": "output_dimensions", "value": str(self.dimensions)})
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, self.name)),
            "source": 1,
            "name": self.name,
            "description": self.description,
            "task": {
                "id": _TASK_IDS.get(self.task) or str(uuid.uuid5(uuid.NAMESPACE_URL, self.task)),
                "name": self.task,
                "description": f"Models for {self.task.lower()}.",
            },
            "created_at": "2025-01-01 00:00:00.000",
            "tags": [],
            "properties": properties,
        }

    def schema(self) -> dict[str, Any]:
        """The reply of ``/ai/models/schema``: enough to distinguish the two kinds of text generation."""
        fields = {TEXT_GENERATION: ("messages", "max_tokens", "temperature"), EMBEDDINGS: ("text",)}.get(self.task, ())
        if self.openai_shape:
            fields += ("max_completion_tokens", "reasoning_effort")
        return {
            "input": {"type": "object", "oneOf": [{"properties": {name: {} for name in fields}}]},
            "output": {"type": "object"},
        }


def _echo(name: str, task: str, context: int, **more: Any) -> LocalModel:
    return LocalModel(name, task, "Answered by the local echo, a stand-in for tests.", name, context, **more)


def _embedded(name: str, task: str, description: str) -> LocalModel:
    if task == EMBEDDINGS:
        return LocalModel(name, task, description, EMBEDDING_MODEL, 2048, dimensions=576)
    return LocalModel(name, task, description, CHAT_MODEL, 2048)


ECHO_MODELS: tuple[LocalModel, ...] = (
    _echo(
        "@cf/meta/llama-3.3-70b-instruct-fp8-fast",
        TEXT_GENERATION,
        24_000,
        price=(0.29, 2.25),
        batch=True,
        able=("function_calling",),
    ),
    _echo("@cf/meta/llama-3.1-8b-instruct-fast", TEXT_GENERATION, 128_000, price=(0.045, 0.384)),
    _echo(
        "@cf/google/gemma-4-26b-a4b-it",
        TEXT_GENERATION,
        256_000,
        price=(0.10, 0.30),
        openai_shape=True,
        batch=True,
        able=("function_calling", "reasoning", "vision"),
    ),
    _echo("@cf/openai/gpt-oss-20b", TEXT_GENERATION, 128_000, price=(0.20, 0.30), openai_shape=True, batch=True),
    _echo("@cf/echo/chat", TEXT_GENERATION, 1_000_000),
    _echo("@cf/baai/bge-m3", EMBEDDINGS, 60_000, dimensions=1024, price=(0.0118, 0.0), batch=True),
    _echo("@cf/baai/bge-base-en-v1.5", EMBEDDINGS, 512, dimensions=768, price=(0.067, 0.0), batch=True),
    _echo("@cf/baai/bge-small-en-v1.5", EMBEDDINGS, 512, dimensions=384, price=(0.02, 0.0), batch=True),
    _echo("@cf/qwen/qwen3-embedding-0.6b", EMBEDDINGS, 8_192, dimensions=1024, max_texts=32, price=(0.012, 0.0)),
    _echo("@cf/echo/embed", EMBEDDINGS, 1_000_000, dimensions=8),
    _echo("openai/gpt-5-mini", TEXT_GENERATION, 400_000),
    _echo("anthropic/claude-haiku-4-5", TEXT_GENERATION, 200_000),
)
_ALIAS = "Answered here by SmolLM2 135M, which runs in this process; only the name is that of Cloudflare's model."
SMOLLM2_MODELS = (
    _embedded(
        "@cf/huggingface/smollm2-135m-instruct", TEXT_GENERATION, "SmolLM2 135M Instruct, running in this process."
    ),
    _embedded(
        "@cf/huggingface/smollm2-135m-embed",
        EMBEDDINGS,
        "Mean of SmolLM2 135M's last layer: distinguishes texts, no more.",
    ),
    _embedded("@cf/meta/llama-3.3-70b-instruct-fp8-fast", TEXT_GENERATION, _ALIAS),
    _embedded("@cf/baai/bge-m3", EMBEDDINGS, _ALIAS),
)
