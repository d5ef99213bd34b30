"""Which files of an output are exported, and where to."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmdo.pipelines.usage import UsageError
from llmdo.runners.inspecting.cat import is_named
from llmdo.runners.inspecting.export.formats import ENDINGS
from llmdo.storage.errors import InvalidLocation
from llmdo.storage.objects.store import R2_SCHEME, Location, ObjectStore, locate
from llmdo.storage.output.manifests import Manifest, counts_as_output
from llmdo.storage.output.rows import done_files

# What the name of a file of prompts ends in, which that of its table does not.
_PACKED, _PROMPTS = (".gz", ".zst"), (".jsonl", ".ndjson", ".jsonlines", ".json", ".csv", ".tsv", ".parquet")
_SHORT = 8  # characters of an etag that tell two files of one name apart


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file that is done."""

    folder: str
    bucket: str
    place: str  # of a local file: the folder that its key is below
    key: str
    etag: str
    created_at: str
    answered: int
    failed: int

    @property
    def name(self) -> str:
        """As people and tables have it."""
        return f"{R2_SCHEME}{self.bucket}/{self.key}" if self.bucket else self.key


@dataclass(slots=True)
class Chosen:
    """The files to export, in the order of their keys; ``missing`` has a sentence for each name that no file has."""

    files: list[PlannedFile] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Target:
    """Where tables go: a file, or a folder of files, ``where``; the format, and the ending of a file's name."""

    url: str
    where: Location
    is_folder: bool
    form: str
    ending: str

    def place(self, name: str) -> Location:
        """Of a file in the folder."""
        if self.where.bucket:
            return Location(self.where.store_url, self.where.key + name)
        return Location(f"{self.where.store_url}/{name}", "")


def target_of(url: str, form: str | None, *, single: bool) -> Target:
    """What ``--to`` names. Raises UsageError."""
    try:
        where = locate(url)
    except InvalidLocation as error:
        raise UsageError([f"--to {error}"]) from None
    ending = next((one for one in ENDINGS if url.lower().endswith(one)), "")
    folder = url.endswith("/") or (bool(where.bucket) and not where.key)
    if folder or (not where.bucket and Path(where.store_url).is_dir()):
        named = form or "jsonl"
        key = where.key.rstrip("/") + "/" if where.key.strip("/") else ""
        target = Target(url, Location(where.store_url, key), True, named, f".{named}")
        if not single:
            return target
        return Target(url, target.place(f"answers.{named}"), False, named, f".{named}")
    if not ending:
        raise UsageError(
            [f"--to {url} ends in none of {', '.join(ENDINGS)}: name such a file, or a folder with / at its end"]
        )
    if form not in (None, ENDINGS[ending]):
        raise UsageError([f"--to {url} is {ENDINGS[ending]}, and --format is {form}: leave out --format"])
    return Target(url, where, False, ENDINGS[ending], ending)


def choose_files(store: ObjectStore, prefix: str, names: Sequence[str], url: str, *, every_version: bool) -> Chosen:
    """The files that are done, and that a name matches; of each the version that was done last. Raises StorageError."""
    found, unmatched = Chosen(), dict.fromkeys(names)
    for folder, manifest in done_files(store, prefix):
        matching = [name for name in names if is_named(manifest, name)]
        if names and not matching:
            continue
        for name in matching:
            unmatched.pop(name, None)
        found.files.append(_planned(folder, manifest))
    found.missing = [f"no file {name} is done in {url}: llmdo status shows what is" for name in unmatched]
    if not found.files and not names:
        found.missing = [f"no file is done in {url}: name the --output of a run"]
    if not every_version:
        last: dict[tuple[str, str, str], PlannedFile] = {}
        for file in found.files:
            this = (file.bucket, file.place, file.key)
            if this not in last or last[this].created_at < file.created_at:
                last[this] = file
        if older := len(found.files) - len(last):
            found.notes.append(
                f"{older} earlier version{'s' * (older > 1)} of files that have changed since "
                f"{'are' if older > 1 else 'is'} left out: --all-versions takes them, too"
            )
        kept = set(last.values())
        found.files = [file for file in found.files if file in kept]
    return found


def _planned(folder: str, manifest: Manifest) -> PlannedFile:
    return PlannedFile(
        folder,
        manifest.bucket,
        manifest.folder,
        manifest.key,
        manifest.etag,
        manifest.created_at,
        manifest.answered,
        manifest.failed,
    )


def tables(target: Target, files: Sequence[PlannedFile]) -> Iterator[tuple[Location, Sequence[PlannedFile]]]:
    """Each table to write, with the files whose rows it has."""
    if not target.is_folder:
        yield target.where, files
        return
    stems = [_stem(file, with_bucket=bool(target.where.bucket) or bool(file.bucket)) for file in files]
    counts = Counter(stems)
    for file, stem in zip(files, stems, strict=True):
        name = stem if counts[stem] == 1 else f"{stem}-{file.etag[:_SHORT]}"
        yield target.place(name + target.ending), (file,)


def _stem(file: PlannedFile, *, with_bucket: bool) -> str:
    key = file.key
    for endings in (_PACKED, _PROMPTS):
        ending = next((one for one in endings if key.lower().endswith(one)), "")
        if len(ending) < len(key.rpartition("/")[2]):
            key = key[: len(key) - len(ending)]
    return f"{file.bucket}/{key}" if with_bucket and file.bucket else key


def beside(where: Location, ending: str) -> Location:
    """The file of error lines that belongs to a file of answers: ``answers.errors.csv`` to ``answers.csv``."""
    name = where.key if where.bucket else where.store_url
    named = f"{name[: len(name) - len(ending)]}.errors{name[len(name) - len(ending) :]}"
    return Location(where.store_url, named) if where.bucket else Location(named, "")


def check_targets(places: Collection[Location], files: Sequence[PlannedFile], output: Location, target: Target) -> None:
    """Raises UsageError where a table would replace a source, or get into the way of the output's own files."""
    sources = {_identity(file_place(file)) for file in files}
    within = _within(output)
    for place in places:
        url = place_url(place)
        if _identity(place) in sources:
            raise UsageError([f"--to {target.url} would replace {url}, a source of the answers: name another place"])
        if within(place) and (target.is_folder or counts_as_output(url)):
            raise UsageError([f"--to {target.url} is within the output itself: name a folder of its own"])


def file_place(file: PlannedFile) -> Location:
    """Where a source was."""
    if file.bucket:
        return Location(R2_SCHEME + file.bucket, file.key)
    return Location(f"{file.place}/{file.key}", "")


def place_url(place: Location) -> str:
    """A file as people write it."""
    return f"{place.store_url}/{place.key}" if place.bucket else place.store_url


def _identity(place: Location) -> str:
    return place_url(place) if place.bucket else os.path.realpath(place.store_url)


def _within(output: Location) -> Callable[[Location], bool]:
    if output.bucket:
        return lambda place: place.store_url == output.store_url and place.key.startswith(output.key)
    top = os.path.realpath(output.store_url)
    return lambda place: not place.bucket and os.path.realpath(place.store_url).startswith(top + os.sep)
