"""Opens the store of a bucket or a folder."""

from __future__ import annotations

from pathlib import Path

from llmdo.storage.objects.local import LocalStore
from llmdo.storage.objects.local_upload import LocalUpload
from llmdo.storage.objects.store import R2_SCHEME, Location, ObjectStore, Upload


def open_store(store_url: str, *, private: bool = False) -> ObjectStore:
    """The store of a bucket or folder. Cheap: the process keeps its clients.

    Files in a ``private`` folder are for this user alone; otherwise they follow the umask. Raises MissingSettings if
    R2's credentials are not in the environment.
    """
    if store_url.startswith(R2_SCHEME):
        from llmdo.storage.objects.r2 import R2Store  # noqa: PLC0415  a run on folders needs no HTTP of it

        return R2Store.open(store_url.removeprefix(R2_SCHEME))
    return LocalStore(Path(store_url), private=private)


def open_upload(where: Location, content_type: str) -> Upload:
    """Starts an object, or a local file, that is written piece by piece. Raises MissingSettings and StorageError."""
    if where.bucket:
        from llmdo.storage.objects.r2 import R2Store  # noqa: PLC0415  as above

        return R2Store.open(where.bucket).upload(where.key, content_type)
    return LocalUpload("/".join(part for part in (where.store_url, where.key) if part))
