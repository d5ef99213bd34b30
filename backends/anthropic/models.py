"""What Anthropic's models take, by their names, and the entries of its list.

Sources: platform.claude.com/docs, prompt-caching, effort, structured-outputs and migration-guide; the types of
Anthropic's own client. The list of models does not say these things.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from llmdo.backends.http.reply_json import mapping
from llmdo.backends.responses import ModelInfo

# What a request says about thinking: a budget of tokens; an effort; or an effort and, for "adaptive", that it may.
Thinking = Literal["never", "budget", "effort", "adaptive"]


@dataclass(frozen=True, slots=True)
class Traits:
    """What a model takes.

    Attributes:
        cached_from: tokens of the shortest beginning of a request that the service keeps in its cache.
        sampling: whether it takes temperature, top_p and top_k.
        formats: whether it takes a schema for its answer.
        thinking: see Thinking.
    """

    cached_from: int
    sampling: bool
    formats: bool
    thinking: Thinking


# The first row that fits counts.
_ROWS: tuple[tuple[str, Traits], ...] = (
    (r"claude-3-7", Traits(1024, True, False, "budget")),
    (r"claude-3(?:-5)?-haiku", Traits(2048, True, False, "never")),
    (r"claude-(?:[12]|3|instant)", Traits(1024, True, False, "never")),
    (r"(?:opus|sonnet)-4(?:-[01])?(?:-2025|@|$)", Traits(1024, True, False, "budget")),
    (r"opus-4-5", Traits(4096, True, True, "effort")),
    (r"haiku-4-5", Traits(4096, True, True, "budget")),
    (r"sonnet-4-5", Traits(1024, True, True, "budget")),
    (r"opus-4-6", Traits(4096, True, True, "adaptive")),
    (r"sonnet-4-6", Traits(2048, True, True, "adaptive")),
    (r"opus-4-7", Traits(2048, False, True, "adaptive")),
    (r"(?:opus|fable|mythos)-5(?:-2\d{3}|@|$)", Traits(512, False, True, "adaptive")),
    (r"", Traits(1024, False, True, "adaptive")),
)
_CAPABILITIES = {
    "batch": "batch",
    "image_input": "vision",
    "structured_outputs": "json",
    "thinking": "reasoning",
}
_READ = frozenset({"capabilities", "display_name", "id", "max_input_tokens", "retires_at", "type"})


@lru_cache(maxsize=256)
def traits_of(model: str) -> Traits:
    """What a model takes, by its name; one that is not known yet is taken for a newer one."""
    return next(traits for pattern, traits in _ROWS if re.search(pattern, model))


def model_info(entry: Mapping[str, Any], provider: str) -> ModelInfo:
    """One entry of the list of models."""
    window = entry.get("max_input_tokens")
    return ModelInfo(
        name=f"{provider}/{entry['id']}",
        task="Text Generation",
        description=str(entry.get("display_name") or ""),
        context_tokens=window if isinstance(window, int) and window > 0 else None,
        properties={name: value for name, value in entry.items() if name not in _READ and value is not None},
        capabilities=frozenset(_capabilities(mapping(entry.get("capabilities")))),
        deprecated=str(entry.get("retires_at") or "")[:10],
    )


def _capabilities(given: Mapping[str, Any]) -> Iterator[str]:
    yield "tools"
    for name, ours in _CAPABILITIES.items():
        if mapping(given.get(name)).get("supported"):
            yield ours
