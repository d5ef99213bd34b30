"""Answers in the background of /v1/responses, each within a window: how they are asked for, and what they bring.

Source: developers.openai.com/api/docs/guides/background, and the types of the official client. They need
``background: true`` and the default service tier, are kept by the service, and are not streamed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from llmdo.backends.errors import ConnectionFailed, InvalidRequest, ModelError
from llmdo.backends.http.base_url import BaseUrl
from llmdo.backends.http.client import Call, Incoming, Transport
from llmdo.backends.http.network_errors import network_errors
from llmdo.backends.http.reply_json import mapping, read_json
from llmdo.backends.openai.raw import STILL_MADE, is_response, read_response
from llmdo.backends.openai.replies import ReplyReader
from llmdo.backends.responses import ChatResponse, RawResponse, Response

_NOT_KEPT = "background responses are kept by the service, and store is false"
# Counts of tokens: what a response calls them → a chat.completion.
_COUNTS = {
    "input_tokens": "prompt_tokens",
    "input_tokens_details": "prompt_tokens_details",
    "output_tokens": "completion_tokens",
    "output_tokens_details": "completion_tokens_details",
    "total_tokens": "total_tokens",
}


def in_background(body: Mapping[str, Any], window: str) -> dict[str, Any]:
    """A body of /v1/responses that is answered within a window."""
    options = {**mapping(body.get("background_options")), "completion_window": window}
    return {**body, "background": True, "background_options": options, "store": True}


def check_background(body: Mapping[str, Any], model: str) -> None:
    """Raises InvalidRequest for a body of /v1/responses that says what its background cannot do."""
    if body.get("store") is False:
        raise InvalidRequest(f"{model}: {_NOT_KEPT}")
    if body.get("stream"):
        raise InvalidRequest(f"{model}: background responses are not streamed, and stream is true")


def reply_fields(incoming: Incoming) -> Mapping[str, Any]:
    """The object of a reply; {} for any other one."""
    try:
        return mapping(read_json(incoming.content))
    except ValueError:
        return {}


def made_later(incoming: Incoming) -> str:
    """The id of a response that is not made yet; "" for any other reply."""
    fields = reply_fields(incoming) if incoming.ok else {}
    return str(fields.get("id") or "") if is_response(fields) and fields.get("status") in STILL_MADE else ""


def _as_completion(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a chat.completion also has, of a response: its id and time, token counts and log probabilities."""
    usage = mapping(fields.get("usage"))
    counts = {ours: usage[theirs] for theirs, ours in _COUNTS.items() if theirs in usage}
    found = {"id": fields.get("id"), "created": fields.get("created_at"), "service_tier": fields.get("service_tier")}
    logprobs = [one for part in _parts(fields) for one in part.get("logprobs") or []]
    choice = {"choices": [{"index": 0, "logprobs": {"content": logprobs, "refusal": None}}]} if logprobs else {}
    return {name: value for name, value in found.items() if value is not None} | {"usage": counts} | choice


def as_chat_response(response: RawResponse, warnings: Sequence[str]) -> ChatResponse:
    """A response as the answer to a chat; ``warnings``: what is besides not as asked."""
    said = read_response(response.result)
    body = {name: value for name, value in said.body.items() if name == "output"} | _as_completion(response.result)
    if refused := said.body.get("choices"):  # by the model
        body["choices"] = [{**first, **refused[0]} for first in body.get("choices") or [{}]]
    told = (*warnings, *(one.replace("max_output_tokens", "max_tokens") for one in response.warnings))
    same = {name: getattr(response, name) for name in ("usage", "model", "request_id", "details")}
    return replace(said, body=body, warnings=told, **same)


async def alone(
    incoming: Incoming, answered: Coroutine[Any, Any, Response], window: str
) -> AsyncIterator[tuple[int, Response | ModelError]]:
    """The one result of a response that has ended; none where somebody has ended it."""
    if reply_fields(incoming).get("status") == "cancelled":
        answered.close()
        return
    result: Response | ModelError
    try:
        result = await answered
    except ModelError as error:
        result = error
    result.lane = window
    yield 0, result


class BackgroundApi:
    """Looks at responses, and ends them. Raises what a reply means otherwise.

    Args:
        base: where the service is.
        headers: sent with every call; they hold the key.
        transport: carries the calls.
        reader: reads refusals as those of other calls.
    """

    def __init__(self, base: BaseUrl, headers: Mapping[str, str], transport: Transport, reader: ReplyReader) -> None:
        self._base, self._headers, self._transport, self._reader = base, headers, transport, reader

    async def look(self, model: str, response: str) -> Incoming | None:
        """The reply that has a response; None while it is not made. Raises ConnectionFailed for any other reply."""
        incoming = await self._send(Call("GET", self._base.at(f"responses/{quote(response, safe='')}"), self._headers))
        if not incoming.ok:
            self._reader.read(incoming, model, lambda _: None)  # raises
        if not is_response(reply_fields(incoming)):
            raise ConnectionFailed(f"{model}: the reply to a look at {response} is no response: look later", lost=False)
        return None if made_later(incoming) else incoming

    async def cancel(self, model: str, response: str) -> None:
        """Asks for the end of a response. Raises LineError for one that has ended."""
        url = self._base.at(f"responses/{quote(response, safe='')}/cancel")
        incoming = await self._send(Call("POST", url, self._headers))
        if not incoming.ok:
            self._reader.read(incoming, model, lambda _: None)

    async def _send(self, call: Call) -> Incoming:
        with network_errors(self._base.root):
            return await self._transport.send(call)


def _parts(fields: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    items = [mapping(item) for item in fields.get("output") or []]
    return [mapping(part) for item in items if item.get("type") == "message" for part in item.get("content") or []]
