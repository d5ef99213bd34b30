"""Builds requests from a line's fields, one function for each kind of request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from llmdo.backends.json_mode.answers import schema_of
from llmdo.backends.limits.sizes import TOKEN_LIMITS
from llmdo.backends.providers import passes_routes_on
from llmdo.backends.requests import ChatRequest, EmbedRequest, Message, RawRequest
from llmdo.backends.responses_api.chat_request import as_chat, check_alone, text_format
from llmdo.transforms.lines.broken_json import kind_of
from llmdo.transforms.prompts.fields import IDS, NEVER, Built, RequestTarget, streaming_warnings, unused
from llmdo.transforms.prompts.line_json import BadLine
from llmdo.transforms.prompts.messages import check_says_something, read_messages
from llmdo.transforms.prompts.templates import MissingField, fields_of, fill_in

Builder = Callable[[Mapping[str, Any], RequestTarget], Built]

_SYSTEM_ROLES = ("system", "developer")
# Lines of OpenAI's fine-tuning end so, and requests of Anthropic's API that begin an answer.
_BEGUN = "the last message is an assistant's, as the beginning of an answer: not every model continues it"


def build_chat(body: Mapping[str, Any], target: RequestTarget) -> Built:
    """A conversation, from ``messages``, or from ``prompt`` and ``system``. Raises BadLine."""
    if "messages" in body:
        return _conversation(read_messages(body["messages"]), "messages", body, target)
    prompt = body.get("prompt")
    if not isinstance(prompt, str):
        raise BadLine(f"'prompt' must be a string, not {kind_of(prompt)}")
    messages = [Message("user", prompt)]
    check_says_something(messages)
    return _conversation(messages, "prompt", body, target)


def build_input_chat(body: Mapping[str, Any], target: RequestTarget) -> Built:
    """A conversation whose messages are in ``input``, as in OpenAI's evals. Raises BadLine."""
    return _conversation(read_messages(body["input"], "input"), "input", body, target)


def build_templated(body: Mapping[str, Any], target: RequestTarget) -> Built:
    """The run's template, filled in from a line, as a chat or as a text to embed. Raises BadLine."""
    text = _filled_in(target.prompt, body)
    if target.embeds:
        parameters, names = target.embedding_parameters_in(body)
        return Built(EmbedRequest(target.model, (text,), parameters, target.request_id), target.fields | names)
    messages = [Message("user", text)]
    check_says_something(messages)
    asked = body if target.counted != "none" else {name: body[name] for name in target.fields if name in body}
    built = _conversation(messages, "", asked, target)
    return Built(built.request, built.used | target.fields)


def build_embedding(body: Mapping[str, Any], target: RequestTarget) -> Built:
    """Texts to embed. Token numbers, and texts for a model of an unknown kind, are passed on to the API as they are.

    Raises BadLine.
    """
    name = "text" if "text" in body else "input"
    texts = _texts(body.get(name), name, target)
    parameters, names = target.embedding_parameters_in(body)
    used = names | {name}
    if target.counted == "all":
        warnings = unused(body, used) + streaming_warnings(body)
    else:
        warnings = tuple(warning for warning in unused(body, used) if warning.split()[0] not in target.fields)
    if texts is not None and target.embeds:
        return Built(EmbedRequest(target.model, texts, parameters, target.request_id), used, warnings)
    given = {"input" if field == name else field: value for field, value in body.items() if field in used}
    return Built(RawRequest(target.model, given, target.request_id, path="embeddings"), used, warnings)


def build_completion(body: Mapping[str, Any], target: RequestTarget) -> Built:
    """The body of /v1/completions, as it is, with the run's limit and temperature. Raises BadLine."""
    if "prompt" not in body:
        raise BadLine("'body' has no prompt, which /v1/completions needs: add it, or use /v1/chat/completions")
    return _passed_on("completions", body, target, "max_tokens")


def build_moderation(body: Mapping[str, Any], target: RequestTarget) -> Built:
    """The body of /v1/moderations, as it is; the run's settings are for chats. Raises BadLine."""
    if not body.get("input"):
        raise BadLine("'body' has no input, which /v1/moderations needs: add a text, or an array of them")
    given = {name: value for name, value in body.items() if name not in NEVER and name != "model"}
    request = RawRequest(target.model, given, target.request_id, path="moderations")
    return Built(request, frozenset(body), streaming_warnings(body))


def build_responses(body: Mapping[str, Any], target: RequestTarget) -> Built:
    """The body of /v1/responses with the run's limit, temperature, format and system prompt.

    A provider that has chats alone gets it as one, and the answer is written as a response. Raises InvalidRequest.
    """
    check_alone(body)
    if not (body.get("input") or body.get("prompt")):
        raise BadLine("'body' has no input, which /v1/responses needs: add it, or use another url")
    given = body.get("input")
    turns = given if isinstance(given, list) else []
    instructed = any(isinstance(turn, dict) and turn.get("role") in _SYSTEM_ROLES for turn in turns)
    if target.system and not instructed and body.get("instructions") is None:
        body = {**body, "instructions": _run_system(body, target)}
    if not passes_routes_on(target.provider, target.model):
        return _responses_as_chat(body, target)
    wanted, parameters = target.parameters.get("response_format"), dict(target.parameters)
    text = {} if body.get("text") is None else body["text"]
    if wanted and isinstance(text, dict):
        del parameters["response_format"]
        body = {**body, "text": {"format": text_format(wanted), **text}}
    return _passed_on("responses", body, replace(target, parameters=parameters), "max_output_tokens")


