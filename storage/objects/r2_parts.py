"""Objects of R2 that are written in parts: uploads of unknown size, and copies of large objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from urllib.parse import quote

from llmdo.storage.errors import StorageError
from llmdo.storage.objects.r2_client import R2Client, any_success, elements, has_etag, holds
from llmdo.storage.objects.r2_errors import R2Refused, Unreachable, r2_errors
from llmdo.storage.objects.store import R2_SCHEME

# Bytes. R2 takes at most 10,000 parts (so an upload ends at 80 GiB) of at least 5 MiB, all but the last of one size.
PART_SIZE = 8 << 20
COPIED_AT_ONCE = 4 << 30  # CopyObject takes 5 GiB
COPIED_PART = 1 << 30
_NOTHING: Mapping[str, str] = {}

_CREATED, _COMPLETED = holds("InitiateMultipartUploadResult"), holds("CompleteMultipartUploadResult")
_COPIED, _PART_COPIED = holds("CopyObjectResult"), holds("CopyPartResult")


class _Parts:
    """A multipart upload: parts in their order, and then the whole object, or nothing."""

    def __init__(self, client: R2Client, bucket: str, key: str, headers: Mapping[str, str]) -> None:
        self._client, self._bucket, self._key = client, bucket, key
        created = client.call(_CREATED, "POST", bucket, key, {"uploads": ""}, headers)
        self._id = elements(created).findtext("UploadId", "")
        self._etags: list[str] = []

    def send(self, body: bytes) -> None:
        reply = self._client.call(has_etag, "PUT", self._bucket, self._key, self._next(), body=body)
        self._etags.append(reply.headers["etag"])

    def copy(self, source: Mapping[str, str]) -> None:
        reply = self._client.call(_PART_COPIED, "PUT", self._bucket, self._key, self._next(), source)
        self._etags.append(elements(reply).findtext("ETag", ""))

    def complete(self) -> None:
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"
            for number, etag in enumerate(self._etags, 1)
        )
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        self._client.call(_COMPLETED, "POST", self._bucket, self._key, {"uploadId": self._id}, body=body)

    def abort(self) -> None:
        with suppress(R2Refused, Unreachable):  # R2 removes the parts after 7 days anyway
            self._client.call(any_success, "DELETE", self._bucket, self._key, {"uploadId": self._id})

    def _next(self) -> dict[str, str]:
        return {"partNumber": str(len(self._etags) + 1), "uploadId": self._id}


def copy_object(client: R2Client, source: tuple[str, str], target: tuple[str, str]) -> None:
    """Copies (bucket, key) to (bucket, key) inside R2; above COPIED_AT_ONCE in parts, and without metadata.

    Raises R2Refused, Unaskable and Unreachable.
    """
    head = client.call(has_etag, "HEAD", *source).headers
    size = int(head.get("content-length", 0))
    named = {"x-amz-copy-source": quote("/".join(source), safe="/~"), "x-amz-copy-source-if-match": head["etag"]}
    if size <= COPIED_AT_ONCE:
        client.call(_COPIED, "PUT", *target, _NOTHING, named)
        return
    parts = _Parts(client, *target, _NOTHING)
    try:
        for start in range(0, size, COPIED_PART):
            stop = min(start + COPIED_PART, size)
            parts.copy({**named, "x-amz-copy-source-range": f"bytes={start}-{stop - 1}"})
        parts.complete()
    except BaseException:
        parts.abort()
        raise


class R2Upload:
    """An object of unknown size: one PUT up to PART_SIZE, else a multipart upload. It appears with ``finish``.

    A failed write removes the parts sent so far; every later call raises the same error.
    """

    def __init__(self, client: R2Client, bucket: str, key: str, content_type: str) -> None:
        self._client, self._bucket, self._key = client, bucket, key
        self._headers = {"content-type": content_type}
        self._where = f"{R2_SCHEME}{bucket}/{key}"
        self._pending = bytearray()
        self._parts: _Parts | None = None
        self._failure: Exception | None = None
        self._finished = False

    def write(self, data: bytes | memoryview) -> None:
        """Takes the next bytes, and sends every part that is full. Raises as R2Store.put."""
        with self._guarded():
            self._pending += data
            while len(self._pending) > PART_SIZE:  # at least one byte stays for the last part
                self._send(PART_SIZE)

    def finish(self) -> None:
        """Sends the rest; the object is there, whole. Raises as R2Store.put."""
        with self._guarded():
            if self._parts is None:
                body = bytes(self._pending)
                self._client.call(has_etag, "PUT", self._bucket, self._key, _NOTHING, self._headers, body)
            else:
                self._send(len(self._pending))
                self._parts.complete()
            self._finished = True

    def abort(self) -> None:
        """Removes what was sent; the object that was there stays. Harmless after ``finish``."""
        if self._parts and not self._finished:
            self._parts.abort()
        self._finished = True

    def _send(self, size: int) -> None:
        self._parts = self._parts or _Parts(self._client, self._bucket, self._key, self._headers)
        self._parts.send(bytes(self._pending[:size]))
        del self._pending[:size]

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        if self._failure:
            raise self._failure
        try:
            with r2_errors(self._where):
                yield
        except StorageError as error:
            self._failure = error
            if self._parts:
                self._parts.abort()
            raise
