"""Draws lines over a whole input, each as likely as any other, and learns how many there are and how long.

Files that can be read from anywhere are cut into blocks of equal size. Some blocks are drawn, and of these all lines
are read that begin there: a long line stands in one block's count, as a short one does, so nothing has to be weighed.
What is compressed, or an array or a table of text, is read from its begin to its end. Small inputs are read whole.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

from llmdo.pipelines.options import JsonlOptions
from llmdo.storage.errors import StorageError
from llmdo.storage.objects.opening import open_store
from llmdo.storage.output.folders import FolderListings
from llmdo.storage.output.manifests import counted_shards
from llmdo.transforms.elements import FileVersion, Line, OpenFile, Tile, TooLong
from llmdo.transforms.files.folders import as_begun, folder_of
from llmdo.transforms.files.listing import list_inputs
from llmdo.transforms.files.open_files import covered_by, gaps_of
from llmdo.transforms.files.source import Listing
from llmdo.transforms.kinds.inside import look_inside
from llmdo.transforms.lines.reading import NO_END, UNREADABLE, gap_of, ranges_of, read_range, unread

# Of what can be read from anywhere: how large a block is at least, and how many bytes and blocks are read at least.
BLOCK_BYTES, READ_BYTES, READ_BLOCKS = 64 << 10, 16 << 20, 64
_MOST_BLOCKS = 1 << 18  # of an input; larger ones have larger blocks
_AT_ONCE = 16  # files that are looked at, and blocks that are read, side by side


@dataclass(slots=True)
class Drawn:
    """A sample, and what all lines are that have no outcome yet, those drawn among them.

    Attributes:
        lines: in no order.
        count, length: how many lines there are, and their bytes; ``error`` is the relative standard error of these
            where they are estimates, else 0.
        broken: lines that are errors without a call, by the same estimate; they are not counted in ``count``.
        files, files_done: those with lines that are left, and those that have a manifest.
        unreadable: a sentence for each file that cannot be read.
    """

    lines: list[Line] = field(default_factory=list)
    count: float = 0.0
    length: float = 0.0
    error: float = 0.0
    broken: float = 0.0
    files: int = 0
    files_done: int = 0
    unreadable: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Stratum:
    """Lines that were read, by their lengths' powers of two; each of them stands for ``each`` lines of the input."""

    most: int
    random: random.Random
    each: float = 1.0
    seen: dict[int, int] = field(default_factory=dict)
    kept: dict[int, list[Line]] = field(default_factory=dict)
    lengths: int = 0
    broken: int = 0
    blocks: list[tuple[int, int]] = field(default_factory=list)  # lines and their bytes

    def add(self, tiles: Iterable[Tile]) -> None:
        """Takes a block's lines in; of each power of two, as many are kept as may be needed."""
        count = length = 0
        for tile in tiles:
            if isinstance(tile, TooLong) or (isinstance(tile, Line) and tile.problem):
                self.broken += 1
            elif isinstance(tile, Line):
                self._keep(tile)
                count, length = count + 1, length + len(tile.data)
        self.lengths += length
        self.blocks.append((count, length))

    def _keep(self, line: Line) -> None:
        size = len(line.data).bit_length()
        kept = self.kept.setdefault(size, [])
        seen = self.seen[size] = self.seen.get(size, 0) + 1
        if seen <= self.most:
            kept.append(line)
        elif (place := self.random.randrange(seen)) < self.most:
            kept[place] = line

    @property
    def lines(self) -> int:
        return sum(self.seen.values())

    def square_error(self) -> float:
        """The square of the standard error of the number of lines, and of their lengths if that is larger, each as a
        part of the sum.
        """
        n = len(self.blocks)
        if self.each <= 1.0 or n < 2:
            return 0.0
        return max(map(partial(_square, n=n, each=self.each), zip(*self.blocks, strict=True)))


def _square(amounts: tuple[int, ...], n: int, each: float) -> float:
    mean = sum(amounts) / n
    spread = math.fsum((amount - mean) ** 2 for amount in amounts) / (n - 1)
    return (1 - 1 / each) * spread / n / mean**2 if mean else 0.0


