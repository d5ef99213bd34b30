"""The files that a user names: local files, folders and patterns, and prefixes in R2; each once."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from llmdo.storage.errors import AccessDenied
from llmdo.storage.objects.local import is_utf8
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import R2_SCHEME, Location, locate
from llmdo.storage.objects.versions import current_version
from llmdo.storage.output import configuration
from llmdo.storage.output.manifests import MANIFEST_NAME, FormatName, is_shard_name
from llmdo.storage.queues.notifications import is_hidden
from llmdo.transforms.elements import FileVersion, Notice
from llmdo.transforms.files.source import Listing
from llmdo.transforms.formats import endings, is_wanted_name

_log = logging.getLogger(__name__)

# Where input from a pipe is kept, in an output or in the user's state folder.
STDIN_FOLDER = "_stdin"
_WILDCARDS = re.compile(r"[*?[]")
# What an output has at its root beside the folders of files.
_BOOKKEEPING = frozenset(("_open", "_retry", "_runs", "_dead", STDIN_FOLDER, configuration.NAME))

HIDDEN = "hidden: name the file to answer it"
OWN = "answers and errors of an earlier output: name the file to answer it"
OTHER_ENDING = f"its name does not end in {endings()}: name the file to answer it"
SAME_FILE = "another name of a file that is taken already"
SAME_CONTENT = "a copy, with the same name below its folder and the same content, of a file that is taken already"
NO_FILE = "not a file: write it to a file, or pipe it into `llmdo run -`"
NO_NAME = "the name is not UTF-8, which no output could name: rename it"


@dataclass(slots=True)
class Skipped:
    """What a listing skips: the paths by reason; the first path of each is named."""

    paths: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, path: str) -> None:
        """One file, or a folder with all that is in it."""
        self.paths.setdefault(reason, []).append(path)

    def sentences(self) -> list[str]:
        """One for each reason."""
        return [
            f"skipped {len(paths):,} {'path' if len(paths) == 1 else 'paths'} ({paths[0]!r}"
            f"{', …' if len(paths) > 1 else ''}): {reason}"
            for reason, paths in self.paths.items()
        ]


def list_inputs(listing: Listing, output: Location | None, skipped: Skipped | None = None) -> Iterator[Notice]:
    """Every object or file of the listing, once; what is skipped is added to ``skipped``, or logged at the end.

    A local file that is named is taken whatever its name is. A folder, a pattern or a prefix gives what ends in one of
    the suffixes and is neither hidden, nor below the output, nor an earlier output. A file's key is its path below the
    folder that was named, or its name. Its version is the hash of its content.
    """
    found, seen = Skipped() if skipped is None else skipped, dict[tuple[str, str, str], str]()
    inodes: dict[tuple[int, int], str] = {}
    # A bucket lists each key once: only several places, and links on a disk, can name a file twice.
    once = len(listing.inputs) == 1 and listing.inputs[0].startswith(R2_SCHEME)
    for place in listing.inputs:
        remote = place.startswith(R2_SCHEME)
        of_place = partial(_list_r2, only=listing.format) if remote else _LocalPlace(place, inodes, listing.format).list
        for file in of_place(place, output, found):
            # Two files with one key and one content have one folder in the output, wherever they are.
            identity = (file.bucket, file.key, file.etag)
            if once:
                yield Notice(file, None, {"listed": place})
            elif identity not in seen:
                seen[identity] = file.id
                yield Notice(file, None, {"listed": place})
            elif seen[identity] != file.id:
                found.add(SAME_CONTENT, f"{file.store_url}/{file.key}")
    if skipped is None:
        for sentence in found.sentences():
            _log.warning("%s", sentence)


def root_of(place: str) -> Path:
    """The folder that the keys of a local input's files are relative to."""
    path = Path(locate(place).store_url)
    return path if path.is_dir() else path.parent if path.exists() else _fixed_part(path)


def is_pattern(place: str) -> bool:
    """Whether a path has wildcards."""
    return _WILDCARDS.search(place) is not None


def _list_r2(
    place: str, output: Location | None, skipped: Skipped, only: FormatName | Literal[""] = ""
) -> Iterator[FileVersion]:
    where = locate(place)
    folder, _, name = where.key.rpartition("/")
    done = None
    # A prefix that lies in the output itself can only mean what is there besides the output's own objects.
    ours = output.key if output is not None and output.store_url == where.store_url else None
    for info in open_store(where.store_url).list(where.key):
        below = info.key.removeprefix(f"{folder}/" if folder else "")
        if ours is not None and info.key.startswith(ours) and not where.key.startswith(ours):
            continue
        if info.key.rpartition("/")[2] in ("", MANIFEST_NAME, configuration.NAME):
            # A manifest comes before the shards of its folder.
            done = info.key.rpartition("/")[0] if info.key.endswith(f"/{MANIFEST_NAME}") else done
            continue
        if ours is not None and info.key.startswith(ours) and _is_bookkeeping(info.key.removeprefix(ours)):
            continue
        if is_hidden(below) and not name.startswith("."):
            skipped.add(HIDDEN, f"{where.store_url}/{info.key}")
        elif info.key.rpartition("/")[0] == done and is_shard_name(info.key.rpartition("/")[2]):
            skipped.add(OWN, f"{where.store_url}/{info.key}")
        elif not is_wanted_name(below, only) and info.key != where.key:
            skipped.add(OTHER_ENDING, f"{where.store_url}/{info.key}")
        else:
            yield FileVersion(where.store_url, info.key, info.etag, info.size, format=only)


