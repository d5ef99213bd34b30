"""OpenAI's chat shape, which many services speak: parsed JSON bodies as our responses. Pure functions.

Shapes: platform.openai.com/docs/api-reference, chat and embeddings. Read generously: servers that call themselves
compatible leave fields out, or send objects where OpenAI sends text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from llmdo.backends.errors import BadReply, ModelError, Retryable, unusable_vector
from llmdo.backends.finish_reasons import finish_error, finish_of, finish_warning
from llmdo.backends.http.reply_json import amount, excerpt, mapping, whole_number
from llmdo.backends.openai.messages import as_text, read_content, tool_calls
from llmdo.backends.openai.vectors import read_vector
from llmdo.backends.responses import ChatResponse, FinishReason
from llmdo.backends.usage import Usage

# A dated snapshot, or a tag, of the model that was asked for is that model.
_SNAPSHOT = re.compile(r"(?:[-@](?:\d{4}-?\d{2}-?\d{2}|\d{4})|:latest|-latest)?")
# Fields of a message that a ChatResponse has of its own.
_READ = frozenset({"content", "reasoning_content", "role", "tool_calls"})


def read_completion(body: Any, model: str) -> ChatResponse:
    """Reads a chat.completion.

    Raises ContentFiltered; Retryable where the answer failed or is not there; BadReply for anything that is not a
    chat.completion.
    """
    choice, usage = first_choice(body), read_usage(body)
    if choice is None:
        raise no_choice(body, model) or BadReply(
            f"{model} sent a reply that is not a chat completion ({excerpt(body)}): "
            "check that the base URL ends before /chat/completions, and that the model chats"
        )
    error = failed_choice(choice, model)
    if error is not None:
        raise error
    response = read_choices(body)
    answered, substituted = answering_model(body, model)
    warnings = (*response.warnings, *warnings_of(response, usage.output_tokens, response.finish_reason), *substituted)
    return replace(response, usage=usage, model=answered, warnings=warnings)


def first_choice(body: Any) -> Mapping[str, Any] | None:
    """The first of ``choices``, or None where there is none."""
    choices = mapping(body).get("choices")
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None


def no_choice(body: Any, model: str) -> ModelError | None:
    """The error of a chat.completion without any choice, which is paid for nevertheless; None for anything else."""
    fields = mapping(body)
    if fields.get("choices", 0) not in ([], None) or not (
        reported_usage(body) or fields.get("object") == "chat.completion"
    ):
        return None
    return Retryable(
        f"{model} sent an answer without any choice ({excerpt(body)}): try again later, or change the prompt"
    )


def choice_error(choice: Mapping[str, Any] | None, refused: Callable[[Any], ModelError | None]) -> ModelError | None:
    """What the ``error`` of a choice means by its code or words, as ``refused`` reads them in a reply's body.

    None where there is no error, or nothing is known of it; then see failed_choice.
    """
    said = (choice or {}).get("error")
    error = refused({"error": said}) if said else None
    return None if isinstance(error, BadReply) else error


def failed_choice(choice: Mapping[str, Any], model: str) -> ModelError | None:
    """The error of a choice that is not an answer: by its finish reason, its ``error``, or for want of a message."""
    said = choice.get("error")
    words = as_text(mapping(said).get("message") or said) or ""
    reason = choice.get("finish_reason")
    error = finish_error(reason, model, words)
    if error is None and said:
        error = finish_error("error", model, words)
    if error is None and choice.get("message", 0) is None and not choice.get("text"):
        error = Retryable(f"{model} sent a choice without a message (finish reason {reason}): try again later")
    return error


def read_choices(body: Mapping[str, Any], otherwise: Any = None) -> ChatResponse:
    """The first choice, and in ``body`` what else there is; usage, model and ids are the caller's to add.

    ``otherwise``: what was said where the choice has no text.
    """
    choices: list[Any] = body["choices"]
    said, message = _read_choice(mapping(choices[0]), otherwise)
    first = {name: value for name, value in mapping(choices[0]).items() if name not in ("message", "finish_reason")}
    listed = [{**first, "index": _index(first, 0), "message": message}]
    listed += [_whole(choice, number) for number, choice in enumerate(choices[1:], 1) if isinstance(choice, dict)]
    return ChatResponse(
        text=said.text,
        finish_reason=said.finish_reason,
        usage=Usage(),
        model="",
        reasoning=said.reasoning,
        tool_calls=said.tool_calls,
        warnings=(*said.warnings, *_others_warnings(choices[1:])),
        body={**body, "choices": listed},
    )


def _others_warnings(choices: list[Any]) -> Iterator[str]:
    """Of choices after the first one: the call is not made again for them."""
    for number, choice in enumerate(choices, 1):
        error = failed_choice(mapping(choice), f"choice {number}")
        reason = mapping(choice).get("finish_reason")
        odd = "the answer is cut off: raise max_tokens" if finish_of(reason) == "length" else finish_warning(reason)
        if error or odd:
            yield error.message if error else f"choice {number}: {odd}"


class _Said(NamedTuple):
    text: str | None
    finish_reason: FinishReason | None
    reasoning: str | None
    tool_calls: tuple[Mapping[str, Any], ...]
    warnings: tuple[str, ...]


def _whole(choice: Mapping[str, Any], position: int) -> dict[str, Any]:
    """A choice after the first one, which no ChatResponse has a place for."""
    said, rest = _read_choice(choice, None)
    message = {"role": "assistant", "content": said.text, **said_fields(said), **rest}
    finish = said.finish_reason or "stop"
    return {**choice, "index": _index(choice, position), "message": message, "finish_reason": finish}


def said_fields(response: ChatResponse | _Said) -> dict[str, Any]:
    """Reasoning and tool calls as fields of a message; only those that are there."""
    fields: dict[str, Any] = {}
    if response.reasoning is not None:
        fields["reasoning_content"] = response.reasoning
    if response.tool_calls:
        fields["tool_calls"] = response.tool_calls
    return fields


def _read_choice(choice: Mapping[str, Any], otherwise: Any) -> tuple[_Said, dict[str, Any]]:
    """One choice, and the fields of its message that are not read."""
    message = mapping(choice.get("message"))
    rest = {name: value for name, value in message.items() if name not in _READ}
    content = read_content(message.get("content"))
    text = content.text or as_text(choice.get("text")) or as_text(otherwise)
    refused = as_text(message.get("refusal"))
    if content.parts:
        rest["content_parts"] = content.parts
    if refused and not text:
        rest["content"] = None
    legacy = message.get("function_call")
    calls = tool_calls(message.get("tool_calls") or ([legacy] if isinstance(legacy, dict) else None))
    reasoning = as_text(message.get("reasoning_content")) or as_text(message.get("reasoning")) or content.reasoning
    odd = finish_warning(choice.get("finish_reason"))
    warnings = (*(("the model refused",) if refused and not text else ()), *((odd,) if odd else ()))
    finish = finish_of(choice.get("finish_reason"))
    return _Said(text or refused or None, finish, reasoning or None, calls, warnings), rest


def _index(choice: Mapping[str, Any], position: int) -> int:
    found = whole_number(choice.get("index"))
    return position if found is None else found


def read_vectors(body: Any, model: str, count: int, neurons: float | None = None) -> tuple[Sequence[float], ...]:
    """Reads ``{"data": [{"index", "embedding"}, …]}`` by ``index``, and Workers AI's ``{"data": [[…], …]}``.

    One vector for each of ``count`` texts; () stands for one that cannot be used. ``neurons``: see ``read_usage``.
    Raises BadReply for another number, and where the only vector cannot be used.
    """
    rows = mapping(body).get("data") or mapping(body).get("response")
    found: dict[int, Sequence[float]] = {}
    for position, row in enumerate(rows if isinstance(rows, list) else []):
        vector = read_vector(row.get("embedding") if isinstance(row, dict) else row)
        if vector is not None:
            found[_index(mapping(row), position)] = vector
    if sorted(found) != list(range(count)):
        raise BadReply(
            f"{model} sent {len(found)} vectors for {count} texts ({excerpt(body)}): name an embedding model"
        )
    vectors = tuple(found[index] for index in range(count))
    if vectors == ((),):
        raise unusable_vector(model, read_usage(body, neurons))
    return vectors


def are_packed(body: Any) -> bool:
    """Whether a reply's vectors are in base64, rather than lists of numbers."""
    rows = mapping(body).get("data")
    return isinstance(rows, list) and bool(rows) and isinstance(mapping(rows[0]).get("embedding"), str)


