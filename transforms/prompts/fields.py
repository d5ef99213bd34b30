"""Sorts the fields of a line: content, parameters of the request, or the user's own, which are returned in the row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from llmdo.backends.parameters import WORKERS_AI_ONLY
from llmdo.backends.providers import has_own_inputs
from llmdo.backends.requests import Request

# Parameters that may appear beside a line's content, by OpenAI's names (platform.openai.com/docs/api-reference) and by
# Workers AI's (its models' schemas); others are metadata. OpenAI's audio, metadata, moderation, prediction and store
# are left out, since lines have their own fields of these names. The body of an OpenAI batch line may have any.
_PARAMETERS = (
    frozenset(
        """temperature max_tokens max_completion_tokens top_p top_k seed stop n logprobs top_logprobs logit_bias user
        frequency_penalty presence_penalty repetition_penalty response_format tools tool_choice parallel_tool_calls
        functions function_call reasoning_effort verbosity service_tier modalities web_search_options safety_identifier
        prompt_cache_key prompt_cache_options prompt_cache_retention chat_template_kwargs""".split()
    )
    | WORKERS_AI_ONLY
)
_OF_EMBEDDINGS = frozenset({"dimensions", "encoding_format"})
# The same by whether the model embeds, and whether its provider has inputs of its own.
_KNOWN = {
    (embeds, own): (_PARAMETERS | (_OF_EMBEDDINGS if embeds else frozenset()))
    - (frozenset() if own else WORKERS_AI_ONLY)
    for embeds in (False, True)
    for own in (False, True)
}
# Fields of an API call's body that are ignored: answers are written when they are complete.
NEVER = frozenset({"stream", "stream_options", "background", "background_options"})
# Fields that hold a prompt; a request uses only some of them, see ``unused``.
CONTENT = frozenset({"prompt", "messages", "system", "text", "input"})
# Fields that an answer's row always has.
IDS = frozenset({"id", "custom_id"})
# Fields around the body of a batch line.
ENVELOPE = frozenset({"url", "method", "body"})
# Fields with a meaning of their own; others are the user's.
MEANT = CONTENT | NEVER | IDS | ENVELOPE | _PARAMETERS | _OF_EMBEDDINGS | {"model", "params", "request"}

# Which fields of a line are parameters: all but content (an API call's body), those with known names, or none.
Counted = Literal["all", "known", "none"]


@dataclass(slots=True)
class Built:
    """A request; ``used`` names the line's fields that are in it, ``warnings`` those that were left out.

    ``response_to``: the /v1/responses body that a chat is asked for; its answer is written as a response.
    """

    request: Request
    used: frozenset[str]
    warnings: tuple[str, ...] = ()
    response_to: Mapping[str, Any] | None = None


@dataclass(slots=True)
class RequestTarget:
    """The model that a line is for, and the run's settings for it.

    Attributes:
        embeds: whether the model is known to embed.
        parameters, system, prompt: the run's; the two texts may be templates.
        fields: the fields of the templates; they are content, even if a parameter has the same name.
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
        """The line's parameters for a chat."""
        return self._counted(body, embeds=False)

    def embedding_parameters_in(self, body: Mapping[str, Any]) -> tuple[dict[str, Any], frozenset[str]]:
        """The line's parameters for an embedding, without the format that every answer has; and the names of all."""
        found = self._counted(body, embeds=True)
        names = frozenset(found)
        if found.get("encoding_format") == "float":
            del found["encoding_format"]
        return found, names

    def _counted(self, body: Mapping[str, Any], *, embeds: bool) -> dict[str, Any]:
        if self.counted == "none":
            return {}
        if self.counted == "all":
            return {k: v for k, v in body.items() if k not in CONTENT | NEVER | self.fields and k != "model"}
        known = _KNOWN[embeds, has_own_inputs(self.provider)]
        return {
            name: value
            for name, value in body.items()
            if name in known and name not in self.fields and (name != "raw" or isinstance(value, bool))
        }


def without_nulls(row: Mapping[str, Any]) -> dict[str, Any]:
    """A table's row without the fields of a line that have no value in it: a table cannot leave them out."""
    return {name: value for name, value in row.items() if value is not None or name not in MEANT}


def unused(body: Mapping[str, Any], used: Iterable[str]) -> tuple[str, ...]:
    """A sentence for each field with content that is not used because another one is."""
    return tuple(
        f"{name} was left out: the line has other content that was used"
        for name in sorted(CONTENT & body.keys() - set(used))
    )


def streaming_warnings(body: Mapping[str, Any]) -> tuple[str, ...]:
    """A sentence for each field that asks for streaming, which answers in files cannot have."""
    return tuple(
        f"{name} was left out: an answer is written when it is complete"
        for name in sorted(NEVER & body.keys())
        if body[name]
    )


def metadata_of(fields: Mapping[str, Any], *, spread: bool) -> Mapping[str, Any]:
    """The user's own fields as they appear in the row.

    ``spread``: the contents of ``metadata``, as in OpenAI's requests, are put beside the others if no name clashes.
    """
    if not spread:
        return fields
    others = {name: value for name, value in fields.items() if name != "metadata"}
    inner = fields.get("metadata")
    if inner is None:
        return others
    return {**inner, **others} if isinstance(inner, dict) and inner.keys().isdisjoint(others) else fields
