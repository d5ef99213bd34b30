"""What goes from step to step: files, tiles of their bytes, what became of each tile, and the shards written.

A tile is a range [start, stop) of a file version's bytes (of the uncompressed bytes for gzip and zstd) that holds one
line with its line ending, or of its rows where the file's format counts these (``llmdo.transforms.formats``). The tiles
of a file cover it without gap or overlap.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from llmdo.storage.objects.store import Location
from llmdo.storage.output.costs import NOTHING, Cost
from llmdo.storage.output.manifests import FormatName, ShardRecord
from llmdo.transforms.formats import FORMATS, PACKINGS, Format, format_of


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
        opened_at: when this run opened it, in Unix time; 0.0 before.
        format: the name of its format where the key's ending does not decide it; "" otherwise.
        end: where its positions end, if opening it has shown that: the number of a table's rows.
        unpacked: bytes of its content, if opening it has shown that; else 0.
    """

    store_url: str
    key: str
    etag: str
    size: int
    opening: str = ""
    resumed: bool = field(default=False, compare=False)
    stretch: int | None = field(default=None, compare=False)
    opened_at: float = field(default=0.0, compare=False)
    format: FormatName | Literal[""] = field(default="", compare=False)
    end: int | None = field(default=None, compare=False)
    unpacked: int = field(default=0, compare=False)

    @property
    def bucket(self) -> str:
        """The bucket's name, or "" for local files."""
        return Location(self.store_url, self.key).bucket

    @property
    def compression(self) -> Literal["gzip", "zstd"] | None:
        """By the key's ending."""
        name = self.key.lower()
        return PACKINGS[".gz"] if name.endswith(".gz") else PACKINGS[".zst"] if name.endswith(".zst") else None

    @property
    def kind(self) -> Format:
        """Its format."""
        return FORMATS[self.format] if self.format else format_of(self.key)

    @property
    def divisible(self) -> bool:
        """Whether reading can begin anywhere; otherwise it is read from its begin, and its end is not known before."""
        return not self.compression and not self.kind.whole

    @property
    def has_rows(self) -> bool:
        """Whether its positions are a table's rows."""
        return self.kind.unit == "row"

    @property
    def length(self) -> int | None:
        """Where its positions end; None while that is not known."""
        if self.end is None and self.divisible and self.kind.unit == "byte":
            return self.size
        return self.end

    def positions(self, size: int) -> int:
        """About how many positions ``size`` bytes of content are: at least one."""
        return max(1, size // self.kind.position_bytes)

    def stored(self, positions: int) -> int:
        """About how many bytes, as stored, some positions are."""
        return positions if self.kind.unit == "byte" else round(self.size * positions / max(self.end or 0, 1))

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

    ``gaps`` are in the file's positions. Where it is not ``divisible``, so that its length is unknown before the end,
    the last gap's stop is None: it extends to the end of the data. ``content`` is the whole file as stored, where it is
    small.
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
    """One line to answer, or a table's row as a JSON object; ``data`` has no line ending and no BOM.

    ``problem`` is a sentence about a row that cannot be read, whose ``data`` is then what stands in the file.
    ``changed`` is what ChangeLines made of ``data``, and what is asked; None: ``data`` itself.
    """

    file: FileVersion
    start: int
    stop: int
    data: bytes
    problem: str = ""
    changed: bytes | None = None


@dataclass(frozen=True, slots=True)
class TooLong:
    """A line longer than ``--max-line-bytes``; its content was never in memory whole.

    ``size`` is that of a table's row as JSON, in bytes; None where the tile itself is the content.
    """

    file: FileVersion
    start: int
    stop: int
    size: int | None = None

    @property
    def length(self) -> int:
        """How many bytes it has."""
        return self.stop - self.start if self.size is None else self.size


@dataclass(frozen=True, slots=True)
class Blank:
    """What holds no prompt: a blank line, or the end mark [n, n) of a file that is empty or not ``divisible``.

    ``total`` is where the file's positions end, if this tile is the end mark, else None. What stands ``between``
    lines (a table's header, for example) is not counted as a blank line.
    """

    file: FileVersion
    start: int
    stop: int
    total: int | None = None
    between: bool = False


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

    ``length`` is that of its tiles together: 0 where no line begins in the stretch. ``file.stretch`` is its number.
    """

    file: FileVersion
    length: int


@dataclass(frozen=True, slots=True)
class Idle:
    """There is nothing to read at the moment: each step emits what it has ready, as it would with another line.

    Infer sends its started arrays of texts, too. So it is emitted again and again, but only after a moment of waiting.
    """


Tile = Line | TooLong | Blank  # what a file is read as
Opened = OpenFile | KnownShard | Leftovers  # what OpenFiles emits
Read = Line | TooLong | Blank | Stale | KnownShard | Leftovers  # what ReadLines emits
Changed = Read | Failure  # what ChangeLines emits
Outcome = Answer | Failure | Blank | Stale | KnownShard | Leftovers  # what Infer emits
Mark = StretchRead | Idle  # what passes through Infer, too, where files are dealt out in stretches


@dataclass(frozen=True, slots=True)
class Written:
    """What WriteShards reports of one batch: a shard, or tiles that needed none (blanks), or a stale file.

    Attributes:
        shard: the object that was written, or was there before; None for blanks and stale files.
        blanks: the tiles that hold no prompt; ``between`` is how many of them are no blank lines.
        total: where the file's positions end, if the batch had the end mark.
        stale: why the file ends without a manifest, or None; ``gone``: it was deleted or overwritten.
        leftovers: shards that do not count.
        stretch_length: as in StretchRead, in the last element of ``file.stretch``; earlier ones may still come after.
    """

    file: FileVersion
    shard: ShardRecord | None = None
    leftovers: tuple[str, ...] = ()
    blanks: tuple[tuple[int, int], ...] = ()
    between: int = 0
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