def build_messages(body: Mapping[str, Any], target: RequestTarget) -> Built:
    """The body of Anthropic's /v1/messages with the run's limit, temperature, format and system prompt. Raises BadLine.

    Only for a provider that takes it; for others it was translated before.
    """
    if not isinstance(body.get("messages"), list) or not body["messages"]:
        raise BadLine("there is nothing to answer: 'messages' must be an array of turns")
    if target.system and not body.get("system"):
        body = {**body, "system": _run_system(body, target)}
    wanted, parameters = target.parameters.get("response_format"), dict(target.parameters)
    config = {} if body.get("output_config") is None else body["output_config"]
    if wanted and wanted.get("type") == "json_schema" and isinstance(config, dict):
        del parameters["response_format"]
        form = {"type": "json_schema", "schema": schema_of(wanted)}
        body = {**body, "output_config": {"format": form, **config}}
    return _passed_on("messages", body, replace(target, parameters=parameters), "max_tokens")


def _responses_as_chat(body: Mapping[str, Any], target: RequestTarget) -> Built:
    warnings: list[str] = []
    asked = {name: value for name, value in body.items() if name not in NEVER and name != "model"}
    request = as_chat(asked, target.model, target.request_id, warnings.append, target.parameters)
    check_says_something(list(request.messages))
    return Built(request, frozenset(body), (*streaming_warnings(body), *warnings), response_to=asked)


def build_own_input(body: Mapping[str, Any], target: RequestTarget) -> Built:
    """A Workers AI model's own input, whatever its fields are called. Raises BadLine."""
    given = {name: value for name, value in body.items() if name not in IDS | {"model", "metadata", "error"}}
    if not given:
        raise BadLine("there is nothing to answer: give 'prompt', 'messages', 'text' or the model's own input")
    return Built(RawRequest(target.model, given, target.request_id), frozenset(given))


def _filled_in(template: str, body: Mapping[str, Any]) -> str:
    """A template with a line's fields. Raises BadLine."""
    try:
        return fill_in(template, body)
    except MissingField as missing:
        raise BadLine(f"the line has no '{missing}', which the template needs: add it, or leave the line out") from None


def _conversation(messages: list[Message], name: str, body: Mapping[str, Any], target: RequestTarget) -> Built:
    """Messages from the field ``name`` with a system prompt and parameters."""
    used = {name} if name else set()
    own_system = "system" in body and "system" not in target.fields
    if own_system and not isinstance(body["system"], str):
        raise BadLine(f"'system' must be a string, not {kind_of(body['system'])}")
    instructions = next((message.content for message in messages if message.role in _SYSTEM_ROLES), None)
    if own_system and instructions in (None, body["system"]):
        used.add("system")
    if instructions is None and (system := _system(body, target)):
        messages = [Message("system", system), *messages]
    own = target.parameters_in(body)
    parameters = {**target.parameters, **own}
    if not own.keys().isdisjoint(TOKEN_LIMITS):
        parameters = {k: v for k, v in parameters.items() if k not in TOKEN_LIMITS or k in own}
    warnings: tuple[str, ...] = ()
    if name:
        warnings = unused({k: v for k, v in body.items() if k not in target.fields}, used)
    if target.counted == "all":
        warnings += streaming_warnings(body)
    if messages[-1].role == "assistant" and not messages[-1].extra.get("tool_calls"):
        warnings += (_BEGUN,)
    request = ChatRequest(target.model, tuple(messages), parameters, target.request_id)
    return Built(request, frozenset({*used, *own}), warnings)


def _system(body: Mapping[str, Any], target: RequestTarget) -> str:
    """The line's own system prompt, unchanged, or the run's, which is a template if it has fields."""
    if "system" in body and "system" not in target.fields:
        return str(body["system"])
    return _run_system(body, target)


def _run_system(body: Mapping[str, Any], target: RequestTarget) -> str:
    return _filled_in(target.system, body) if fields_of(target.system) else target.system


def _passed_on(path: str, body: Mapping[str, Any], target: RequestTarget, limit: str) -> Built:
    given = {name: value for name, value in body.items() if name not in NEVER and name != "model"}
    warnings = streaming_warnings(body)
    for name, value in target.parameters.items():
        if name in TOKEN_LIMITS:
            given.setdefault(limit, value)
        elif name == "temperature":
            given.setdefault(name, value)
        else:
            warnings += (f"{name} was left out: llmdo passes the body of /v1/{path} on as it is",)
    if target.system and path == "completions":
        warnings += ("the run's system prompt was left out: /v1/completions has no place for one",)
    return Built(RawRequest(target.model, given, target.request_id, path=path), frozenset(body), warnings)


def _texts(given: object, name: str, target: RequestTarget) -> tuple[str, ...] | None:
    """The texts to embed; None for token numbers. Raises BadLine."""
    if isinstance(given, str):
        return (given,)
    if not isinstance(given, list):
        raise BadLine(f"{name!r} must be a string or an array of strings, not {kind_of(given)}")
    if not given:
        raise BadLine(f"there is nothing to embed: {name!r} is an empty array")
    odd = next((at for at, text in enumerate(given) if not isinstance(text, str)), None)
    if odd is None:
        return tuple(given)
    if _are_tokens(given) or all(map(_are_tokens, given)):
        if passes_routes_on(target.provider):
            return None
        raise BadLine(
            f"{name!r} holds numbers of tokens, which {target.provider} does not take: give the text that they stand "
            "for, or name a model of a service with OpenAI's API, openai/…"
        )
    raise BadLine(f"{name!r} must be an array of strings, but [{odd}] is {kind_of(given[odd])}")


def _are_tokens(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int for one in value)
