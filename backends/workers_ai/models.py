"""What is known of Workers AI's models by their names: which input they take, how much, and what they refuse.

Sources: the models' input schemas (developers.cloudflare.com/workers-ai/models), features/batch-api and json-mode.
A catalogue that was read says more than these tables, and overrides them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, Literal

from llmdo.backends.parameters import Dialect

# How a text generation model wants its input, and answers: Workers AI's own way, by /ai/run/{model}; or as OpenAI's
# chat completions, by /ai/v1/chat/completions.
Shape = Literal["native", "chat"]

_CHAT = re.compile(r"/(gemma-4|glm-[4-9]|kimi-|nemotron|qwen3\.\d|deepseek-v\d|gpt-oss)")
_NATIVE = re.compile(
    r"^@hf/|^@cf/(meta|mistral|mistralai|microsoft|defog|tinyllama|thebloke|tiiuae|openchat|fblgit|nexusflow|llava-hf|unum)/"
    r"|/(gemma-[1-3]|gemma-2b|gemma-7b|qwen1|qwen2|qwen3-30b|qwq|deepseek-(coder|math|r1))"
)

# Another provider's model, by its owner and its name.
_OTHERS = re.compile(r"[\w-]+(/\w[\w.:-]*)+", re.ASCII)

# Texts an embedding call takes: `maxItems` in the models' input schemas.
MAX_TEXTS = 100
MAX_TEXTS_BY_MODEL: Mapping[str, int] = {"@cf/qwen/qwen3-embedding-0.6b": 32}
# Its embedding models by name: bge-*, *embed*; a reranker takes a query with contexts instead.
_EMBEDS = re.compile(r"embed|/bge-(?!reranker)")

# `async_queue` in the catalogue; bge-m3 by its schema.
_BATCHES = re.compile(
    r"/(llama-3\.3-70b-instruct-fp8-fast|bge-(small|base|large)-en-v1\.5|bge-m3|m2m100-1\.2b|gemma-4-26b|gpt-oss-\d+b"
    r"|qwen3\.8-27b|deepseek-v4-flash|qwen3-30b-a3b|llama-4-scout|kimi-)"
)
# features/json-mode; models with OpenAI's schema take response_format, too.
_JSON = re.compile(
    r"/(llama-3\.3-70b-instruct-fp8-fast|llama-3(\.1)?-8b-instruct|hermes-2-pro|deepseek-coder-6\.7b"
    r"|deepseek-r1-distill-qwen-32b)"
)

# Models whose images or sounds are arrays of bytes, where a line of JSON has base64: the field that holds them.
_BYTES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"/(llava-|uform-|resnet-50|detr-resnet|llama-3\.2-11b-vision)"), "image"),
    (re.compile(r"/whisper(-tiny-en|-sherpa)?$"), "audio"),
)
# Models that take one prompt with one image, and describe it.
_DESCRIBES = re.compile(r"/(llava-|uform-)")
# Models that take a field called prompt or text, and neither chat nor embed.
_OTHER_TASKS = re.compile(
    r"/(flux|stable-diffusion|dreamshaper|lucid-origin|phoenix-1|sdxl|melotts|aura-|nova-\d|whisper|m2m100|indictrans"
    r"|bart-large|distilbert|bge-reranker|resnet-50|detr-resnet|smart-turn|plamo-embedding)"
)

# Parameters of the two input schemas, with the values that they take; others are refused or ignored there.
DIALECTS: Mapping[Shape, Dialect] = {
    "native": Dialect(
        known=frozenset(
            """temperature top_p top_k seed repetition_penalty frequency_penalty presence_penalty response_format tools
            tool_choice functions lora raw image""".split()
        ),
        bounds={
            "temperature": (0, 5),
            "top_p": (0.001, 1),
            "top_k": (1, 50),
            "seed": (1, 9_999_999_999),
            "repetition_penalty": (0, 2),
            "frequency_penalty": (-2, 2),
            "presence_penalty": (-2, 2),
        },
    ),
    "chat": Dialect(
        known=frozenset(
            """temperature top_p seed frequency_penalty presence_penalty stop logprobs top_logprobs logit_bias
            response_format tools tool_choice parallel_tool_calls user metadata reasoning_effort chat_template_kwargs
            prediction store service_tier functions function_call n""".split()
        ),
        bounds={
            "temperature": (0, 2),
            "top_p": (0, 1),
            "frequency_penalty": (-2, 2),
            "presence_penalty": (-2, 2),
            "top_logprobs": (0, 20),
        },
    ),
}
# Of the embedding models: pooling is bge's, truncate_inputs bge-m3's, instruction qwen3's.
EMBEDDING_PARAMETERS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("pooling", re.compile(r"/bge-")),
    ("truncate_inputs", re.compile(r"/bge-m3")),
    ("instruction", re.compile(r"/qwen3-embedding")),
)

_remembered = functools.lru_cache(maxsize=256)  # asked on every call, of few models


@_remembered
def is_others(model: str) -> bool:
    """Whether a model is another provider's: ``openai/gpt-5``."""
    return _OTHERS.fullmatch(model) is not None


@_remembered
def shape_of(model: str) -> Shape | None:
    """How a text generation model wants its input, by its family; None if the name does not show it."""
    if _CHAT.search(model):
        return "chat"
    return "native" if _NATIVE.search(model) else None


def shape_of_schema(schema: object) -> Shape:
    """The same from the model's input schema, as ``/ai/models/schema`` returns it."""
    return "chat" if "max_completion_tokens" in _names(schema) else "native"


@_remembered
def max_texts(model: str) -> int:
    """How many texts an embedding call of this model takes; 1 for a model that embeds nothing."""
    return MAX_TEXTS_BY_MODEL.get(model, MAX_TEXTS) if _EMBEDS.search(model) else 1


@_remembered
def takes_own_input(model: str) -> bool:
    """Whether a line for this model is its own input, also where it has a field called prompt or text."""
    return bool(_OTHER_TASKS.search(model)) and not is_others(model)


@_remembered
def chats(model: str) -> bool:
    """Whether the model is known to take a conversation, and nothing else: a prompt or messages."""
    other = takes_own_input(model) or describes_images(model) or bytes_field(model) or max_texts(model) > 1
    return (shape_of(model) is not None or is_others(model)) and not other


def takes_batches(model: str) -> bool:
    """Whether the asynchronous batch API is known to take this model."""
    return bool(_BATCHES.search(model)) and not is_others(model)


def takes_json_schema(model: str) -> bool:
    """Whether the model is known to keep to a response_format."""
    return bool(_JSON.search(model)) or shape_of(model) == "chat"


@_remembered
def describes_images(model: str) -> bool:
    """Whether the model takes one prompt with one image, and not a conversation."""
    return bool(_DESCRIBES.search(model))


@_remembered
def bytes_field(model: str) -> str | None:
    """The field in which this model wants an array of bytes; None where base64 is right, or nothing is known."""
    return next((name for pattern, name in _BYTES if pattern.search(model)), None)


def _names(schema: Any) -> set[str]:
    """The names of all properties, in whatever alternatives of the schema they stand."""
    if isinstance(schema, list):
        return set().union(*map(_names, schema))
    if not isinstance(schema, dict):
        return set()
    own = schema.get("properties")
    names = set(own) if isinstance(own, dict) else set()
    return names.union(*(_names(schema.get(key)) for key in ("anyOf", "oneOf", "allOf")))
