"""The HTTP side of Workers AI: where a call goes and with which headers, also by an AI Gateway; what a reply is.

Sources: developers.cloudflare.com/api (POST /accounts/{account_id}/ai/run/{model}), workers-ai/configuration/
open-ai-compatibility, ai-gateway/usage/rest-api and ai-gateway/usage/providers/workersai.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

from yarl import URL

from llmdo.backends.errors import ModelError, ModelNotFound
from llmdo.backends.http.base_url import base_url
from llmdo.backends.http.client import Call, Incoming, Network, Transport
from llmdo.backends.http.network_errors import network_errors
from llmdo.backends.http.reply_json import amount, read_json
from llmdo.backends.openai.replies import ReadJson, ReplyReader
from llmdo.backends.openai.stream import StreamHead
from llmdo.backends.requests import sent_json
from llmdo.backends.workers_ai.errors import PROVIDER, is_refusal, refusal, request_id
from llmdo.backends.workers_ai.models import Shape
from llmdo.backends.workers_ai.shapes import Reply, unwrap
from llmdo.settings.environment import AiGateway, CloudflareAccount

_MODEL = re.compile(r"@?[\w-][\w.:-]*(/[\w-][\w.:-]*)*", re.ASCII)  # it stands unescaped in the path: no "..", no "?"
_JSON = {"content-type": "application/json"}


class Api:
    """One account's Workers AI. Every coroutine raises ModelError, and nothing else.

    With a gateway, all calls but batches and lists go through it. Its own retries are off: they would multiply ours.
    ``reader`` reads the replies that ``transport`` brings.
    """

    def __init__(
        self,
        account: CloudflareAccount,
        gateway: AiGateway | None,
        transport: Transport | None,
        clock: Callable[[], float],
        timeout_s: float,
    ) -> None:
        self._root = base_url(PROVIDER, f"{account.url}/ai").root
        # The dashboard shows a gateway's URL, a provider's address of its own; an id is used with the usual address.
        own = f"{gateway.name.rstrip('/')}/workers-ai" if gateway and "://" in gateway.name else ""
        self._gateway_url = own and base_url(PROVIDER, own).root
        self._calls = self._gateway_url or self._root
        self._gateway = gateway
        self._key = {"authorization": f"Bearer {account.token}"}
        self._headers = {**self._key, **_JSON, **(gateway_headers(gateway) if gateway else {})}
        self._clock = clock
        self.transport = transport or Network(self._gateway_url or account.base_url, timeout_s)
        self.reader = ReplyReader("CLOUDFLARE_BASE_URL", is_refusal, self._refusal, request_id, unwrap)

    async def aclose(self) -> None:
        """Closes the connections."""
        await self.transport.aclose()

    def call(
        self, model: str, body: Mapping[str, Any], shape: Shape, *, about: str, fresh: bool, session: str = ""
    ) -> Call:
        """A call of a model. ``about``: the request's id, for the gateway's log; ``fresh``: not from its cache.

        Calls of one ``session`` go to where the cache of their beginning is (workers-ai/features/prompt-caching).
        """
        made = self._call(model, body, shape, about=about, fresh=fresh)
        return replace(made, headers={**made.headers, "x-session-affinity": session}) if session else made

    def _call(self, model: str, body: Mapping[str, Any], shape: Shape, *, about: str, fresh: bool) -> Call:
        url = _run_url(self._calls, model)
        if shape == "chat":
            url = _url(f"{self._calls}/v1/chat/completions")
            return self._post(url, {**body, "model": model}, model, about, fresh=fresh)
        if self._gateway and not self._gateway_url:  # this one knows the header, the one with the model's name may not
            return self._post(_url(f"{self._root}/run"), {"model": model, "input": body}, model, about, fresh=fresh)
        return self._post(url, body, model, about, fresh=fresh)

    def queue(self, model: str, content: bytes) -> Call:
        """A call of the asynchronous batch API; never by a gateway, which is not documented to have it."""
        url = _url(f"{_run_url(self._root, model)}?queueRequest=true")
        return Call("POST", url, {**self._key, **_JSON}, content)

    def get(self, path: str, **query: str | int) -> Call:
        """A question about models: ``models/search``, ``models/schema``."""
        return Call("GET", _url(f"{self._root}/{path}?{urlencode(query)}"), self._key)

    async def send(self, outgoing: Call) -> Incoming:
        """The whole reply."""
        with network_errors(outgoing.url):
            return await self.transport.send(outgoing)

    async def ask(self, outgoing: Call, model: str) -> Reply:
        """Sends, and reads the reply's result."""
        return self.read(await self.send(outgoing), model)

    def read(self, incoming: Incoming, model: str, parse: ReadJson = read_json) -> Reply:
        """The result of a whole reply; raises what the reply means otherwise."""
        warnings: list[str] = []
        result = self.reader.read(incoming, model, warnings.append, parse)
        return self.reply(incoming, result, tuple(warnings))

    def reply(self, incoming: Incoming, result: Any, warnings: tuple[str, ...] = ()) -> Reply:
        """A result with what the headers say."""
        headers = incoming.headers
        details = {} if not self._gateway else _gateway_details(headers)
        return Reply(result, request_id(headers), _neurons(headers), details, warnings)

    def stream_head(self, incoming: Incoming, model: str, max_tokens: int, warnings: Sequence[str]) -> StreamHead:
        """What a stream's headers say, and what the call that it answers was."""
        reply, told = self.reply(incoming, None), tuple(warnings)
        return StreamHead(
            *(model, reply.request_id, reply.details, told),
            native=True,
            neurons=reply.neurons,
            max_tokens=max_tokens,
        )

    def _refusal(self, incoming: Incoming, body: object, model: str) -> ModelError:
        return refusal(incoming.status, incoming.headers, body, model, self._clock())

    def _post(self, url: URL, body: object, model: str, about: str, *, fresh: bool) -> Call:
        headers = self._headers
        if self._gateway and about:
            headers = {**headers, "cf-aig-metadata": json.dumps({"request_id": about})}
        if self._gateway and fresh:
            headers = {**headers, "cf-aig-skip-cache": "true"}
        return Call("POST", url, headers, sent_json(model, body))


def gateway_headers(gateway: AiGateway) -> dict[str, str]:
    """What leads a call through a gateway, whose own retries are off."""
    headers = {"cf-aig-max-attempts": "1"}
    if "://" not in gateway.name:
        headers["cf-aig-gateway-id"] = gateway.name
    if gateway.token:
        headers["cf-aig-authorization"] = f"Bearer {gateway.token}"
    return headers


def _gateway_details(headers: Mapping[str, str]) -> dict[str, str]:
    told = {"cache_status": headers.get("cf-aig-cache-status"), "log_id": headers.get("cf-aig-log-id")}
    return {name: value for name, value in told.items() if value}


@functools.lru_cache(maxsize=256)  # parsing a URL is a sixth of a call's CPU time
def _run_url(root: str, model: str) -> URL:
    if not _MODEL.fullmatch(model):
        raise ModelNotFound(f"{model!r} is not the name of a model: write one such as @cf/baai/bge-m3")
    return _url(f"{root}/run/{model}")


@functools.lru_cache(maxsize=256)
def _url(text: str) -> URL:
    return URL(text, encoded=True)


def _neurons(headers: Mapping[str, str]) -> float | None:
    try:
        return amount(float(headers["cf-ai-neurons"]))
    except (KeyError, ValueError):
        return None