class _LocalPlace:
    """A file, a folder or a pattern. ``inodes`` are the files that were taken, of all places; ``only``: of a format."""

    def __init__(self, place: str, inodes: dict[tuple[int, int], str], only: FormatName | Literal[""] = "") -> None:
        self._path, self._root = Path(locate(place).store_url), root_of(place)
        self._real_root = self._root.resolve()
        self._inodes, self._only = inodes, only

    def _real(self, path: Path) -> Path:
        """A path below the root in the form in which it is compared with the output, which may be reached by a link."""
        return self._real_root / path.relative_to(self._root)

    def _is_of(self, output: Path | None, folder: Path) -> bool:
        """Whether a folder with answers is the output, or a file's folder in it."""
        real = self._real(folder)
        inside = output is not None and real.is_relative_to(output)
        return inside and (real == output or not _is_earlier_output(folder))

    def list(self, place: str, output: Location | None, skipped: Skipped) -> Iterator[FileVersion]:
        """The existing versions: files in the order of their paths, then those behind links."""
        out = None if output is None or output.bucket else Path(output.store_url).resolve()
        if self._path.is_file():
            found = [self._path]
        elif self._path.is_dir():
            found = [path for path in self._walk(out, skipped) if self._wanted(path, out, skipped)]
        elif self._path.exists():
            skipped.add(NO_FILE, place)
            return
        else:
            found = [path for path in self._glob(out, skipped) if self._wanted(path, out, skipped)]
        for file in sorted(found, key=lambda path: (_is_linked(path, self._root), path)):
            if not is_utf8(str(file)):
                skipped.add(NO_NAME, str(file))
                continue
            status = file.stat()
            if self._inodes.setdefault((status.st_dev, status.st_ino), str(file)) != str(file):
                skipped.add(SAME_FILE, str(file))
                continue
            yield replace(_version(self._root, file.relative_to(self._root).as_posix()), format=self._only)

    def _walk(self, output: Path | None, skipped: Skipped) -> Iterator[Path]:
        """All files below the root. Links to folders are followed last, each folder once, so that a loop ends."""
        folders, linked, entered = [self._root], list[Path](), set[tuple[int, int]]()
        while folders or linked:
            folder = folders.pop() if folders else linked.pop(0)
            status = folder.stat()
            if (status.st_dev, status.st_ino) in entered:
                skipped.add(SAME_FILE, str(folder))
                continue
            entered.add((status.st_dev, status.st_ino))
            if folder != self._root and _is_output(folder):
                if not self._is_of(output, folder):
                    skipped.add(OWN, str(folder))
                continue
            for path in sorted(folder.iterdir()):
                if not path.is_dir():
                    yield path
                elif path.name.startswith("."):
                    skipped.add(HIDDEN, str(path))
                else:
                    (linked if path.is_symlink() else folders).append(path)

    def _glob(self, output: Path | None, skipped: Skipped) -> Iterator[Path]:
        pattern = self._path.relative_to(self._root)
        hidden_named = any(part.startswith(".") for part in pattern.parts)
        for path in self._root.glob(str(pattern)):
            below = path.relative_to(self._root)
            folders = [self._root / folder for folder in below.parents][:-1]
            if path.is_dir():
                continue
            if is_hidden(str(below.parent)) and not hidden_named:
                skipped.add(HIDDEN, str(path))
            elif found := [folder for folder in folders if _is_earlier_output(folder)]:
                if not any(self._is_of(output, folder) for folder in found):
                    skipped.add(OWN, str(path))
            else:
                yield path

    def _wanted(self, path: Path, output: Path | None, skipped: Skipped) -> bool:
        """Whether a file that is not named itself is an input."""
        named = is_wanted_name(path.relative_to(self._root).as_posix(), self._only)
        real = self._real(path)
        if output is not None and real.is_relative_to(output):
            # An output that holds its inputs has objects of its own beside them.
            own = _is_bookkeeping(real.relative_to(output).as_posix()) or is_shard_name(path.name)
            if own or not self._real_root.is_relative_to(output):
                return False
        if not path.is_file():
            if named:
                skipped.add(NO_FILE, str(path))
            return False
        if path.name.startswith(".") and not self._path.name.startswith("."):
            if named:
                skipped.add(HIDDEN, str(path))
            return False
        if not named:
            skipped.add(OTHER_ENDING, str(path))
        return named


def _version(root: Path, key: str) -> FileVersion:
    try:
        info = current_version(str(root), key)
    except AccessDenied:  # opening it will report that, for this file alone
        info = open_store(str(root)).stat(key)
    return FileVersion(str(root), key, info.etag, info.size)


def _fixed_part(pattern: Path) -> Path:
    """The folder above the first part with a wildcard."""
    parts = []
    for part in pattern.parts[:-1]:
        if is_pattern(part):
            break
        parts.append(part)
    return Path(*parts)


def _is_bookkeeping(below: str) -> bool:
    """Whether a key below an output is one of the output's own records, by its first part."""
    first = below.split("/", maxsplit=1)[0]
    return first in _BOOKKEEPING or first.startswith("_ledger.")


def _is_output(folder: Path) -> bool:
    return _is_earlier_output(folder) or (folder / MANIFEST_NAME).is_file()


def _is_earlier_output(folder: Path) -> bool:
    return (folder / configuration.NAME).is_file()


def _is_linked(path: Path, root: Path) -> bool:
    return any(part.is_symlink() for part in (path, *path.parents) if part != root and part.is_relative_to(root))
