"""Whose a field of a line is: content or a parameter of the request, or the user's own, which comes back in the row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from llmdo.backends.parameters import WORKERS_AI_ONLY
from llmdo.backends.providers import has_own_inputs
from llmdo.backends.requests import Request

# Parameters that may stand beside a line's content, by OpenAI's names (platform.openai.com/docs/api-reference) and by
# Workers AI's (its models' schemas); others are metadata. Not here are OpenAI's audio, metadata, moderation, prediction
# and store: lines have fields of their own by these names. The body of an OpenAI batch line may have any.
_PARAMETERS = (
    frozenset(
        """temperature max_tokens max_completion_tokens top_p top_k seed stop n logprobs top_logprobs logit_bias user
        frequency_penalty presence_penalty repetition_penalty response_format tools tool_choice parallel_tool_calls
        functions function_call reasoning_effort verbosity service_tier modalities web_search_options safety_identifier
        prompt_cache_key prompt_cache_retention chat_template_kwargs""".split()
    )
    | WORKERS_AI_ONLY
)
_EMBED_PARAMETERS = _PARAMETERS | {"dimensions", "encoding_format"}
# Of an API call's body; answers are written when they are whole.
NEVER = frozenset({"stream", "stream_options", "background"})
# Fields that say what to ask: a request has a place for some of them, see ``unused``.
CONTENT = frozenset({"prompt", "messages", "system", "text", "input"})
# Whose values the row has by itself.
IDS = frozenset({"id", "custom_id"})
# What surrounds the body of a batch line.
ENVELOPE = frozenset({"url", "method", "body"})

# Which fields of a line are parameters: all that are no content (an API call's body), those of known names, or none.
Counted = Literal["all", "known", "none"]


@dataclass(frozen=True, slots=True)
class Built:
    """A request; ``used`` are the names of the line's fields that are in it, ``warnings`` what should be and is not."""

    request: Request
    used: frozenset[str]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """Whom a line asks, and what the run sets for it.

    Attributes:
        embeds: the model is known to embed.
        parameters, system, prompt: the run's; the two texts may be templates.
        fields: those of the templates: content, even where a parameter has the same name.
        counted: which of the line's fields are parameters.
    """

    provider: str
    model: str
    embeds: bool
    request_id: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""
    prompt: str = ""
    fields: frozenset[str] = frozenset()
    counted: Counted = "known"

    def parameters_in(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a chat that stand in the line."""
        return self._counted(body, _PARAMETERS)

    def embedding_parameters_in(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Those of an embedding; numbers are what every answer has."""
        found = self._counted(body, _EMBED_PARAMETERS)
        return {name: value for name, value in found.items() if (name, value) != ("encoding_format", "float")}

    def embedding_fields(self, body: Mapping[str, Any]) -> frozenset[str]:
        """The names of the same, also of what need not be sent."""
        return frozenset(self._counted(body, _EMBED_PARAMETERS))

    def _counted(self, body: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
        if self.counted == "none":
            return {}
        if self.counted == "all":
            return {k: v for k, v in body.items() if k not in CONTENT | NEVER | self.fields and k != "model"}
        if not has_own_inputs(self.provider):
            known -= WORKERS_AI_ONLY
        return {
            name: value
            for name, value in body.items()
            if name in known and name not in self.fields and (name != "raw" or isinstance(value, bool))
        }


def unused(body: Mapping[str, Any], used: Iterable[str]) -> tuple[str, ...]:
    """A sentence for each field with content that a request has no place for, since it has another one's."""
    return tuple(
        f"{name} was left out: the line has other content that was used"
        for name in sorted(CONTENT & body.keys() - set(used))
    )


def never(body: Mapping[str, Any]) -> tuple[str, ...]:
    """A sentence for each wish about how the answer comes that an answer in a file cannot follow."""
    return tuple(
        f"{name} was left out: an answer is written when it is whole"
        for name in sorted(NEVER & body.keys())
        if body[name]
    )


def metadata_of(fields: Mapping[str, Any], *, spread: bool) -> Mapping[str, Any]:
    """The user's own fields as the row has them.

    ``spread``: what is in ``metadata``, as in OpenAI's requests, stands beside the others where no name is there twice.
    """
    if not spread:
        return fields
    others = {name: value for name, value in fields.items() if name != "metadata"}
    inner = fields.get("metadata")
    if inner is None:
        return others
    return {**inner, **others} if isinstance(inner, dict) and inner.keys().isdisjoint(others) else fields
