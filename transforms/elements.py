"""What goes from step to step: files, tiles of their bytes, what became of each tile, and the shards written.

A tile is a range [start, stop) of a file version's bytes (of the uncompressed bytes for gzip and zstd) that holds one
line with its line ending. The tiles of a file cover it without gap or overlap.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from llmdo.storage.objects.store import Location
from llmdo.storage.output.costs import NOTHING, Cost
from llmdo.storage.output.manifests import ShardRecord


@dataclass(frozen=True, slots=True)
class FileVersion:
    """One version of one input file.

    Attributes:
        store_url: "r2://bucket", or the absolute folder that the path is relative to.
        key: full key, or path relative to that folder.
        etag: without quotes; local files: a hash of the content (``llmdo.storage.objects.versions``).
        size: bytes, as stored (compressed).
        opening: the nonce of the job record under which it is worked on; empty before it is opened.
        resumed: an earlier run had it in work, perhaps one of a version that kept answers by ``id`` and offset.
        stretch: the number of the Stretch that an element belongs to; None where files are not dealt out in stretches.
    """

    store_url: str
    key: str
    etag: str
    size: int
    opening: str = ""
    resumed: bool = field(default=False, compare=False)
    stretch: int | None = field(default=None, compare=False)

    @property
    def bucket(self) -> str:
        """The bucket's name, or "" for local files."""
        return Location(self.store_url, self.key).bucket

    @property
    def compression(self) -> Literal["gzip", "zstd"] | None:
        """By the key's ending."""
        name = self.key.lower()
        return "gzip" if name.endswith(".gz") else "zstd" if name.endswith(".zst") else None

    @property
    def id(self) -> str:
        """Names this version among all."""
        return f"{self.store_url}/{self.key}@{self.etag}"

    @property
    def place(self) -> str:
        """Where it is, whatever its version."""
        return f"{self.store_url}/{self.key}"

    @property
    def work_id(self) -> str:
        """Names one opening of this version, the key of every keyed step: one that went stale may be opened again."""
        return f"{self.id}#{self.opening}"


@dataclass(frozen=True, slots=True)
class Notice:
    """The news of a file: a queue message, an entry of a listing, or a job record that an earlier run left.

    Attributes:
        lease_id: the queue's lease, to be acked once the job record exists; None for a listing or a record.
        body: the whole notification, kept in the job record.
        nonce: distinguishes this notice from others about the same version, also when a runner repeats the bundle.
        attempt: which of a run's attempts found it, where a runner restarts failed ones by itself (``next_attempt``
            of RunState); empty elsewhere.
    """

    file: FileVersion
    lease_id: str | None
    body: Mapping[str, Any]
    nonce: str = field(default_factory=lambda: uuid.uuid4().hex)
    attempt: str = ""


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file that this run works on, and the ranges that are in no shard yet.

    ``gaps`` are in uncompressed bytes. For gzip and zstd, whose length is unknown before the end, the last gap's stop
    is None: it extends to the end of the data. ``content`` is the whole file as stored, where it is small.
    """

    file: FileVersion
    gaps: tuple[tuple[int, int | None], ...]
    content: bytes | None = None


@dataclass(frozen=True, slots=True)
class KnownShard:
    """A shard that an earlier run wrote and that counts; passes through to SettleFiles unchanged."""

    file: FileVersion
    shard: ShardRecord


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Shards by their names that do not count (torn, or overlapping others): whoever wins the manifest deletes them."""

    file: FileVersion
    names: tuple[str, ...]


@dataclass(slots=True)
class Line:
    """One line to answer; ``data`` has no line ending and no BOM. Offsets in bytes."""

    file: FileVersion
    start: int
    stop: int
    data: bytes


@dataclass(frozen=True, slots=True)
class TooLong:
    """A line longer than ``--max-line-bytes``; its content was never in memory whole."""

    file: FileVersion
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Blank:
    """Bytes that hold no prompt: a blank line, or the end mark [n, n) of an empty or a compressed file.

    ``total`` is the file's uncompressed length where this tile is the end mark, else None.
    """

    file: FileVersion
    start: int
    stop: int
    total: int | None = None


@dataclass(frozen=True, slots=True)
class Stale:
    """The file ends without a manifest: it is ``gone``, deleted or overwritten, or it cannot be read as it is."""

    file: FileVersion
    reason: str
    gone: bool


@dataclass(slots=True)
class Answer:
    """A line's answer. ``row`` is the whole line of the shard, JSON, without its line ending."""

    file: FileVersion
    start: int
    stop: int
    row: bytes
    input_tokens: int = 0
    output_tokens: int = 0
    cost: Cost = NOTHING


@dataclass(slots=True)
class Failure:
    """A line without an answer. ``row`` is the input line with its ``error`` object, JSON, without line ending."""

    file: FileVersion
    start: int
    stop: int
    row: bytes


@dataclass(frozen=True, slots=True)
class StretchRead:
    """All of a stretch has been read; it comes after the last of its tiles, but perhaps before their outcomes.

    ``length`` is that of its tiles together, in bytes: 0 where no line begins in the stretch. ``file.stretch`` is its
    number.
    """

    file: FileVersion
    length: int


@dataclass(frozen=True, slots=True)
class Idle:
    """There is nothing to read at the moment: each step emits what it has ready, as it would with another line.

    Infer sends its started arrays of texts, too. So it is emitted again and again, but only after a moment of waiting.
    """


Opened = OpenFile | KnownShard | Leftovers  # what OpenFiles emits
Read = Line | TooLong | Blank | Stale | KnownShard | Leftovers  # what ReadLines emits
Outcome = Answer | Failure | Blank | Stale | KnownShard | Leftovers  # what Infer emits
Mark = StretchRead | Idle  # what passes through Infer, too, where files are dealt out in stretches


@dataclass(frozen=True, slots=True)
class Written:
    """What WriteShards reports of one batch: a shard, or tiles that needed none (blanks), or a stale file.

    Attributes:
        shard: the object that was written, or was there before; None for blanks and stale files.
        blanks: the tiles of blank lines.
        total: the file's length in uncompressed bytes, where the batch had the end mark.
        stale: why the file ends without a manifest, or None; ``gone``: it was deleted or overwritten.
        leftovers: shards that do not count.
        stretch_length: as in StretchRead, in the last element of ``file.stretch``; earlier ones may still come after.
    """

    file: FileVersion
    shard: ShardRecord | None = None
    leftovers: tuple[str, ...] = ()
    blanks: tuple[tuple[int, int], ...] = ()
    total: int | None = None
    stale: str | None = None
    gone: bool = False
    stretch_length: int | None = None


@dataclass(frozen=True, slots=True)
class Settled:
    """A file that is done: its manifest exists, or it went stale. ``cost`` is that of all its answers."""

    file: FileVersion
    status: Literal["done", "stale"]
    answered: int = 0
    failed: int = 0
    reason: str = ""
    cost: Cost = NOTHING
