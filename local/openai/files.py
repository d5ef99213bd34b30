"""Uploaded files, and those that batches write: streamed to and from a folder, and kept while the server runs.

Limits: developers.openai.com/api/reference/resources/files. Megabytes are read as millions of bytes, the stricter way.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import BodyPartReader, ClientPayloadError, MultipartReader, StreamReader
from aiohttp.http_exceptions import HttpProcessingError

from llmdo.local.openai.pages import cursor_page
from llmdo.local.settings import OPENAI_BASE
from llmdo.local.wire import HttpCall, HttpReply, OpenAIRefused
from llmdo.settings.private import make_folder

UPLOADS = f"{OPENAI_BASE}/files"
MAX_FILE_BYTES = 512_000_000
_CHUNK = 1 << 18
_BATCH_FILES_KEPT_S = 30 * 86_400
_PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
_Fields = dict[str, str]


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file with its name as it was given, and where its bytes are."""

    id: str
    purpose: str
    filename: str
    size: int
    created_at: int
    expires_at: int | None
    path: Path

    def as_json(self) -> dict[str, Any]:
        """The ``file`` object."""
        return {
            "object": "file",
            "id": self.id,
            "purpose": self.purpose,
            "filename": self.filename,
            "bytes": self.size,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "status": "processed",
            "status_details": None,
        }


class StoredFiles:
    """The files of one key. ``clock`` returns seconds since 1970."""

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        make_folder(folder)
        self._folder = folder
        self._clock = clock
        self._files: dict[str, StoredFile] = {}

    async def upload(self, call: HttpCall) -> StoredFile:
        """Keeps the file of a multipart body. Raises OpenAIRefused."""
        if call.stream is None or "multipart/form-data" not in call.headers.get("Content-Type", ""):
            raise OpenAIRefused(400, "The body must be multipart/form-data.")
        path = self.draft()
        try:
            fields, size = await _received(call, call.stream, path)
            purpose, filename = fields.get("purpose", ""), fields.get("filename", "")
            _check(purpose, filename, size)
            seconds = fields.get("expires_after[seconds]", "")
            if seconds and not (seconds.isdecimal() and 3600 <= int(seconds) <= 2_592_000):
                raise OpenAIRefused(400, "'expires_after.seconds' must be from 3600 to 2592000.", "invalid_value")
        except BaseException:  # the client may be gone
            path.unlink(missing_ok=True)
            raise
        kept = int(seconds) if seconds else _BATCH_FILES_KEPT_S if purpose == "batch" else None
        return self.keep(path, purpose, filename, kept)

    def draft(self) -> Path:
        """A path for a file that is being written."""
        return self._folder / f"file-{secrets.token_hex(11)}"

    def keep(self, path: Path, purpose: str, filename: str, seconds: int | None) -> StoredFile:
        """Makes a written draft a file, which is said to expire after ``seconds``."""
        now = int(self._clock())
        expires = None if seconds is None else now + seconds
        made = StoredFile(path.name, purpose, filename, path.stat().st_size, now, expires, path)
        self._files[made.id] = made
        return made

    def find(self, name: object) -> StoredFile:
        """The file of an id. Raises OpenAIRefused."""
        found = self._files.get(str(name))
        if found is None:
            raise OpenAIRefused(404, f"No such File object: {name}", param="id")
        return found

    def delete(self, name: str) -> dict[str, Any]:
        """Removes a file; who is reading it reads on. Raises OpenAIRefused."""
        found = self.find(name)
        del self._files[name]
        found.path.unlink()
        return {"object": "file", "id": name, "deleted": True}

    def listing(self, call: HttpCall) -> dict[str, Any]:
        """A page of the files, newest first unless the call wants otherwise. Raises OpenAIRefused."""
        purpose = call.parameter("purpose")
        found = [one.as_json() for one in self._files.values() if purpose in ("", one.purpose)]
        return cursor_page(found if call.parameter("order") == "asc" else found[::-1], call, 10_000, 10_000)

    def content(self, name: str) -> HttpReply:
        """The bytes of a file. Raises OpenAIRefused."""
        found = self.find(name)
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(found.size)}
        return HttpReply(200, headers=headers, pieces=_pieces(found.path))


def _check(purpose: str, filename: str, size: int) -> None:
    if not filename:
        raise OpenAIRefused(400, "Missing required parameter: 'file'.", "missing_required_parameter", "file")
    if purpose not in _PURPOSES:
        message = f"'{purpose}' is not one of {list(_PURPOSES)} - 'purpose'"
        raise OpenAIRefused(400, message, param="purpose")
    if size > MAX_FILE_BYTES:
        raise OpenAIRefused(413, f"The file is {size} bytes; at most {MAX_FILE_BYTES} are allowed.", param="file")
    if purpose == "batch" and not filename.endswith(".jsonl"):
        raise OpenAIRefused(400, "Invalid file format for Batch API. Must be .jsonl")


async def _received(call: HttpCall, stream: StreamReader, path: Path) -> tuple[_Fields, int]:
    """The fields of the body, with the file's name, and the file's size."""
    fields: _Fields = {}
    size = 0
    try:
        reader = MultipartReader(call.headers, stream)
        while (part := await reader.next()) is not None:
            if not isinstance(part, BodyPartReader):
                continue
            if part.name != "file":
                fields[part.name or ""] = (await part.text())[:1000]
                continue
            fields["filename"] = part.filename or "upload"
            with path.open("wb") as file:
                while chunk := await part.read_chunk(_CHUNK):
                    size += len(chunk)
                    file.write(chunk)
    except (ValueError, ClientPayloadError, HttpProcessingError) as error:
        raise OpenAIRefused(400, f"The multipart body cannot be read: {error}") from error
    return fields, size


async def _pieces(path: Path) -> AsyncGenerator[bytes, None]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk
