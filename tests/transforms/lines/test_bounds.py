"""What a file costs in memory and state does not grow with the file."""

from __future__ import annotations

import heapq
import json
import pickle
import random
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import zstandard

from llmdo.storage.output.intervals import Intervals
from llmdo.storage.output.manifests import ShardRecord
from llmdo.transforms.elements import FileVersion, Written
from llmdo.transforms.files.settle_files import merge

ROOT = Path(__file__).parents[3]
MB = 1 << 20
ZEROS = bytes(MB)
FILE = FileVersion("r2://bucket", "a.jsonl", "e", 79_000_000)

# Reads a file through the reader of the pipeline, and prints what came, and by how many bytes memory grew at its peak.
READ = r"""
import json, re, sys
from pathlib import Path
from llmdo.storage.objects.local import LocalStore
from llmdo.transforms.elements import FileVersion, Line, OpenFile, Stale, TooLong
from llmdo.transforms.lines.read_lines import _Range, _ReadRange
from llmdo.transforms.lines.reading import NO_END, Reading
from llmdo.transforms.run import Run
from llmdo.storage.objects.store import Location

class Tracker:
    def current_restriction(self): return _Range(0, NO_END, seekable=False)
    def try_claim(self, position): return True

def peak():  # getrusage would give the parent's, if that is larger
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) << 10

path, limit = Path(sys.argv[1]), json.loads(sys.argv[2])
info = LocalStore(path.parent).stat(path.name)
file = FileVersion(str(path.parent), path.name, info.etag, info.size)
do_fn = _ReadRange(Reading(max_file_bytes=limit), Run("run-1", Location(str(path.parent), "")))
do_fn.start_bundle()
element = OpenFile(file, ((0, None if file.compression else file.size),))
before, lines, content, last = peak(), 0, 0, None
for group in do_fn.process(element, Tracker()):
    for last in group:
        lines += isinstance(last, Line | TooLong)
        content = getattr(last, "stop", content)
stale = last.reason if isinstance(last, Stale) else None
print(json.dumps({"grew": peak() - before, "lines": lines, "content": content, "stale": stale}))
"""


