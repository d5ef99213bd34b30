"""A bucket of Cloudflare R2, through its S3 API, as an object store."""

from __future__ import annotations

import random
import re
import time
from base64 import b64encode
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import partial
from hashlib import md5
from itertools import islice, takewhile
from posixpath import commonprefix
from urllib.parse import unquote
from xml.sax.saxutils import escape

from urllib3.exceptions import HTTPError

from llmdo.settings.environment import r2_access
from llmdo.storage.errors import (
    AlreadyExists,
    BucketNotFound,
    ObjectChanged,
    ObjectNotFound,
    StorageUnavailable,
)
from llmdo.storage.objects.r2_client import R2Client, any_success, elements, has_etag, holds, r2_client
from llmdo.storage.objects.r2_connections import R2Reply
from llmdo.storage.objects.r2_errors import NOT_R2, R2Refused, r2_errors
from llmdo.storage.objects.r2_parts import R2Upload, copy_object
from llmdo.storage.objects.store import R2_SCHEME, READ_CHUNK, ObjectInfo
from llmdo.storage.paging import list_pages

_BODY_TRIES = 6  # in a row without reading a byte
_WHOLE = 1 << 16  # bytes of a range that is read before any of it is passed on
_BROKEN = (HTTPError, OSError)  # what reading a body raises when the connection breaks
_METADATA = "x-amz-meta-"
# How many keys a page that is to show several prefixes may have for each of them, and at most: a new file has none, and
# one that is done and lies between them two.
_NEIGHBOURS, _MOST_KEYS = 8, 1000
_FOR_XML = re.compile(r"[^\x00-\x1f\ud800-\udfff\ufffe\uffff]*")
_LISTING, _DELETION = holds("ListBucketResult"), holds("DeleteResult")


