"""A bucket of Cloudflare R2, through its S3 API, as an object store; and uploads in parts of one size."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from boto3.s3.transfer import TransferConfig
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from llmdo.settings.environment import r2_access
from llmdo.storage.errors import (
    AlreadyExists,
    BucketNotFound,
    ObjectChanged,
    ObjectNotFound,
    StorageError,
    StorageUnavailable,
)
from llmdo.storage.objects.r2_client import r2_errors, s3_client
from llmdo.storage.objects.store import R2_SCHEME, READ_CHUNK, ObjectInfo

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef, CopySourceTypeDef, ObjectIdentifierTypeDef

# Bytes. R2 takes at most 10,000 parts (so an upload ends at 80 GiB) of at least 5 MiB, all but the last of one size.
PART_SIZE = 8 << 20
# CopyObject takes 5 GiB at once; larger objects are copied in parts.
_COPY = TransferConfig(multipart_threshold=4 << 30, multipart_chunksize=1 << 30, use_threads=False)
_BODY_TRIES = 6  # in a row without reading a byte
_BROKEN = (BotoCoreError, HTTPError, OSError)  # what reading a body raises when the connection breaks


class R2Store:
    """An ObjectStore over a bucket. Cheap to open, so open it where it is used; it cannot be pickled."""

    keeps_metadata = True

    def __init__(self, bucket: str, client: S3Client) -> None:
        self.url = R2_SCHEME + bucket
        self._bucket = bucket
        self._client = client

    @classmethod
    def open(cls, bucket: str) -> R2Store:
        """A bucket at the environment's endpoint; makes no request. Raises MissingSettings."""
        return cls(bucket, s3_client(r2_access(way=False)))

    def __repr__(self) -> str:
        return f"R2Store({self.url!r})"

    def stat(self, key: str) -> ObjectInfo:
        """See ObjectStore."""
        try:
            with r2_errors(self._where(key)):
                head = self._client.head_object(Bucket=self._bucket, Key=key)
        except ObjectNotFound:
            self._check_bucket()
            raise
        metadata = {name.lower(): value for name, value in head["Metadata"].items()}  # they are header names
        return ObjectInfo(key, _etag(head), head["ContentLength"], head["LastModified"], metadata)

    def _check_bucket(self) -> None:
        """Raises BucketNotFound if that is why there is no object: the 404 of a HEAD does not say."""
        with r2_errors(self.url):
            try:
                self._client.head_bucket(Bucket=self._bucket)
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                    raise BucketNotFound(
                        f"{self.url}: there is no such bucket; create it, or correct the URL"
                    ) from error

    def read(self, key: str) -> tuple[bytes, str]:
        """See ObjectStore."""
        failures = 0
        while True:
            with r2_errors(self._where(key)):
                reply = self._client.get_object(Bucket=self._bucket, Key=key)
            try:
                with closing(reply["Body"]) as body:
                    return body.read(), _etag(reply)
            except _BROKEN as error:
                failures += 1
                self._after_break(key, failures, error)

    def stream(self, key: str, etag: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """See ObjectStore."""
        at, failures = start, 0
        while stop is None or at < stop:
            body = self._body(key, etag, at, stop)
            if body is None:
                return
            try:
                with closing(body):
                    for chunk in body.iter_chunks(READ_CHUNK):
                        at, failures = at + len(chunk), 0
                        yield chunk
                return
            except _BROKEN as error:
                failures += 1
                self._after_break(key, failures, error)

    def _body(self, key: str, etag: str, start: int, stop: int | None) -> Any:
        """The open body of one GET, or None where ``start`` is at or past the end."""
        part: dict[str, Any] = {}
        if start or stop is not None:  # a range would be refused for an empty object
            part["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
        with r2_errors(self._where(key)):
            try:
                reply = self._client.get_object(Bucket=self._bucket, Key=key, IfMatch=f'"{etag}"', **part)
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 416:
                    return None
                raise
        if part and "ContentRange" not in reply:
            reply["Body"].close()
            raise StorageUnavailable(f"{self._where(key)}: the reply ignores the range; check proxies before R2")
        return reply["Body"]

    def _after_break(self, key: str, failures: int, error: Exception) -> None:
        if failures >= _BODY_TRIES:
            raise StorageUnavailable(
                f"{self._where(key)}: the connection broke {failures} times at one byte; check the network, run again"
            ) from error
        time.sleep(random.uniform(0.0, 0.05 * 2.0**failures))  # noqa: S311  jitter, not a secret

    def put(self, key: str, body: bytes, metadata: Mapping[str, str] | None = None) -> str:
        """See ObjectStore; at most 5 GiB, metadata in ASCII and at most 8,192 bytes."""
        with r2_errors(self._where(key)):
            reply = self._client.put_object(Bucket=self._bucket, Key=key, Body=body, Metadata=metadata or {})
        return _etag(reply)

    def put_if_absent(self, key: str, body: bytes) -> str:
        """See ObjectStore. A retry after a lost reply finds this call's own object, and raises AlreadyExists."""
        try:
            with r2_errors(self._where(key)):
                reply = self._client.put_object(Bucket=self._bucket, Key=key, Body=body, IfNoneMatch="*")
        except ObjectChanged as error:
            raise AlreadyExists(f"{self._where(key)}: there is an object already") from error
        return _etag(reply)

    def put_if_match(self, key: str, body: bytes, etag: str) -> str:
        """See ObjectStore. A retry after a lost reply finds this call's own version, and raises ObjectChanged."""
        try:
            with r2_errors(self._where(key)):
                reply = self._client.put_object(Bucket=self._bucket, Key=key, Body=body, IfMatch=f'"{etag}"')
        except ObjectNotFound as error:
            raise ObjectChanged(f"{self._where(key)}: removed since it was read; read it again") from error
        return _etag(reply)

    def delete(self, key: str) -> None:
        """See ObjectStore."""
        with r2_errors(self._where(key)):
            self._client.delete_object(Bucket=self._bucket, Key=key)

    def delete_many(self, keys: Sequence[str]) -> None:
        """See ObjectStore. Where R2 refuses to remove several at once, they are removed one by one."""
        left = list(keys)
        with r2_errors(self._where(keys[0])):
            try:
                objects: list[ObjectIdentifierTypeDef] = [{"Key": key} for key in keys]
                reply = self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": objects, "Quiet": True})
                left = [error["Key"] for error in reply.get("Errors", ())]
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] not in (400, 501):
                    raise
        for key in left:  # each says by itself what is wrong
            self.delete(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See ObjectStore."""
        with r2_errors(self._where(prefix)):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix):
                for found in page.get("Contents", ()):
                    yield ObjectInfo(found["Key"], found["ETag"].strip('"'), found["Size"], found["LastModified"])

    def versions(self, prefix: str) -> Iterator[tuple[str, str]]:
        """See ObjectStore."""
        return ((info.key, info.etag) for info in self.list(prefix))

    def copy(self, key: str, target: R2Store, target_key: str) -> None:
        """Copies an object inside R2, with its metadata up to 4 GiB. Raises ObjectNotFound."""
        with r2_errors(f"{self._where(key)} to {target._where(target_key)}"):
            source: CopySourceTypeDef = {"Bucket": self._bucket, "Key": key}
            self._client.copy(source, target._bucket, target_key, Config=_COPY)

    def upload(self, key: str, content_type: str) -> R2Upload:
        """Starts an object that is written piece by piece."""
        return R2Upload(self._client, self._bucket, key, content_type)

    def _where(self, key: str) -> str:
        return f"{self.url}/{key}"


def _etag(reply: Any) -> str:
    return str(reply["ETag"]).strip('"')


class R2Upload:
    """An object of unknown size: one PUT up to PART_SIZE, else a multipart upload. It appears with ``finish``.

    A failed write removes the parts sent so far; every later call raises the same error.
    """

    def __init__(self, client: S3Client, bucket: str, key: str, content_type: str) -> None:
        self._client = client
        self._bucket, self._key = bucket, key
        self._content_type = content_type
        self._where = f"{R2_SCHEME}{bucket}/{key}"
        self._pending = bytearray()
        self._upload_id = ""
        self._parts: list[CompletedPartTypeDef] = []
        self._failure: Exception | None = None

    def write(self, data: bytes | memoryview) -> None:
        """Takes the next bytes, and sends every part that is full. Raises as R2Store.put."""
        with self._guarded():
            self._pending += data
            while len(self._pending) > PART_SIZE:  # at least one byte stays for the last part
                self._send(PART_SIZE)

    def finish(self) -> None:
        """Sends the rest; the object is there, whole. Raises as R2Store.put."""
        with self._guarded():
            if not self._upload_id:
                body = bytes(self._pending)
                self._client.put_object(Bucket=self._bucket, Key=self._key, Body=body, ContentType=self._content_type)
                return
            self._send(len(self._pending))
            self._client.complete_multipart_upload(
                Bucket=self._bucket, Key=self._key, UploadId=self._upload_id, MultipartUpload={"Parts": self._parts}
            )

    def _send(self, size: int) -> None:
        if not self._upload_id:
            created = self._client.create_multipart_upload(
                Bucket=self._bucket, Key=self._key, ContentType=self._content_type
            )
            self._upload_id = created["UploadId"]
        number = len(self._parts) + 1
        sent = self._client.upload_part(
            Bucket=self._bucket,
            Key=self._key,
            UploadId=self._upload_id,
            PartNumber=number,
            Body=bytes(self._pending[:size]),
        )
        self._parts.append({"PartNumber": number, "ETag": sent["ETag"]})
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
            if self._upload_id:
                with suppress(ClientError, BotoCoreError):  # R2 removes the parts after 7 days anyway
                    self._client.abort_multipart_upload(Bucket=self._bucket, Key=self._key, UploadId=self._upload_id)
            raise