def read_usage(result: Any, neurons: float | None = None) -> Usage:
    """Reads ``usage`` by either naming; ``neurons`` where the body has none.

    DeepSeek's field of cache hits is read, too, and xAI's sum: reasoning is beside its ``completion_tokens``.
    """
    usage = mapping(mapping(result).get("usage"))
    input_details = mapping(usage.get("prompt_tokens_details") or usage.get("input_tokens_details"))
    output_details = mapping(usage.get("completion_tokens_details") or usage.get("output_tokens_details"))
    in_body = amount(usage.get("neurons"))
    given = _count(usage.get("prompt_tokens", usage.get("input_tokens")))
    output = _count(usage.get("completion_tokens", usage.get("output_tokens")))
    reasoning = _count(output_details.get("reasoning_tokens"))
    beside = bool(reasoning) and _count(usage.get("total_tokens")) == given + output + reasoning
    return Usage(
        input_tokens=given,
        output_tokens=output + reasoning if beside else output,
        cached_tokens=_count(input_details.get("cached_tokens", usage.get("prompt_cache_hit_tokens"))),
        cache_write_tokens=_count(input_details.get("cache_write_tokens", usage.get("cache_write_tokens"))),
        input_audio_tokens=_count(input_details.get("audio_tokens")),
        output_audio_tokens=_count(output_details.get("audio_tokens")),
        reasoning_tokens=reasoning,
        neurons=neurons if in_body is None else in_body,
    )


