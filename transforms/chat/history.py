"""Builds the messages of a call: the system prompt, as much of the conversation as fits, and the new message."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from llmdo.backends.money.estimates import Estimates
from llmdo.backends.requests import ChatRequest, Message
from llmdo.storage.chat.records import ChatMessage, ChatRole

_SEEN = "What the user has on the screen, as their application describes it:"


class History(NamedTuple):
    """The ``messages`` of a request, the new one last; the ``ids`` of the earlier ones; ``warnings`` as sentences."""

    messages: tuple[Message, ...]
    ids: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Part:
    """An earlier message as it is sent, with its answer."""

    id: str
    role: ChatRole
    messages: tuple[Message, ...]


def history(
    system: str,
    earlier: Sequence[tuple[ChatMessage, str | None]],
    message: ChatMessage,
    *,
    model: str,
    context_tokens: int | None,
    max_tokens: int,
    estimates: Estimates,
) -> History:
    """Builds the messages of a call.

    Args:
        system: the system prompt, or "".
        earlier: the previous messages in order, each with its answer's text, or None if it has none or a failed one.
        message: the new one; sent once, even if ``earlier`` contains it.
        model: the provider's own name for it.
        context_tokens: size of the model's context, input and answer together; None if unknown.
        max_tokens: of the answer.
        estimates: numbers of tokens in texts, learnt from earlier calls.

    What does not fit is dropped from the front, a whole turn at a time: a user's message and everything up to the next
    one. System messages stay, and so does the new message, whether it fits or not.
    """
    parts = [part for one, answer in earlier if one.id != message.id and (part := _part(one, answer)).messages]
    first = [Message("system", text)] if (text := _system(system, message.context)) else []
    turns = _turns(parts)

    def sent(dropped: int) -> tuple[Message, ...]:
        before = [one for part in _without(dropped, parts, turns) for one in part.messages]
        return (*first, *before, Message(message.role, message.text))

    def fits(dropped: int) -> bool:
        if context_tokens is None:
            return True
        request = ChatRequest(model, sent(dropped), {"max_tokens": max_tokens})
        return estimates.most(request).input_tokens + max_tokens <= context_tokens

    count = turns[-1] + 1 if turns else 0
    dropped = bisect_left(range(count), True, key=fits)
    warning = (
        f"the first {dropped} of {count} earlier turns were left out: the context of {model} holds "
        f"{context_tokens} tokens, of which the answer may take {max_tokens}"
    )
    ids = tuple(part.id for part in _without(dropped, parts, turns))
    return History(sent(dropped), ids, (warning,) if dropped else ())


def _without(dropped: int, parts: Sequence[_Part], turns: Sequence[int]) -> list[_Part]:
    """The parts without those of the first turns; system messages stay."""
    return [part for part, turn in zip(parts, turns, strict=True) if part.role == "system" or turn >= dropped]


def _part(message: ChatMessage, answer: str | None) -> _Part:
    # Models refuse messages without content.
    messages = [Message(message.role, message.text)] if message.text.strip() else []
    if answer and answer.strip():
        messages.append(Message("assistant", answer))
    return _Part(message.id, message.role, tuple(messages))


def _turns(parts: Sequence[_Part]) -> list[int]:
    """The number of the turn that each part belongs to, from 0."""
    turns: list[int] = []
    turn, started = 0, False
    for part in parts:
        if part.role == "user" and started:
            turn += 1
        started = started or part.role != "system"
        turns.append(turn)
    return turns


def _system(system: str, context: str) -> str:
    seen = f"{_SEEN}\n{context}" if context.strip() else ""
    return "\n\n".join(text for text in (system, seen) if text.strip())
