"""Parses a line of input into a request: what a user may write in a JSONL line.

Accepted are batch lines (``custom_id, method, url, body``, and those of other APIs: see ``other_apis``),
``{"prompt"}``, ``{"messages"}``, ``{"text"}`` and any other native input of a Workers AI model. A line may also have
``id`` or ``custom_id``, ``model`` and parameters; all other fields are returned in ``metadata``. An error row of an
earlier run is accepted as it is. If the run has a prompt template, a line is any object with the template's fields, and
all other fields are the user's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from llmdo.backends.errors import ModelError, ProviderUnusable, short
from llmdo.backends.providers import PROVIDERS, ids_have_owners, passes_messages_on, split_model
from llmdo.backends.requests import Request
from llmdo.transforms.lines.broken_json import kind_of
from llmdo.transforms.other_apis.lines import as_openai_line
from llmdo.transforms.other_apis.translation import Untranslatable
from llmdo.transforms.prompts.fields import (
    CONTENT,
    ENVELOPE,
    IDS,
    Built,
    Counted,
    RequestTarget,
    metadata_of,
    without_nulls,
)
from llmdo.transforms.prompts.ids import ids_of
from llmdo.transforms.prompts.line_json import BadLine, json_object, unwrapped
from llmdo.transforms.prompts.models import IGNORE, SAME_PROVIDER, check_line_model
from llmdo.transforms.prompts.requests import build_templated
from llmdo.transforms.prompts.routes import batch_body, batch_builder, line_builder
from llmdo.transforms.prompts.templates import fields_of

_LONGEST_NAME = 300  # characters of a model's name


@dataclass(frozen=True, slots=True)
class Defaults:
    """The run's settings, which lines may override.

    Attributes:
        model: ``provider/model``.
        system: a system prompt; one with fields is a template.
        prompt: a template of what to ask; "" if lines have their own prompts.
        models: (pattern, model); the first one whose pattern matches the file's key overrides ``model``.
        line_models: which models lines may name instead; see rules_of.
        line_parameters: a line's ``model``, ``system`` and parameters are used even if there is a ``prompt``.
    """

    model: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""
    prompt: str = ""
    models: tuple[tuple[str, str], ...] = ()
    line_models: str = SAME_PROVIDER
    line_parameters: bool = False

    def model_for(self, key: str) -> str:
        """The model for the lines of a file; ``*`` in a pattern also matches slashes."""
        return next((model for pattern, model in self.models if fnmatchcase(key, pattern)), self.model)

    @property
    def providers(self) -> frozenset[str]:
        """The providers of the run's own models. If one is unusable the run ends; else only its lines fail."""
        return frozenset(model.partition("/")[0] for model in (self.model, *(model for _, model in self.models)))

    @property
    def fields(self) -> frozenset[str]:
        """The fields of the templates; they are content, even if a parameter has the same name."""
        return fields_of(self.prompt) | fields_of(self.system)

    @property
    def only_content(self) -> bool:
        """Whether no field of a line is a parameter."""
        return bool(self.prompt) and not self.line_parameters


@dataclass(slots=True)
class Prompt:
    """A parsed line; for its ids see ids_of."""

    provider: str
    request: Request
    id: Any
    custom_id: str | None
    metadata: Mapping[str, Any]
    own_model: bool  # the line names its model; otherwise it is the run's
    warnings: tuple[str, ...] = ()  # about fields of the line that were left out of the request
    response_to: Mapping[str, Any] | None = None  # see Built


def parse_prompt(
    data: bytes,
    request_id: str,
    defaults: Defaults,
    max_texts: Callable[[str, str], int],
    key: str = "",
    *,
    of_table: bool = False,
) -> Prompt:
    """Parses one line.

    Args:
        data: the line without its line ending.
        request_id: for the request, the same in all tries.
        defaults: the run's settings.
        max_texts: (provider, model) → number of texts in an embedding call; 1 for a model that does not embed.
        key: of the line's file.
        of_table: it is a table's row, whose nulls are where a line would have no such field.

    Raises:
        BadLine: the line is not a valid request.
        ModelNotAllowed: it names a model that ``defaults.line_models`` does not allow.
        ProviderUnusable: it names a provider that lacks its settings, and is not one of the run's.
        ModelError: one of the run's own providers is unusable.
    """
    document, left_out = _in_openais_form(_object_of(data, of_table=of_table), defaults, key)
    fields = defaults.fields
    body = _templated_body(document, fields) if defaults.prompt else batch_body(document)
    own = None
    if "model" not in fields and not defaults.only_content:
        own = document.get("model") or (None if body is None else body.get("model"))
    if own and defaults.line_models == IGNORE:
        left_out, own = (*left_out, f"model {short(own)} was left out: --line-models {IGNORE} asks the run's own"), None
    provider, model = _chosen(own, defaults, key, in_body=not document.get("model"))
    embeds = _embeds(provider, model, defaults, max_texts)
    used = frozenset() if defaults.only_content else frozenset({"model"})
    counted: Counted = "none" if defaults.only_content else "known" if body is None or defaults.prompt else "all"
    target = RequestTarget(
        provider, model, embeds, request_id, defaults.parameters, defaults.system, defaults.prompt, fields, counted
    )
    built = _built(document, body, target)
    return Prompt(
        provider,
        built.request,
        *ids_of(document),
        _metadata(document, body, built.used | fields | used, bool(defaults.prompt)),
        bool(own),
        (*left_out, *built.warnings),
        built.response_to,
    )


