"""Requests in one form for all providers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pydantic_core

from llmdo.backends.errors import InvalidRequest
from llmdo.backends.responses import StreamChunk


class LineId(str):
    """A request id that knows its line.

    Attributes:
        place: the file's full place, whatever its version.
        version: the file's etag.
        start: the line's offset in bytes.
        resumed: an earlier run worked on the file, perhaps one that kept answers by the id alone.
    """

    __slots__ = ("place", "resumed", "start", "version")
    place: str
    version: str
    start: int
    resumed: bool

    @classmethod
    def of(cls, text: str, place: str, version: str, start: int, *, resumed: bool = False) -> LineId:
        """An id with its line."""
        line = cls(text)
        line.place, line.version, line.start, line.resumed = place, version, start, resumed
        return line


class MediaReference(str):
    """Names a picture, a sound or a file that its line may use, in the place of its bytes; these come with the call.

    Attributes:
        store: ``r2://BUCKET``, the absolute path of a folder, or "" for a URL.
        key: of the object there; a path below the folder; the URL.
        medium: "image", "audio", "video" or "file": what the line uses it as.
        version: names its content, where that is known; part of the text then.
        size: bytes, where they are known; else 0.
    """

    __slots__ = ("key", "medium", "size", "store", "version")
    store: str
    key: str
    medium: str
    version: str
    size: int

    @classmethod
    def of(cls, text: str, store: str, key: str, medium: str, version: str = "", size: int = 0) -> MediaReference:
        """A reference, with what it leads to."""
        reference = cls(f"{text} {version}" if version else text)
        reference.store, reference.key, reference.medium = store, key, medium
        reference.version, reference.size = version, size
        return reference

    @property
    def place(self) -> str:
        """Where the object is, whatever its version."""
        return f"{self.store}/{self.key}" if self.store else self.key

    def __reduce__(self) -> tuple[Any, ...]:
        text = self.removesuffix(f" {self.version}") if self.version else str(self)
        return MediaReference.of, (text, self.store, self.key, self.medium, self.version, self.size)


Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


# Roles by the names of all services; some know no others.
COMMON_ROLES: Mapping[Role, Role] = {"developer": "system", "function": "tool"}


@dataclass(slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: who said it: "system", "user", "assistant", "tool" …
        content: text, or parts as OpenAI writes them: ``{"type": "text", "text": …}``,
            ``{"type": "image_url", "image_url": {"url": …}}``.
        extra: other fields of OpenAI's: name, tool_calls, tool_call_id …
    """

    role: Role
    content: str | tuple[Mapping[str, Any], ...] | None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class ChatRequest:
    """A conversation to continue.

    Attributes:
        model: the provider's own name, without the ``provider/`` prefix.
        messages: the turns so far, the oldest first.
        parameters: by OpenAI's names (temperature, max_tokens, top_p, stop, seed, tools, response_format …); a provider
            translates what it knows and passes on the rest.
        request_id: the same over all tries of one request.
        listen: gets each chunk of the answer while it is generated, on the thread of the call; it must not block. Each
            try begins with a ``start``. An answer that was kept comes without chunks.
    """

    model: str
    messages: tuple[Message, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    request_id: str = ""
    listen: Callable[[StreamChunk], None] | None = field(default=None, compare=False, repr=False)


@dataclass(slots=True)
class EmbedRequest:
    """Texts to embed with one call; at most ``Backend.max_texts(model)`` of them.

    Attributes:
        model: the provider's own name, without the ``provider/`` prefix.
        texts: what is embedded, in the order of the vectors.
        parameters: by OpenAI's names (dimensions, user …).
        request_id: the same over all tries of one request.
        line_ids: one id a text, where they are of several lines of input; else ().
    """

    model: str
    texts: tuple[str, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    request_id: str = ""
    line_ids: tuple[str, ...] = ()


@dataclass(slots=True)
class RawRequest:
    """A model's own input, passed on as it is, for tasks that have no common form (translation, reranking …).

    Attributes:
        model: the provider's own name, without the ``provider/`` prefix.
        input: the body of the call.
        request_id: the same over all tries of one request.
        path: of an API with OpenAI's routes, below its base URL: "embeddings", "completions", "responses" or
            "moderations", whose body ``input`` is, without the model; "" is Workers AI's own way.
    """

    model: str
    input: Mapping[str, Any]
    request_id: str = ""
    path: str = ""


Request = ChatRequest | EmbedRequest | RawRequest


def sent_json(model: str, body: object) -> bytes:
    """A request's body. Raises InvalidRequest for what JSON cannot hold: half a surrogate pair."""
    try:
        return pydantic_core.to_json(body)
    except ValueError as error:
        raise InvalidRequest(f"{model}: the input cannot be written as JSON ({error})") from error


@dataclass(frozen=True, slots=True)
class BatchPlace:
    """Where a request stands in a batch: ``number`` from 0, of ``count``; ``reference`` names it there."""

    number: int
    reference: str
    count: int


def batch_places(requests: Sequence[Request]) -> tuple[BatchPlace, ...]:
    """The places of all requests of a batch. Their ids are the references where these are distinct."""
    count = len(requests)
    ids = [request.request_id for request in requests]
    references = ids if all(ids) and len(set(ids)) == count else map(str, range(count))
    return tuple(BatchPlace(number, reference, count) for number, reference in enumerate(references))
