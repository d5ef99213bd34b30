"""Where the shards of a file version are in an output, and by which version an output knows a file."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import Location
from llmdo.storage.objects.versions import etag_by_time
from llmdo.storage.output.jobs import Jobs
from llmdo.storage.output.manifests import file_folder, read_manifest
from llmdo.transforms.elements import FileVersion


def folder_of(output: Location, file: FileVersion) -> str:
    """The folder of a file version's shards in the output's store.

    The key is hashed where a local output has a file in the way: one that holds its inputs has them there.
    """
    plain = file_folder(output.key, file.bucket, file.key, file.etag)
    if output.bucket:
        return plain
    hashed, root = file_folder(output.key, file.bucket, file.key, file.etag, hashed=True), Path(output.store_url)
    above = [root / folder for folder in Path(plain).parents]
    return hashed if any(path.is_file() for path in above) or (root / hashed).is_dir() else plain


def as_begun(output: Location, file: FileVersion) -> FileVersion:
    """The version as the output names it: by size and time where an earlier version of llmdo began it."""
    etag = etag_by_time(file.store_url, file.key, file.etag)
    if etag is None:
        return file
    before, store = replace(file, etag=etag), open_store(output.store_url)
    record = Jobs(store, output.key).read((before.store_url, before.key, before.etag))
    with suppress(ValueError):
        if record is not None or read_manifest(store, folder_of(output, before)) is not None:
            return before
    return file