def draw(options: JsonlOptions, count: int) -> Drawn:
    """Draws ``count`` lines of those that have no outcome yet, or all, if there are fewer; the same ones each time.

    Raises StorageError for a place that cannot be listed.
    """
    drawn = Drawn()
    opened = list(_left(options, drawn))
    names = hashlib.sha256("\n".join(element.file.id for element in opened).encode("utf-8", "surrogatepass"))
    by_chance = random.Random(names.digest())  # noqa: S311  no secret depends on it
    whole = _Stratum(count, by_chance)
    for element in opened:
        if not element.file.divisible:
            _read_whole(element, options, whole, drawn)
    ranged = _read_blocks([one for one in opened if one.file.divisible], options, count, by_chance, drawn)
    strata = [whole, ranged]
    drawn.count = math.fsum(one.lines * one.each for one in strata)
    drawn.length = math.fsum(one.lengths * one.each for one in strata)
    drawn.broken = math.fsum(one.broken * one.each for one in strata)
    if drawn.count:
        drawn.error = math.sqrt(ranged.square_error()) * ranged.lines * ranged.each / drawn.count
    drawn.lines = list(_evenly(strata, count, by_chance))
    return drawn


def _evenly(strata: list[_Stratum], count: int, by_chance: random.Random) -> Iterator[Line]:
    """Lines over all lengths: a rake with ``count`` teeth at equal distances falls somewhere on all lines by length."""
    total = math.fsum(one.lines * one.each for one in strata)
    if not total:
        return
    step = max(1.0, total / count)
    tooth, at = by_chance.random() * step, 0.0
    for size in sorted({size for one in strata for size in one.seen}):
        for one in strata:
            at += one.seen.get(size, 0) * one.each
            teeth = max(0, math.ceil((at - tooth) / step))
            tooth += teeth * step
            kept = one.kept.get(size, [])
            yield from by_chance.sample(kept, min(teeth, len(kept)))


def _left(options: JsonlOptions, drawn: Drawn) -> Iterator[OpenFile]:
    """The files of the listing, each with what is in no shard yet."""
    source, output = options.source, options.output_location
    assert isinstance(source, Listing)  # noqa: S101  checked before
    listings = FolderListings(open_store(output.store_url))
    files = [notice.file for notice in list_inputs(source, output)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for element in pool.map(partial(_left_of, options, listings), files):
            if isinstance(element, str):
                drawn.unreadable.append(element)
            elif element is None:
                drawn.files_done += 1
            else:
                drawn.files += 1
                if unread(element, options.reading) is None:
                    yield element


def _left_of(options: JsonlOptions, listings: FolderListings, file: FileVersion) -> OpenFile | str | None:
    output = options.output_location
    try:
        file = as_begun(output, file)
        listed = listings.of(folder_of(output, file))
        if listed.manifest:
            return None
        shards, _ = counted_shards(open_store(output.store_url), listed.shards)
        file = look_inside(file, None, options.needed_columns, checked=not shards)
        # An answer that an earlier version of llmdo kept is found only for a file that was begun before.
        return OpenFile(replace(file, resumed=True), gaps_of(file, covered_by(shards)))
    except (*UNREADABLE, StorageError) as error:
        return str(error)


def _read_whole(element: OpenFile, options: JsonlOptions, into: _Stratum, drawn: Drawn) -> None:
    try:
        for tiles in read_range(element, 0, NO_END, options.reading):
            into.add(tiles)
    except (*UNREADABLE, StorageError) as error:
        drawn.unreadable.append(str(error))


def _read_blocks(
    opened: list[OpenFile], options: JsonlOptions, count: int, by_chance: random.Random, drawn: Drawn
) -> _Stratum:
    """Blocks in random order, until enough was read."""
    into = _Stratum(count, by_chance)
    size = max(BLOCK_BYTES, sum(element.file.size for element in opened) // _MOST_BLOCKS)
    blocks = [
        (part, start, stop)
        for element in opened
        for gap in element.gaps
        for part in [replace(element, gaps=(gap,))]
        for start, stop in ranges_of(part, *gap_of(part), part.file.positions(size))
    ]
    by_chance.shuffle(blocks)
    done = size_read = 0
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        while done < len(blocks) and (done < READ_BLOCKS or size_read < READ_BYTES or into.lines < 4 * count):
            some = blocks[done : done + _AT_ONCE]
            for block, tiles in zip(some, pool.map(partial(_block, options), some), strict=True):
                size_read += block[0].file.stored(block[2] - block[1])
                if isinstance(tiles, str):
                    drawn.unreadable.append(tiles)
                into.add([] if isinstance(tiles, str) else tiles)
            done += len(some)
    into.each = len(blocks) / done if done else 1.0
    return into


def _block(options: JsonlOptions, block: tuple[OpenFile, int, int]) -> list[Tile] | str:
    element, start, stop = block
    try:
        return [tile for tiles in read_range(element, start, stop, options.reading) for tile in tiles]
    except (*UNREADABLE, StorageError) as error:
        return str(error)
