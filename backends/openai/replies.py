"""Whole replies of services that speak OpenAI's API, Workers AI among them: the JSON, or the error that they mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from llmdo.backends.errors import ConnectionFailed, ModelError, call_known
from llmdo.backends.http.client import Incoming
from llmdo.backends.http.reply_json import read_json
from llmdo.backends.openai.shapes import choice_error, first_choice, reported_usage
from llmdo.backends.refusals.body import quoted

ReadJson = Callable[[bytes, Callable[[str], None]], Any]


@dataclass(frozen=True, slots=True)
class ReplyReader:
    """Reads the replies of one service.

    Attributes:
        address: what names the base URL, for errors.
        is_refusal: whether a JSON body, or an event of a stream, is an error whatever its status.
        refusal: the error that a reply with this body means for a model.
        request_id: the provider's id of a call, by the headers.
        unwrap: the result inside an envelope.
    """

    address: str
    is_refusal: Callable[[object], bool]
    refusal: Callable[[Incoming, object, str], ModelError]
    request_id: Callable[[Mapping[str, str]], str | None]
    unwrap: Callable[[Any], Any] = lambda body: body

    def read(self, incoming: Incoming, model: str, warn: Callable[[str], None], parse: ReadJson = read_json) -> Any:
        """The result of a whole reply. Raises what the reply means otherwise, never anything but a ModelError."""
        try:
            body = parse(incoming.content, warn)
        except ValueError as error:
            if incoming.ok:
                raise self._no_json(incoming, model) from error
            body = incoming.content.decode("utf-8", "replace")
        result = self.unwrap(body)
        if not incoming.ok or self.is_refusal(body):
            refused: ModelError | None = self.refusal(incoming, body, model)
        else:
            refused = choice_error(first_choice(result), lambda said: self.refused(incoming, said, model))
        if refused is not None:
            refused.usage = reported_usage(result)  # a model may have worked before it failed
            raise refused
        return result

    def reading(self, incoming: Incoming, result: Any) -> AbstractContextManager[None]:
        """While a result is read: errors get the call's id, and what the reply says that it used."""
        return call_known(request_id=self.request_id(incoming.headers), usage=lambda: reported_usage(result))

    def refused(self, incoming: Incoming, event: object, model: str) -> ModelError | None:
        """The error that an event of a stream, or the ``error`` of a choice, means; None where it is not one."""
        return self.refusal(incoming, event, model) if self.is_refusal(event) else None

    def _no_json(self, incoming: Incoming, model: str) -> ModelError:
        kind = incoming.content_type
        if "json" in kind or not incoming.content:
            text = f"{model}: the reply broke off after {len(incoming.content)} bytes: ask again"
        else:
            text = f"{model}: the reply is {kind or 'of no type'}, not JSON: check {self.address} and any proxy between"
            text += quoted(incoming.content)
        # Another server's page in the place of the model's: what stands between may be gone in a moment.
        identity = self.request_id(incoming.headers)
        return ConnectionFailed(text, status=incoming.status, request_id=identity)
