"""Lines that were too long for one run and are not for a later one: their file is opened again for them alone."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic_core import from_json

from llmdo.storage.errors import ObjectNotFound
from llmdo.storage.objects.store import ObjectStore
from llmdo.storage.output.manifests import MANIFEST_NAME, Manifest, ManifestShard, put_shard, read_manifest

_Row = tuple[int, int, bytes]


def has_readable(store: ObjectStore, folder: str, manifest: Manifest, max_line_bytes: int) -> bool:
    """Whether error rows of a file stand for lines that were too long, and would be read now. Raises StorageError."""
    return next(_shards(store, folder, manifest, max_line_bytes), None) is not None


def reopen(store: ObjectStore, folder: str, max_line_bytes: int) -> None:
    """Takes such rows and the manifest away, so that these lines are a gap that the file's run fills.

    The job record must be there: a run that dies here is resumed, whatever it has removed. Raises StorageError.
    """
    manifest = read_manifest(store, folder)
    if manifest is None:
        return
    replaced = []
    for shard, kept in _shards(store, folder, manifest, max_line_bytes):
        if kept:
            put_shard(store, folder, "errors", kept, configuration=manifest.configuration)
        replaced.append(shard.name)
    if replaced:
        store.delete(folder + MANIFEST_NAME)
    for name in replaced:
        store.delete(folder + name)


def _shards(
    store: ObjectStore, folder: str, manifest: Manifest, max_line_bytes: int
) -> Iterator[tuple[ManifestShard, list[_Row]]]:
    """Each error shard with such rows, and its other rows."""
    for shard in manifest.shards if manifest.failed else ():
        if shard.kind != "errors":
            continue
        try:
            rows = [_row(row) for row in store.read(folder + shard.name)[0].split(b"\n")[:-1]]
        except (ObjectNotFound, ValueError, KeyError, TypeError):  # for verify to say
            continue
        kept = [(start, stop, row) for start, stop, row, size in rows if size is None or size > max_line_bytes]
        if len(kept) < len(rows):
            yield shard, kept


def _row(row: bytes) -> tuple[int, int, bytes, int | None]:
    """A row's place, itself, and how many bytes its line has if it was too long."""
    document = from_json(row)
    error = document["error"]
    start = int(error["offset"])
    too_long = error["class"] == "LineTooLong" and document.get("raw", "") is None
    length = int(error["length"])
    return start, start + length, row, int(error.get("bytes", length)) if too_long else None