def _object_of(data: bytes, *, of_table: bool) -> Mapping[str, Any]:
    line = json_object(unwrapped(data))
    return without_nulls(line) if of_table else line


def _in_openais_form(
    document: Mapping[str, Any], defaults: Defaults, key: str
) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """A batch line of Anthropic's or Gemini's API as one of OpenAI's, and what it leaves out. Raises BadLine."""
    if defaults.prompt:
        return document, ()

    def takes_messages(own: object) -> bool:
        asked = None if defaults.line_models == IGNORE else own
        return passes_messages_on(_model(asked, defaults.model_for(key), in_body=not document.get("model"))[0])

    try:
        return as_openai_line(document, CONTENT, takes_messages)
    except Untranslatable as wrong:
        raise BadLine(str(wrong)) from None


def _chosen(own: object, defaults: Defaults, key: str, *, in_body: bool) -> tuple[str, str]:
    """Provider and model for a line that names the model ``own``, or none. Raises BadLine, ModelNotAllowed."""
    default = defaults.model_for(key)
    provider, model = _model(own, default, in_body=in_body)
    if own:
        check_line_model(defaults.line_models, provider, model, default)
    return provider, model


def _embeds(provider: str, model: str, defaults: Defaults, max_texts: Callable[[str, str], int]) -> bool:
    """Whether a model embeds texts. Raises ProviderUnusable, or for the run's own providers the ModelError itself."""
    try:
        return max_texts(provider, model) > 1
    except ModelError as error:
        if provider in defaults.providers:
            raise
        raise ProviderUnusable(f"{provider}/{model}: {error.message}", provider=provider) from error


def _built(document: Mapping[str, Any], body: Mapping[str, Any] | None, target: RequestTarget) -> Built:
    """The request of a line or of a batch line's body. Raises BadLine."""
    if target.prompt:
        return build_templated(document if body is None else body, target)
    if body is None:
        return line_builder(document, target)(document, target)
    return batch_builder(document, target)(body, target)


def _templated_body(document: Mapping[str, Any], fields: frozenset[str]) -> Mapping[str, Any] | None:
    """The body of a batch line, if the template's fields are in it and not beside it."""
    body = document.get("body")
    return body if isinstance(body, dict) and not fields <= document.keys() and fields & body.keys() else None


def _metadata(
    document: Mapping[str, Any], body: Mapping[str, Any] | None, used: frozenset[str], templated: bool
) -> Mapping[str, Any]:
    """The line's fields that are not in its request."""
    if body is None:
        return metadata_of(_without(document, used | IDS), spread=not templated)
    around = _without(document, IDS | ENVELOPE | {"model"})
    if not templated:
        return metadata_of(around, spread=True)
    inside = _without(body, used)
    return {**around, **inside} if inside.keys().isdisjoint(around) else {**around, "body": inside}


def _without(fields: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


def _model(name: object, default: str, *, in_body: bool) -> tuple[str, str]:
    """Provider and model of a line that names ``name``, or none; ``in_body``: in a batch line's body."""
    default_provider, _, default_model = default.partition("/")
    if not name or name == default_model:
        return default_provider, default_model
    if not isinstance(name, str):
        raise BadLine(f"'model' must be a string, not {kind_of(name)}")
    if len(name) > _LONGEST_NAME:
        raise BadLine(f"'model' {short(name)} has {len(name):,} characters: write a model's name")
    if name.startswith("@"):
        return split_model(name)
    provider, _, model = name.partition("/")
    if provider not in PROVIDERS or not model or _is_id_of_server(provider, model, default, in_body):
        return default_provider, name
    return provider, model


def _is_id_of_server(provider: str, model: str, default: str, in_body: bool) -> bool:
    """Whether ``PROVIDER/MODEL``, such as openai/gpt-oss-20b, is the server's own id, not our name for its MODEL.

    It is if the id of the run's model also has an owner, or if it is in the body of a batch line, which is written as
    the server wants it.
    """
    default_provider, _, default_model = default.partition("/")
    if provider != default_provider or "/" in model or not ids_have_owners(provider):
        return False
    return in_body or "/" in default_model