def warnings_of(response: ChatResponse, tokens: int, finish: FinishReason | None) -> tuple[str, ...]:
    """See ``answer_warnings``; ``finish`` may be known better than by the response alone."""
    answered = bool(response.text or response.tool_calls)
    return answer_warnings(finish, tokens, answered, thought=bool(response.reasoning))


def answer_warnings(finish: FinishReason | None, tokens: int, answered: bool, *, thought: bool) -> tuple[str, ...]:
    """What is not as asked about an answer, in sentences; ``thought``: whether there is reasoning.

    ``tokens``: those of the answer, or their limit; 0 where neither is known.
    """
    if finish == "length" and thought and not answered:
        return (f"all {tokens} tokens went into reasoning: raise max_tokens",)
    if finish == "length":
        where = f" at {tokens} tokens" if tokens else ""
        return (f"the answer is cut off{where}: raise max_tokens",)
    return () if answered else ("the model sent no text",)


def answering_model(body: Any, asked: str, *, native: bool = False) -> tuple[str, tuple[str, ...]]:
    """The model that a reply names, and a warning where it is not the one asked for.

    ``native``: Workers AI, where another model answers for a retired name, and a model's other names are not reported.
    """
    named = mapping(body).get("model")
    if not isinstance(named, str) or not named:
        return asked, ()
    if is_same_model(asked, named):
        return asked if native else named, ()
    return named, (f"{'model substituted: ' if native else ''}{named} answered instead of {asked}",)


def is_same_model(asked: str, answered: str) -> bool:
    """Whether a reply's model is the one asked for: ``gpt-4o-2024-08-06`` is a ``gpt-4o``, ``gpt-4o-mini`` is not."""
    asked, answered = asked.rpartition("/")[2].casefold(), answered.rpartition("/")[2].casefold()
    return answered.startswith(asked) and bool(_SNAPSHOT.fullmatch(answered, len(asked)))


def reported_usage(body: Any) -> Usage | None:
    """The usage of a reply that is not an answer; None if it reports none."""
    usage = read_usage(body)
    return usage if usage != Usage() else None


def _count(value: Any) -> int:
    return int(amount(value) or 0)
