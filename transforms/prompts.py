"""From a line of input to a request: what a user may write in a JSONL line.

Accepted are an OpenAI batch line (``custom_id, method, url, body``), ``{"prompt"}``, ``{"messages"}``, ``{"text"}`` and
any other native input of a Workers AI model. ``id`` or ``custom_id``, ``model`` and parameters may stand in the line;
fields that are none of these ride along in ``metadata``. An error line of an earlier run is accepted as it is. With a
prompt template of the run, a line is any object that has the template's fields.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, TypeAdapter, ValidationError, field_validator
from pydantic_core import from_json

from backends.errors import InvalidRequest, ModelError, ProviderUnusable, short
from backends.ir import ChatRequest, EmbedRequest, Message, RawRequest, Request
from backends.parameters import TOKEN_LIMITS
from backends.protocol import PROVIDERS
from backends.workers_ai_models import takes_own_input
from transforms.line_models import SAME_PROVIDER, check_line_model
from transforms.templates import MissingField, fields_of, fill_in

# Parameters that may stand beside a line's content, by OpenAI's names (platform.openai.com/docs/api-reference) and by
# Workers AI's (its models' schemas); others are metadata. Not here are OpenAI's audio, metadata, moderation, prediction
# and store: lines have fields of their own by these names. The body of an OpenAI batch line may have any.
PARAMETERS = frozenset(
    """temperature max_tokens max_completion_tokens top_p top_k seed stop n logprobs top_logprobs logit_bias user
    frequency_penalty presence_penalty repetition_penalty response_format tools tool_choice parallel_tool_calls
    functions function_call reasoning_effort verbosity service_tier modalities web_search_options safety_identifier
    prompt_cache_key prompt_cache_retention chat_template_kwargs lora raw image pooling truncate_inputs
    instruction""".split()
)
_EMBED_PARAMETERS = PARAMETERS | {"dimensions", "encoding_format"}
_OWN_FIELDS = frozenset({"id", "custom_id", "model", "metadata", "error"})
_BATCH_FIELDS = _OWN_FIELDS | {"url", "body", "method"}
# What each kind of request uses up; with a template, its fields instead of those with content.
_CHAT = PARAMETERS | {"prompt", "messages", "system"}
_EMBED = _EMBED_PARAMETERS | {"text", "input"}
# Of a batch line's body, what is no parameter; answers are never streamed.
_NEVER = frozenset({"stream", "stream_options"})
_LONGEST_NAME = 300  # characters of a model's name
_CONTENT = _NEVER | {"model", "prompt", "messages", "system", "text", "input"}


class BadLine(InvalidRequest):
    """The line is not a request."""


class _Message(BaseModel):
    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _first_wrong_part(cls, content: Any) -> Any:
        """One error is enough: of a line that is nothing but wrong parts, pydantic would make half a million."""
        for number, part in enumerate(content if isinstance(content, list) else ()):
            if not isinstance(part, dict):
                raise ValueError(f"part {number} must be an object, not {_kind(part)}")
        return content


# Likewise of messages.
_MESSAGES = TypeAdapter(Annotated[list[_Message], FailFast()])


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds for lines that do not say otherwise.

    Attributes:
        model: ``provider/model``.
        system: a system prompt; one with fields is a template.
        prompt: a template of what to ask, or "": the line says it.
        models: (pattern, model): the first one whose pattern fits the file's key comes before ``model``.
        line_models: which models lines may name instead: see rules_of.
    """

    model: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""
    prompt: str = ""
    models: tuple[tuple[str, str], ...] = ()
    line_models: str = SAME_PROVIDER

    def model_for(self, key: str) -> str:
        """The model of the lines of a file; ``*`` in a pattern is any text, also with slashes."""
        return next((model for pattern, model in self.models if fnmatchcase(key, pattern)), self.model)

    @property
    def providers(self) -> frozenset[str]:
        """The providers of the run's own models: without them no run, without others no more than their lines."""
        return frozenset(model.partition("/")[0] for model in (self.model, *(model for _, model in self.models)))

    @property
    def fields(self) -> frozenset[str]:
        """The fields that the templates use: content, even where a parameter has the same name."""
        return fields_of(self.prompt) | fields_of(self.system)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A line, understood. ``document`` is its JSON object without a former error; ids are as the user wrote them."""

    provider: str
    request: Request
    document: Mapping[str, Any]
    id: Any
    custom_id: Any
    metadata: Mapping[str, Any]
    own_model: bool  # the line names its model; else it is the run's
    warnings: tuple[str, ...] = ()  # fields of the line that would be part of the request, and are not


def parse_prompt(
    data: bytes, request_id: str, defaults: Defaults, max_texts: Callable[[str, str], int], key: str = ""
) -> Prompt:
    """Understands one line.

    Args:
        data: the line without its line ending.
        request_id: given to the request, the same over all tries.
        defaults: what the run sets.
        max_texts: (provider, model) → how many texts an embedding call takes; 1 says that it embeds nothing.
        key: of the file that the line is from.

    Raises:
        BadLine: with a sentence that says what is wrong with the line.
        ModelNotAllowed: it names a model that ``defaults.line_models`` does not allow.
        ProviderUnusable: it names a provider that lacks its settings, and is not one of the run's.
        ModelError: one of the run's own is not there.
    """
    document = _document(data)
    fields = defaults.fields
    default = defaults.model_for(key)
    provider, model, own = _model(document, default, fields)
    if own:
        check_line_model(defaults.line_models, provider, model, default)
    body = document
    if "url" in document and "body" in document:
        body = document["body"]
        if not isinstance(body, dict):
            raise BadLine("'body' must be an object, as in an OpenAI batch line")
    try:
        embeds = max_texts(provider, model) > 1
    except ModelError as error:
        if provider in defaults.providers:
            raise
        raise ProviderUnusable(f"{provider}/{model}: {error.message}", provider=provider) from error
    build = _templated if defaults.prompt else _builder(document, body)
    if build is _raw and embeds and "input" in body:
        build = _embed
    if build is _chat and body is document and provider == "workers-ai" and takes_own_input(model):
        build = _raw  # an image model's prompt is no conversation
    whole = body is not document and not defaults.prompt
    request = build(body, _Target(provider, model, embeds, request_id, defaults, fields, whole))
    extra: dict[str, Any] = {}
    warnings: tuple[str, ...] = ()
    if not isinstance(request, RawRequest):
        used, unused = request_fields(request), _unused(request, body)
        if not defaults.prompt:
            used -= unused
            warnings = tuple(_left_out(name) for name in sorted(unused) if name not in fields)
            if whole:
                warnings += tuple(_left_out(name) for name in sorted(_NEVER & body.keys()) if body[name])
        if defaults.prompt:
            used -= {"prompt", "messages", "text", "input"}
        around = _BATCH_FIELDS if body is not document else _OWN_FIELDS
        extra = {k: v for k, v in document.items() if k not in used and k not in around and k not in fields}
    metadata = document.get("metadata")
    if metadata is not None:
        extra = {**metadata, **extra} if isinstance(metadata, dict) else {"metadata": metadata, **extra}
    identity = document.get("id", document.get("custom_id"))
    custom = document.get("custom_id", document.get("id"))
    return Prompt(provider, request, document, identity, custom, extra, own, warnings)


def _unused(request: ChatRequest | EmbedRequest, body: Mapping[str, Any]) -> frozenset[str]:
    """The fields with content that the request has no place for, since it has another one's."""
    if isinstance(request, EmbedRequest):
        used = {"text" if "text" in body else "input"}
    elif "messages" in body:
        own = [message for message in request.messages if message.role == "system"] if "system" in body else []
        used = {"messages"} if own and own[0].content != body["system"] else {"messages", "system"}
    else:
        used = {"prompt", "system"}
    return (_CONTENT - _NEVER - used - {"model"}) & body.keys()


def _left_out(name: str) -> str:
    return f"{name} was left out: " + (
        "an answer is written when it is whole" if name in _NEVER else "the line has other content that was used"
    )


def request_fields(request: Request) -> frozenset[str]:
    """The fields of a line that its request has used up."""
    if isinstance(request, ChatRequest):
        return _CHAT
    if isinstance(request, EmbedRequest):
        return _EMBED
    return frozenset(request.input)


def json_object(data: bytes) -> dict[str, Any]:
    """The JSON object that a line holds. Raises BadLine."""
    try:
        document = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise BadLine(f"not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise BadLine(f"a line must be a JSON object, not {_kind(document)}")
    if _overflows(document):
        raise BadLine("a number in the line is too large: write it as a string")
    return document


def _overflows(value: object) -> bool:
    """Whether a number such as 1e400 has become infinity, which no JSON can hold again."""
    parts = [value]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            parts.extend(part.values())
        elif isinstance(part, list):
            parts.extend(part)
        elif isinstance(part, float) and math.isinf(part):
            return True
    return False


def _document(data: bytes) -> dict[str, Any]:
    document = json_object(data)
    if isinstance(document.get("error"), dict) and {"class", "offset"} <= document["error"].keys():
        document = {k: v for k, v in document.items() if k != "error"}
        match document:  # what is kept of a line that was no JSON object stands alone
            case {"raw": str(raw)} if len(document) == 1:
                return _document(raw.encode("utf-8", "surrogatepass"))
            case {"raw_base64": str(raw)} if len(document) == 1:
                try:
                    kept = base64.b64decode(raw, validate=True)
                except ValueError as error:
                    raise BadLine("'raw_base64' is no base64: take the error file as it was written") from error
                return _document(kept)
    return document


def _model(document: Mapping[str, Any], default: str, fields: frozenset[str]) -> tuple[str, str, bool]:
    body, name = document.get("body"), None
    if "model" not in fields:
        name = document.get("model") or (body.get("model") if isinstance(body, dict) else None)
    if name is not None and not isinstance(name, str):
        raise BadLine(f"'model' must be a string, not {_kind(name)}")
    if name and len(name) > _LONGEST_NAME:
        raise BadLine(f"'model' {short(name)} has {len(name):,} characters: write a model's name")
    default_provider, _, default_model = default.partition("/")
    if not name:
        return default_provider, default_model, False
    provider, _, model = name.partition("/")
    if provider in PROVIDERS and model:
        return provider, model, True
    if name.startswith("@"):
        return "workers-ai", name, True
    return default_provider, name, True


@dataclass(frozen=True, slots=True)
class _Target:
    provider: str
    model: str
    embeds: bool
    request_id: str
    defaults: Defaults
    fields: frozenset[str]
    whole: bool  # the body is that of an API's call: what is no content in it is a parameter

    def parameters(self, body: Mapping[str, Any], known: frozenset[str] = PARAMETERS) -> dict[str, Any]:
        """Those in the line, by themselves."""
        if self.whole:
            return {k: v for k, v in body.items() if k not in _CONTENT and k not in self.fields}
        return {k: v for k, v in body.items() if k in known and k not in self.fields}

    def embedding_parameters(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The same for an embedding; numbers are what every answer has."""
        parameters = self.parameters(body, _EMBED_PARAMETERS)
        return {k: v for k, v in parameters.items() if (k, v) != ("encoding_format", "float")}


_Builder = Callable[[Mapping[str, Any], _Target], Request]


def _builder(document: Mapping[str, Any], body: Mapping[str, Any]) -> _Builder:
    """Chooses by the OpenAI URL, else by the fields."""
    if body is not document:
        for ending, build in _BY_URL.items():
            if str(document["url"]).rstrip("/").endswith(ending):
                return build
        known = ", ".join(_BY_URL)
        raise BadLine(f"'url' {short(document['url'])} is not one that can be answered: use {known}")
    for name, build in _BY_FIELD.items():
        if name in body:
            return build
    return _raw


def _chat(body: Mapping[str, Any], target: _Target) -> ChatRequest:
    if "messages" in body:
        try:
            messages = [_message(m) for m in _MESSAGES.validate_python(body["messages"])]
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise BadLine(f"'messages' is wrong at {where or 'its top'}: {first['msg']}") from None
    elif isinstance(body.get("prompt"), str):
        messages = [Message("user", body["prompt"])]
    else:
        raise BadLine(f"'prompt' must be a string, not {_kind(body.get('prompt'))}")
    return _conversation(messages, body, target)


def _conversation(messages: list[Message], body: Mapping[str, Any], target: _Target) -> ChatRequest:
    if not any(_says_something(m) for m in messages):
        raise BadLine("there is nothing to answer: the prompt or the messages are empty")
    own = "" if "system" in target.fields else body.get("system", "")
    if not isinstance(own, str):
        raise BadLine(f"'system' must be a string, not {_kind(own)}")
    if not any(m.role == "system" for m in messages) and (system := _system(body, target)):
        messages.insert(0, Message("system", system))
    own_parameters = target.parameters(body)
    parameters = {**target.defaults.parameters, **own_parameters}
    if not own_parameters.keys().isdisjoint(TOKEN_LIMITS):
        parameters = {k: v for k, v in parameters.items() if k not in TOKEN_LIMITS or k in own_parameters}
    return ChatRequest(target.model, tuple(messages), parameters, target.request_id)


def _system(body: Mapping[str, Any], target: _Target) -> str:
    """The line's own system prompt as it is, else the run's; one without fields is no template."""
    if "system" in body and "system" not in target.fields:
        return str(body["system"])
    system = target.defaults.system
    return _filled_in(system, body) if fields_of(system) else system


def _templated(body: Mapping[str, Any], target: _Target) -> Request:
    """What the run's template asks about the line; for an embedding model, the text that it gives."""
    text = _filled_in(target.defaults.prompt, body)
    if target.embeds:
        return EmbedRequest(target.model, (text,), target.embedding_parameters(body), target.request_id)
    return _conversation([Message("user", text)], body, target)


def _filled_in(template: str, body: Mapping[str, Any]) -> str:
    try:
        return fill_in(template, body)
    except MissingField as missing:
        raise BadLine(f"the line has no '{missing}', which the template needs: add it, or leave the line out") from None


def _embed(body: Mapping[str, Any], target: _Target) -> Request:
    name = "text" if "text" in body else "input"
    texts = _texts(body.get(name), name, target) if target.embeds else None
    if texts is None:
        return _raw(body, target)
    return EmbedRequest(target.model, texts, target.embedding_parameters(body), target.request_id)


def _texts(given: object, name: str, target: _Target) -> tuple[str, ...] | None:
    """The texts to embed; None for what is not text: numbers of tokens, or another input of the model's own."""
    if isinstance(given, str):
        return (given,)
    if not isinstance(given, list):
        return None
    if not given:
        raise BadLine(f"there is nothing to embed: {name!r} is an empty array")
    odd = next((at for at, text in enumerate(given) if not isinstance(text, str)), None)
    if odd is None:
        return tuple(given)
    if target.provider == "workers-ai" or any(isinstance(text, str) for text in given):
        raise BadLine(f"{name!r} must be an array of strings, but [{odd}] is {_kind(given[odd])}")
    return None


def _raw(body: Mapping[str, Any], target: _Target) -> RawRequest:
    given = {k: v for k, v in body.items() if k not in _OWN_FIELDS}
    if not given:
        raise BadLine("there is nothing to answer: give 'prompt', 'messages', 'text' or the model's own input")
    return RawRequest(target.model, given, target.request_id)


_BY_URL: dict[str, _Builder] = {"/chat/completions": _chat, "/embeddings": _embed, "/completions": _chat}
_BY_FIELD: dict[str, _Builder] = {"messages": _chat, "prompt": _chat, "text": _embed}


def _message(message: _Message) -> Message:
    role = "system" if message.role == "developer" else message.role
    content = tuple(message.content) if isinstance(message.content, list) else message.content
    return Message(role, content, message.model_extra or {})


def _says_something(message: Message) -> bool:
    if message.role == "system":
        return False
    return bool(message.content.strip() if isinstance(message.content, str) else message.content or message.extra)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
