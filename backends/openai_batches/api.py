"""Files and Batches of a service: the calls that upload, make, look, list, read and remove."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import suppress
from tempfile import TemporaryFile
from typing import Any
from urllib.parse import quote

from llmdo.backends.errors import (
    BadReply,
    BatchUnclear,
    ConnectionFailed,
    InvalidRequest,
    LineError,
    ModelError,
    RateLimited,
    StopRun,
)
from llmdo.backends.http.base_url import BaseUrl
from llmdo.backends.http.client import Call, Transport
from llmdo.backends.http.network_errors import network_errors
from llmdo.backends.http.reply_json import mapping, read_json
from llmdo.backends.openai.replies import ReplyReader
from llmdo.backends.openai_batches.files import fetch_rows, write_form
from llmdo.backends.openai_batches.jobs import BatchJob, has_more, listed_jobs, read_job
from llmdo.backends.openai_batches.services import BatchService
from llmdo.backends.requests import sent_json

_NO_LANE = frozenset({404, 405, 501})  # how a server refuses routes that it does not have
_PAGES = 100  # of the list of batches


class BatchApi:
    """Calls a service at its base URL; every call raises what its reply means.

    Args:
        service: its row of the table.
        base: where it is.
        headers: sent with every call; they hold the key.
        transport: carries the calls.
        reader: reads refusals as those of other calls.
    """

    def __init__(
        self,
        service: BatchService,
        base: BaseUrl,
        headers: Mapping[str, str],
        transport: Transport,
        reader: ReplyReader,
    ) -> None:
        self._service = service
        self._base = base
        self._headers = headers
        self._transport = transport
        self._reader = reader

    async def upload(self, model: str, lines: Iterable[bytes], name: str) -> str:
        """The id of a new file of these lines. Nothing is billed for it, whatever becomes of it.

        Raises InvalidRequest where the service has no such thing.
        """
        fields = {"purpose": self._service.purpose, "file_name": name}
        with TemporaryFile() as file:  # nobody else can open it, and a kill leaves nothing
            form = {**self._headers, "content-type": await write_form(file, fields, name, lines)}
            try:
                body = await self._ask(Call("POST", self._base.at(self._service.upload), form, file=file), model)
            except ModelError as error:
                error.lost = False
                if error.status not in _NO_LANE:
                    raise
                text = f"{model}: {self._base.root} has no Batch API (HTTP {error.status}): use --mode sync"
                raise InvalidRequest(text, status=error.status) from error
        return str(mapping(body).get("id"))

    async def create(self, model: str, file: str, route: str, nonce: str) -> BatchJob:
        """A new batch of an uploaded file, which is removed where the service refuses it."""
        content = sent_json(model, self._service.creation(file, route, model, nonce))
        headers = {**self._headers, "content-type": "application/json"}
        try:
            return read_job(
                await self._ask(Call("POST", self._base.at(self._service.jobs), headers, content), model), model
            )
        except BadReply as error:  # it may have been made
            raise ConnectionFailed(error.message, lost=True) from error
        except (LineError, RateLimited, StopRun):
            await self.delete(file)
            raise

    async def job(self, model: str, batch: str) -> BatchJob:
        """A batch as it is now."""
        return read_job(await self._ask(self._call("GET", self._service.jobs, batch), model), model)

    async def cancel(self, model: str, batch: str) -> None:
        """Asks for the end of a batch."""
        await self._ask(self._call("POST", self._service.jobs, batch, "/cancel"), model)

    async def listed(self, model: str) -> AsyncGenerator[BatchJob, None]:
        """All batches, the newest first. Raises BatchUnclear where the list has no end."""
        seen: set[str] = set()
        last = ""
        for number in range(_PAGES):
            url = self._base.at(self._service.jobs).update_query(self._service.page(last, number))
            body = await self._ask(Call("GET", url, self._headers), model)
            jobs = listed_jobs(body, model)
            new = [job for job in jobs if job.name not in seen]
            for job in new:
                yield job
            if not has_more(body):
                return
            if not new:
                break
            seen.update(job.name for job in new)
            last = jobs[-1].name
        raise BatchUnclear(f"{model}: the list of batches of {self._service.name} cannot be read to its end")

    async def file_name(self, model: str, file: str) -> str | None:
        """By which a file was uploaded."""
        name = mapping(await self._ask(self._call("GET", "files", file), model)).get("filename")
        return name if isinstance(name, str) else None

    def rows(self, model: str, file: str) -> AsyncGenerator[Mapping[str, Any] | None, None]:
        """See fetch_rows."""
        call = self._call("GET", "files", file, "/content", most=sys.maxsize)
        return fetch_rows(self._transport, call, self._base.root, self._reader, model)

    async def delete(self, file: str) -> None:
        """Removes a file that was uploaded here, if the service lets us."""
        with suppress(ModelError), network_errors(self._base.root):
            await self._transport.send(self._call("DELETE", "files", file))

    def _call(self, method: str, kind: str, name: str, rest: str = "", **how: Any) -> Call:
        return Call(method, self._base.at(f"{kind}/{quote(name, safe='')}{rest}"), self._headers, **how)

    async def _ask(self, call: Call, model: str) -> Any:
        """The object or list that a reply holds. A batch may have errors, and is no refusal by that."""
        with network_errors(self._base.root):
            incoming = await self._transport.send(call)
        if incoming.ok:
            with suppress(ValueError):
                body = read_json(incoming.content)
                if isinstance(body, list) or not mapping(body).keys().isdisjoint(("id", "job", "data")):
                    return body
        return self._reader.read(incoming, model, lambda _: None)