class R2Store:
    """An ObjectStore over a bucket. Cheap to open, so open it where it is used; it cannot be pickled."""

    keeps_metadata = True

    def __init__(self, bucket: str, client: R2Client) -> None:
        self.url = R2_SCHEME + bucket
        self._bucket = bucket
        self._client = client

    @classmethod
    def open(cls, bucket: str) -> R2Store:
        """A bucket at the environment's endpoint; makes no request. Raises MissingSettings."""
        return cls(bucket, r2_client(r2_access(way=False)))

    def __repr__(self) -> str:
        return f"R2Store({self.url!r})"

    def now(self) -> float:
        """See ObjectStore."""
        return self._client.now()

    def stat(self, key: str) -> ObjectInfo:
        """See ObjectStore."""
        try:
            with r2_errors(self._where(key)):
                head = self._client.call(_has_properties, "HEAD", self._bucket, key).headers
        except ObjectNotFound:
            self._check_bucket()
            raise
        metadata = {n.lower().removeprefix(_METADATA): v for n, v in head.items() if n.lower().startswith(_METADATA)}
        modified = parsedate_to_datetime(head["last-modified"])
        return ObjectInfo(key, head["etag"].strip('"'), int(head["content-length"]), modified, metadata)

    def _check_bucket(self) -> None:
        """Raises BucketNotFound if that is why there is no object: the 404 of a HEAD does not say."""
        with r2_errors(self.url):
            try:
                self._client.call(any_success, "HEAD", self._bucket)
            except R2Refused as refused:
                if refused.status == 404:
                    raise BucketNotFound(
                        f"{self.url}: there is no such bucket; create it, or correct the URL"
                    ) from refused

    def read(self, key: str) -> tuple[bytes, str]:
        """See ObjectStore."""
        with r2_errors(self._where(key)):
            reply = self._client.call(has_etag, "GET", self._bucket, key)
        return reply.data, _etag(reply)

    def stream(self, key: str, etag: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """See ObjectStore."""
        at, failures = start, 0
        while stop is None or at < stop:
            reply = self._part(key, etag, at, stop)
            if reply is None:
                return
            try:
                with closing(reply):
                    for chunk in reply.stream(READ_CHUNK, decode_content=False):
                        at, failures = at + len(chunk), 0
                        yield chunk
                return
            except _BROKEN as error:
                failures += 1
                self._after_break(key, failures, error)

    def _part(self, key: str, etag: str, start: int, stop: int | None) -> R2Reply | None:
        """A GET whose body is not read yet, or None where ``start`` is at or past the end."""
        headers = {"if-match": f'"{etag}"'}
        streamed = stop is None or stop - start > _WHOLE
        if start or stop is not None:  # a range would be refused for an empty object
            headers["range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
        with r2_errors(self._where(key)):
            try:
                reply = self._client.call(has_etag, "GET", self._bucket, key, headers=headers, streamed=streamed)
            except R2Refused as refused:
                if refused.status == 416:
                    return None
                raise
        if "range" in headers and "content-range" not in reply.headers:
            reply.close()
            raise StorageUnavailable(f"{self._where(key)}: the reply ignores the range; check proxies before R2")
        return reply

    def _after_break(self, key: str, failures: int, error: Exception) -> None:
        if failures >= _BODY_TRIES:
            raise StorageUnavailable(
                f"{self._where(key)}: the connection broke {failures} times at one byte; check the network, run again"
            ) from error
        time.sleep(random.uniform(0.0, 0.05 * 2.0**failures))  # noqa: S311  jitter, not a secret

    def put(self, key: str, body: bytes, metadata: Mapping[str, str] | None = None) -> str:
        """See ObjectStore; at most 5 GiB, metadata in ASCII and at most 8,192 bytes."""
        headers = {_METADATA + name.lower(): value.strip() for name, value in (metadata or {}).items()}
        with r2_errors(self._where(key)):
            return _etag(self._client.call(has_etag, "PUT", self._bucket, key, headers=headers, body=body))

    def put_if_absent(self, key: str, body: bytes) -> str:
        """See ObjectStore. A retry after a lost reply finds this call's own object, and raises AlreadyExists."""
        headers = {"if-none-match": "*"}
        try:
            with r2_errors(self._where(key)):
                return _etag(self._client.call(has_etag, "PUT", self._bucket, key, headers=headers, body=body))
        except ObjectChanged as error:
            raise AlreadyExists(f"{self._where(key)}: there is an object already") from error

    def put_if_match(self, key: str, body: bytes, etag: str) -> str:
        """See ObjectStore. A retry after a lost reply finds this call's own version, and raises ObjectChanged."""
        headers = {"if-match": f'"{etag}"'}
        try:
            with r2_errors(self._where(key)):
                return _etag(self._client.call(has_etag, "PUT", self._bucket, key, headers=headers, body=body))
        except ObjectNotFound as error:
            raise ObjectChanged(f"{self._where(key)}: removed since it was read; read it again") from error

    def delete(self, key: str) -> None:
        """See ObjectStore."""
        with r2_errors(self._where(key)):
            self._client.call(any_success, "DELETE", self._bucket, key)

    def delete_many(self, keys: Sequence[str]) -> None:
        """See ObjectStore. Where R2 refuses to remove several at once, they are removed one by one."""
        left = list(keys)
        with r2_errors(self._where(keys[0])):
            try:
                left = self._delete_at_once(keys)
            except R2Refused as refused:
                if refused.status not in (400, 501):
                    raise
        for key in left:  # each says by itself what is wrong
            self.delete(key)

    def _delete_at_once(self, keys: Sequence[str]) -> list[str]:
        """The keys that are left: refused, or with characters that XML cannot hold."""
        named = [key for key in keys if _FOR_XML.fullmatch(key)]
        objects = "".join(f"<Object><Key>{escape(key)}</Key></Object>" for key in named)
        body = f"<Delete><Quiet>true</Quiet>{objects}</Delete>".encode()
        headers = {"content-md5": b64encode(md5(body, usedforsecurity=False).digest()).decode()}
        left = [key for key in keys if key not in named]
        if named:
            reply = self._client.call(_DELETION, "POST", self._bucket, None, {"delete": ""}, headers, body)
            left += [error.findtext("Key", "") for error in elements(reply).iter("Error")]
        return left

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See ObjectStore. Pages are fetched side by side, see ``list_pages``."""
        return list_pages(partial(self._page, prefix), prefix)

    def list_near(self, prefixes: Sequence[str]) -> Sequence[Sequence[ObjectInfo] | None]:
        """See ObjectStore. One page from the first prefix on; a short one, since others may lie between."""
        near = [prefix for prefix in prefixes if prefix.isascii()]  # for these the order of keys is beyond doubt
        if not near:
            return [None] * len(prefixes)
        most = _MOST_KEYS if len(near) == 1 else min(len(near) * _NEIGHBOURS, _MOST_KEYS)
        limits = {"start-after": min(near)[:-1], "max-keys": str(most)}
        page, following = self._page(commonprefix(near), limits)
        keys = [info.key for info in page]
        end = "".join(keys[-1:]) if following else None  # all that comes before this key is there

        def below(prefix: str) -> Sequence[ObjectInfo] | None:
            if prefix not in near or (end is not None and (end < prefix or end.startswith(prefix))):
                return None
            return [*takewhile(lambda info: info.key.startswith(prefix), islice(page, bisect_left(keys, prefix), None))]

        return [below(prefix) for prefix in prefixes]

    def _page(self, prefix: str, more: Mapping[str, str]) -> tuple[Sequence[ObjectInfo], str]:
        query = {"list-type": "2", "prefix": prefix, "encoding-type": "url", **more}
        with r2_errors(self._where(prefix)):
            return _page(self._client.call(_LISTING, "GET", self._bucket, None, query))

    def versions(self, prefix: str) -> Iterator[tuple[str, str]]:
        """See ObjectStore."""
        return ((info.key, info.etag) for info in self.list(prefix))

    def copy(self, key: str, target: R2Store, target_key: str) -> None:
        """Copies an object inside R2, with its metadata up to 4 GiB. Raises ObjectNotFound."""
        with r2_errors(f"{self._where(key)} to {target._where(target_key)}"):
            copy_object(self._client, (self._bucket, key), (target._bucket, target_key))

    def upload(self, key: str, content_type: str) -> R2Upload:
        """Starts an object that is written piece by piece."""
        return R2Upload(self._client, self._bucket, key, content_type)

    def _where(self, key: str) -> str:
        return f"{self.url}/{key}"


def _has_properties(reply: R2Reply) -> str | None:
    names = ("etag", "content-length", "last-modified")
    return None if all(name in reply.headers for name in names) else NOT_R2


def _page(reply: R2Reply) -> tuple[list[ObjectInfo], str]:
    """The objects of one page of a listing, and what asks for the next page, or ""."""
    page = elements(reply)
    encoded = page.findtext("EncodingType") == "url"  # XML cannot hold all characters of a key
    found = []
    try:
        for child in page.iter("Contents"):
            field = {element.tag: element.text or "" for element in child}
            key = unquote(field["Key"]) if encoded else field["Key"]
            modified = datetime.fromisoformat(field["LastModified"])
            found.append(ObjectInfo(key, field["ETag"].strip('"'), int(field["Size"]), modified))
    except (KeyError, ValueError) as error:
        raise R2Refused(500, NOT_R2, f"a listing without {error}") from error
    following = page.findtext("NextContinuationToken", "") if page.findtext("IsTruncated") == "true" else ""
    if page.findtext("IsTruncated") == "true" and not following:
        raise R2Refused(500, NOT_R2, "a listing that cannot be continued")
    return found, following


def _etag(reply: R2Reply) -> str:
    return reply.headers["etag"].strip('"')
