"""Objects in R2 or in a local folder, behind one small protocol: whole puts, conditional puts, ranged reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from llmdo.settings.environment import MissingSettings, whole_path
from llmdo.storage.errors import InvalidLocation

R2_SCHEME = "r2://"
# Larger than R2's 1,000-key list page needs; a read of a range is cut into chunks of this size. Bytes.
READ_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object as a listing or a head shows it.

    Attributes:
        key: full key in its bucket, or path below the store's folder, with '/'.
        etag: without quotes; local files: ``<size>-<mtime in ns>``.
        size: bytes.
        metadata: user metadata; a listing leaves it empty, only ``stat`` fills it.
    """

    key: str
    etag: str
    size: int
    modified: datetime
    metadata: Mapping[str, str] = field(default_factory=dict)


class ObjectStore(Protocol):
    """A bucket, or a folder that behaves like one. Thread-safe. Every method may raise AccessDenied,
    BucketNotFound or StorageUnavailable; the other errors are named where they arise.
    """

    url: str  # "r2://bucket" or the folder's absolute path; open_store(url) gives an equal store
    keeps_metadata: bool  # False: put() drops metadata; its content must be read from the body

    def now(self) -> float:
        """The store's clock, to within a second or two, as its replies tell it; this machine's where they do not.

        Seconds since 1970. Makes no request.
        """

    def stat(self, key: str) -> ObjectInfo:
        """One object's properties, with its metadata. Raises ObjectNotFound."""

    def read(self, key: str) -> tuple[bytes, str]:
        """A whole small object and its etag. Raises ObjectNotFound."""

    def stream(self, key: str, etag: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The bytes [start, stop) of exactly this version, in chunks of at most READ_CHUNK.

        Resumes at the same byte when a connection breaks. Yields nothing if ``start`` is at or past the end. Raises
        ObjectNotFound (deleted) or ObjectChanged (overwritten), also in the middle.
        """

    def put(self, key: str, body: bytes, metadata: Mapping[str, str] | None = None) -> str:
        """Writes or replaces a whole object; readers see the old one or the new one. Returns its etag."""

    def put_if_absent(self, key: str, body: bytes) -> str:
        """Writes an object unless there is one. Returns the etag. Raises AlreadyExists.

        After a lost reply, a success may look like AlreadyExists: callers that care read back a nonce.
        """

    def put_if_match(self, key: str, body: bytes, etag: str) -> str:
        """Replaces exactly this version. Returns the new etag. Raises ObjectChanged, also if it was deleted."""

    def delete(self, key: str) -> None:
        """Removes an object; a missing one is not an error."""

    def delete_many(self, keys: Sequence[str]) -> None:
        """Removes 1 to 1,000 objects, in R2 by one operation; missing ones are not an error."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object whose key starts with ``prefix``, in the order of keys, page by page."""

    def list_near(self, prefixes: Sequence[str]) -> Sequence[Sequence[ObjectInfo] | None]:
        """What ``list`` finds for each of several prefixes, with at most one operation.

        None for those that it cannot show whole: list them one by one.
        """

    def versions(self, prefix: str) -> Iterator[tuple[str, str]]:
        """The keys that ``list`` finds, with their etags, or "" if the store would have to look at each object."""


class Upload(Protocol):
    """An object that is written piece by piece. Every method may raise what ``ObjectStore.put`` does."""

    def write(self, data: bytes | memoryview) -> None:
        """Takes the next bytes."""

    def finish(self) -> None:
        """The object is there, whole, in place of what was there."""

    def abort(self) -> None:
        """Removes what was written; what was there stays. Harmless after ``finish``."""


@dataclass(frozen=True)
class Location:
    """A store's URL and a key or prefix in it: ``r2://bucket/a/b`` is ("r2://bucket", "a/b")."""

    store_url: str
    key: str

    @property
    def bucket(self) -> str:
        """The bucket's name, or "" for local files."""
        return self.store_url.removeprefix(R2_SCHEME) if self.store_url.startswith(R2_SCHEME) else ""


def locate(url: str) -> Location:
    """Splits ``r2://bucket/key`` or a local path (which becomes the store itself, with an empty key).

    Raises InvalidLocation for r2:// without a bucket, for other schemes, and for a ``~`` without a home folder.
    """
    if url.startswith(R2_SCHEME):
        bucket, _, key = url.removeprefix(R2_SCHEME).partition("/")
        if not 3 <= len(bucket) <= 63:
            raise InvalidLocation(f"{url}: a bucket's name has 3 to 63 characters; write r2://BUCKET/PREFIX")
        return Location(R2_SCHEME + bucket, key)
    scheme, colon, _ = url.partition("://")
    if colon:
        raise InvalidLocation(f"{url}: {scheme}:// is not known here; use r2://BUCKET/PREFIX or a local path")
    try:
        return Location(str(whole_path(url)), "")
    except MissingSettings as error:
        raise InvalidLocation(str(error)) from None


def locate_folder(url: str) -> Location:
    """Like ``locate``, for a folder: the key ends in '/' or is empty."""
    where = locate(url)
    return Location(where.store_url, where.key.rstrip("/") + "/" if where.key.strip("/") else "")
