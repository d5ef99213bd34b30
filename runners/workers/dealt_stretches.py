"""The stretches that workers have, what of each has come back, and what is left of one whose worker died."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from llmdo.storage.output.folders import list_folder
from llmdo.storage.output.intervals import Intervals
from llmdo.storage.output.manifests import counted_shards
from llmdo.transforms.elements import Written
from llmdo.transforms.files.folders import folder_of
from llmdo.transforms.lines.reading import NO_END
from llmdo.transforms.lines.stretches import Stretch
from llmdo.transforms.outages import patiently
from llmdo.transforms.run import Run

# A stretch is given up when this many workers died while they read it.
DEADLY = 3


@dataclass(slots=True)
class DealtStretch:
    """A stretch in work.

    Attributes:
        begun: whether its worker has begun to read it.
        deaths: how many workers died while they had it.
        covered: the tiles that came back.
        shards: the names of the shards that came back.
        length: of its tiles together, once it is read.
    """

    stretch: Stretch
    begun: bool = False
    deaths: int = 0
    covered: Intervals = field(default_factory=Intervals)
    shards: set[str] = field(default_factory=set)
    length: int | None = None
    _seen: int = 0

    def add(self, written: Written) -> None:
        """Takes note of what was written of it."""
        for start, stop in spans_of(written):
            if not self.covered.overlaps(start, stop):
                self.covered.add(start, stop)
            self._seen += stop - start
        if written.shard is not None:
            self.shards.add(written.shard.name)
        if written.stretch_length is not None:
            self.length = written.stretch_length

    @property
    def size(self) -> int:
        """About how many bytes there are to read."""
        stretch, file = self.stretch, self.stretch.element.file
        return file.size if file.length is None else file.stored(min(stretch.stop, file.length) - stretch.start)

    @property
    def done(self) -> bool:
        """Whether all of it came back."""
        return self._seen == self.length

    def rest(self, number: int) -> DealtStretch | None:
        """What has not come back of it, under a new number, for another worker; None if nothing is left."""
        stretch = self.stretch
        if not stretch.element.file.size or stretch.element.file.length == 0:  # its end mark covers nothing
            return DealtStretch(replace(stretch, number=number), deaths=self.deaths)
        gaps = [
            (start, None if stop == NO_END else stop)
            for gap in stretch.element.gaps
            for start, stop in _without(gap, self.covered)
            if stop > stretch.start and start < stretch.stop
        ]
        if not gaps:
            return None
        element = replace(stretch.element, gaps=tuple(gaps))
        return DealtStretch(replace(stretch, number=number, element=element), deaths=self.deaths, shards=self.shards)


def counts_of(written: Written) -> dict[str, int]:
    """What was written, by the names of Counts."""
    size, shard = written.file.stored(sum(stop - start for start, stop in spans_of(written))), written.shard
    if shard is None:
        return {"bytes_done": size}
    return {
        "bytes_done": size,
        "answered" if shard.kind == "answers" else "failed": shard.lines,
        "input_tokens": shard.input_tokens,
        "output_tokens": shard.output_tokens,
        "shards": 1,
        "lines_written": shard.lines,
    }


def spans_of(written: Written) -> tuple[tuple[int, int], ...]:
    """The tiles that something written covers."""
    shard = written.shard
    return (*written.blanks, *(Intervals.decode(shard.tiles).spans if shard else ()))


def _without(gap: tuple[int, int | None], covered: Intervals) -> Iterator[tuple[int, int]]:
    """What is left of a gap."""
    start, last = gap[0], NO_END if gap[1] is None else gap[1]
    for begin, stop in covered.spans:
        if stop <= start or begin >= last:
            continue
        if begin > start:
            yield start, begin
        start = max(start, stop)
    if start < last:
        yield start, last


def recover(run: Run, dealt: DealtStretch, number: int) -> tuple[list[Written], DealtStretch | None]:
    """What a worker that died has written of a stretch and not reported, and what is left of it under a new number.

    Nothing is left where it is DEADLY: its file stays open. Raises StorageError.
    """
    if run.state.stopping:  # a later run finds it
        return [], None
    found = written_by_the_dead(run, dealt)
    for written in found:
        dealt.add(written)
        run.state.add(**counts_of(written))
    rest, stretch = dealt.rest(number), dealt.stretch
    if rest is not None and rest.deaths >= DEADLY:
        file = stretch.element.file
        run.state.report_undone(
            file.id,
            f"{rest.deaths} worker processes died while they read its {file.kind.unit}s from {stretch.start:,} on: "
            "look at these lines, or run again with fewer --processes",
        )
        return found, None
    return found, rest


def written_by_the_dead(run: Run, dealt: DealtStretch) -> list[Written]:
    """Shards of a stretch that a worker wrote before it died, and could not report. Raises StorageError."""
    file, stretch = replace(dealt.stretch.element.file, stretch=None), dealt.stretch
    folder = folder_of(run.output, file)

    def look() -> list[Written]:
        new = [
            info
            for info in list_folder(run.store, folder).shards
            if (name := info.key.rpartition("/")[2]) not in dealt.shards
            and stretch.start <= (first := _first_of(name)) < stretch.stop
            and any(start <= first and (last is None or first < last) for start, last in stretch.element.gaps)
        ]
        shards, left = counted_shards(run.store, new)
        found = [Written(file, shard=shard) for shard in shards]
        return [*found, Written(file, leftovers=tuple(left))] if left else found

    return patiently(run.state, look)


def _first_of(name: str) -> int:
    """The offset in a shard's name; -1 if it has none."""
    offset = name.split("-")[1] if name.count("-") else ""
    return int(offset) if offset.isdigit() else -1