def read(path: Path, limit: int | None = None) -> dict:
    command = [sys.executable, "-c", READ, str(path), json.dumps(limit)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return json.loads(done.stdout)


def gzip_of_zeros(size: int) -> bytes:
    """One member; a flush makes the bytes of each MB alike, so that a GB need not be compressed."""
    codec = zlib.compressobj(9, wbits=-15)
    first, each = (codec.compress(ZEROS) + codec.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    crc = 0
    for _ in range(size // MB):
        crc = zlib.crc32(ZEROS, crc)
    head = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
    tail = b"\x03\0" + crc.to_bytes(4, "little") + (size & 0xFFFFFFFF).to_bytes(4, "little")
    return head + first + each * (size // MB - 1) + tail


def zstd_of_zeros(size: int, window_log: int) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=window_log)
    codec = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return b"".join(codec.compress(ZEROS) for _ in range(size // MB)) + codec.flush()


# MiB of content, how it is packed, and by how many MiB memory may grow. A zstd frame may ask for a window of 128 MiB.
BOMBS: dict[str, tuple[int, Callable[[int], bytes], int]] = {
    "one member.gz": (1024, gzip_of_zeros, 100),
    "many members.gz": (256, lambda size: zlib.compress(ZEROS, 9, 31) * (size // MB), 100),
    "one frame.zst": (1024, lambda size: zstd_of_zeros(size, 23), 100),
    "many frames.zst": (256, lambda size: zstandard.compress(ZEROS) * (size // MB), 100),
    "wide window.zst": (256, lambda size: zstd_of_zeros(size, 27), 128 + 100),
}


@pytest.mark.fast("many members.gz", "wide window.zst")
@pytest.mark.parametrize("name", BOMBS)
def test_a_gigabyte_in_a_few_bytes_is_one_long_line_and_takes_no_memory(tmp_path: Path, name: str, capsys: Any) -> None:
    size, pack, allowed = BOMBS[name]
    path = tmp_path / name
    path.write_bytes(pack(size * MB))
    assert path.stat().st_size < 2 * MB
    found = read(path)
    with capsys.disabled():
        packed = path.stat().st_size
        print(f"\n{name}: {size} MiB in {packed:,} bytes; memory grew by {found['grew'] / MB:.0f} MiB")
    assert (found["lines"], found["content"], found["stale"]) == (1, size * MB, None)
    assert found["grew"] < allowed * MB


@pytest.mark.fast("a.jsonl.zst")
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_bomb_of_lines_ends_at_the_limit(tmp_path: Path, name: str) -> None:
    path, content = tmp_path / name, b"\n{}" * (16 * MB // 3)
    path.write_bytes(zlib.compress(content, 9, 31) if name.endswith("gz") else zstandard.compress(content))
    assert path.stat().st_size < MB
    found = read(path, limit=2 * MB)
    assert found["stale"] == f"{path} holds more than 2,097,152 bytes: raise --max-file-bytes, or split the file"
    assert found["content"] <= 2 * MB
    assert found["grew"] < 100 * MB


LINES, LINE, SHARD = 1_000_000, 79, 100


def test_a_million_lines_are_read_in_the_memory_of_a_few(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes((b"x" * (LINE - 1) + b"\n") * LINES)
    found = read(path)
    with capsys.disabled():
        print(f"\n{LINES:,} lines of {LINE} bytes: memory grew by {found['grew'] / MB:.1f} MiB")
    assert (found["lines"], found["content"]) == (LINES, LINES * LINE)
    assert found["grew"] < 40 * MB


def in_order_of_completion(rng: random.Random, lanes: int, window: int) -> Iterator[list[int]]:
    """The lines of each shard: lanes read a stretch each, calls take log-normal times, 100 that ended make a shard."""
    at = [lane * (LINES // lanes) for lane in range(lanes)]
    stop = [begin + LINES // lanes for begin in at]
    turns = cycle(range(lanes))
    calls: list[tuple[float, int]] = []
    ended: list[int] = []
    now = 0.0
    for submitted in range(LINES + window):
        if submitted >= window:
            now, line = heapq.heappop(calls)
            ended.append(line)
            if len(ended) == SHARD:
                yield sorted(ended)
                ended = []
        if submitted < LINES:
            lane = next(lane for lane in turns if at[lane] < stop[lane])
            heapq.heappush(calls, (now + rng.lognormvariate(0, 1), at[lane]))
            at[lane] += 1


def tiles_of(lines: list[int]) -> str:
    return Intervals((line * LINE, (line + 1) * LINE) for line in lines).encode()


def sizes_while_merged(shards: Iterable[str]) -> list[int]:
    """The bytes of the tiles' state after each 50th shard, and at the end."""
    covered, sizes = Intervals(), []
    for number, tiles in enumerate(shards):
        written = Written(FILE, shard=ShardRecord(f"shard-{number:012d}-0.jsonl", "answers", tiles, SHARD))
        assert merge(covered, written)
        if number % 50 == 0:
            sizes.append(len(covered.encode()))
    assert covered.covers(FILE.size)
    return [*sizes, len(covered.encode())]


@pytest.mark.slow
def test_the_state_of_a_million_lines_stays_small(capsys: Any) -> None:
    rng = random.Random(7)
    ended = list(in_order_of_completion(rng, lanes=4, window=64))
    as_they_came = [tiles_of(lines) for lines in ended]
    assert len(as_they_came) == LINES // SHARD
    usual = sizes_while_merged(as_they_came)
    whole = [tiles_of(list(range(first, first + SHARD))) for first in range(0, LINES, SHARD)]
    shuffled = sizes_while_merged(rng.sample(whole, len(whole)))
    # No run writes shards of scattered lines in any order, but it bounds what an order can do; most in the middle.
    half = sorted(line for lines in rng.sample(ended, len(ended) // 2) for line in lines)
    worst = len(tiles_of(half))
    records = sum(
        len(pickle.dumps(ShardRecord(f"shard-{lines[0] * LINE:012d}-{'0' * 16}.jsonl", "answers", tiles, SHARD, 1, 1)))
        for lines, tiles in zip(ended, as_they_came, strict=True)
    )
    with capsys.disabled():
        print(
            f"\n{LINES:,} lines, state of the tiles in bytes: {max(usual):,} at most as calls end in 4 lanes, "
            f"{max(shuffled):,} with whole shards in random order, {worst:,} with scattered ones, {usual[-1]} at the "
            f"end; of the {len(ended):,} shards' records: {records:,}"
        )
    assert max(usual) < 10_000
    assert max(shuffled) < 100_000
    assert worst < 1_000_000
    assert usual[-1] == shuffled[-1] == len(f"0+{FILE.size}")
    assert records < 10_000_000
