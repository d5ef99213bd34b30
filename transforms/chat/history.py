"""What the model is sent for a message: the system prompt, the conversation so far as far as it fits, the message."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from llmdo.backends.money.estimates import Estimates
from llmdo.backends.requests import ChatRequest, Message
from llmdo.storage.chat.records import ChatMessage, Role

_SEEN = "What the user has on the screen, as their application describes it:"


class History(NamedTuple):
    """The ``messages`` of a request, the new one last; the ``ids`` of the earlier ones; ``warnings``, in sentences."""

    messages: tuple[Message, ...]
    ids: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Part:
    """An earlier message as it is sent, with its answer."""

    id: str
    role: Role
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
        earlier: the messages before this one in their order, each with its answer's text; None for one that has none,
            or whose answer says that there is none.
        message: the new one; it is sent once, even where ``earlier`` has it too.
        model: the provider's own name, by which the estimates know it.
        context_tokens: what the model's context holds, input and answer together; None where nobody tells.
        max_tokens: of the answer.
        estimates: how many tokens texts have, as far as calls have shown it.

    What does not fit is left out from the front, a whole turn at a time: a user's message and all until the next one.
    Messages of the system stay. The new message stays too, whether it fits or not.
    """
    parts = [part for one, answer in earlier if one.id != message.id and (part := _part(one, answer)).messages]
    turns = _turns(parts)
    first = [Message("system", text)] if (text := _system(system, message.context)) else []

    def sent(dropped: int) -> list[_Part]:
        return [part for part, turn in zip(parts, turns, strict=True) if part.role == "system" or turn >= dropped]

    def messages(dropped: int) -> tuple[Message, ...]:
        before = [one for part in sent(dropped) for one in part.messages]
        return (*first, *before, Message(message.role, message.text))

    def fits(dropped: int) -> bool:
        if context_tokens is None:
            return True
        request = ChatRequest(model, messages(dropped), {"max_tokens": max_tokens})
        return estimates.most(request).input_tokens + max_tokens <= context_tokens

    count = turns[-1] + 1 if turns else 0
    dropped = bisect_left(range(count), True, key=fits)
    said = (
        f"the first {dropped} of {count} earlier turns were left out: the context of {model} holds "
        f"{context_tokens} tokens, of which the answer may take {max_tokens}"
    )
    warnings = (said,) if dropped else ()
    return History(messages(dropped), tuple(part.id for part in sent(dropped)), warnings)


def _part(message: ChatMessage, answer: str | None) -> _Part:
    # Models refuse messages without content.
    said = [Message(message.role, message.text)] if message.text.strip() else []
    if answer and answer.strip():
        said.append(Message("assistant", answer))
    return _Part(message.id, message.role, tuple(said))


def _turns(parts: Sequence[_Part]) -> list[int]:
    """The number of the turn that each part belongs to, from 0."""
    turns: list[int] = []
    turn, begun = 0, False
    for part in parts:
        if part.role == "user" and begun:
            turn += 1
        begun = begun or part.role != "system"
        turns.append(turn)
    return turns


def _system(system: str, context: str) -> str:
    seen = f"{_SEEN}\n{context}" if context.strip() else ""
    return "\n\n".join(text for text in (system, seen) if text.strip())
