"""``llmdo cat``: the rows of files that are done, in the order of their sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import BinaryIO

from llmdo.pipelines.usage import UsageError
from llmdo.storage.errors import InvalidLocation
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import R2_SCHEME, Location, locate_folder
from llmdo.storage.output.manifests import Manifest, ShardKind
from llmdo.storage.output.rows import done_files, rows_in_order


@dataclass(slots=True)
class Printed:
    """What was written; ``missing`` has a sentence for each name that no file has."""

    files: int = 0
    rows: int = 0
    missing: list[str] = field(default_factory=list)


def cat(
    output_url: str, names: Sequence[str], sink: BinaryIO, *, errors: bool = False, everything: bool = False
) -> Printed:
    """Writes the answers of the files whose key a name matches, or their errors, or both.

    Raises UsageError, MissingSettings, StorageError and BrokenPipeError.
    """
    output = output_of(output_url)
    store = open_store(output.store_url)
    kinds: frozenset[ShardKind] = (
        frozenset(("answers", "errors")) if everything else frozenset(("errors",) if errors else ("answers",))
    )
    written, unmatched = Printed(), dict.fromkeys(names)
    for folder, manifest in done_files(store, output.key):
        matching = [name for name in names if is_named(manifest, name)]
        if names and not matching:
            continue
        written.files += 1
        for name in matching:
            unmatched.pop(name, None)
        for row in rows_in_order(store, folder, manifest, kinds):
            sink.write(row.line + b"\n")
            written.rows += 1
    written.missing = [f"no file {name} is done in {output_url}: llmdo status shows what is" for name in unmatched]
    if not written.files and not names:
        written.missing = [f"no file is done in {output_url}: name the --output of a run"]
    return written


def output_of(url: str) -> Location:
    """Where an output is. Raises UsageError."""
    try:
        return locate_folder(url)
    except InvalidLocation as error:
        raise UsageError([str(error)]) from None


def is_named(manifest: Manifest, name: str) -> bool:
    """Whether a name or pattern is that of a file: its key, the last part of it, or its URL."""
    key = manifest.key
    return fnmatchcase(key, name) or name in (key, key.rpartition("/")[2], f"{R2_SCHEME}{manifest.bucket}/{key}")
