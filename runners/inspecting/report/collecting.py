"""Reads an output for a report: all manifests up to a number, and as many lines as are wanted, by a fair sample."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any

import orjson
from pydantic import ValidationError

from llmdo.runners.inspecting.report.samples import (
    Sample,
    SourcePlace,
    Templates,
    answer_sample,
    error_sample,
    find_prompts,
    place_of,
)
from llmdo.runners.inspecting.report.sampling import Lowest
from llmdo.runners.inspecting.report.tally import Tally
from llmdo.storage.errors import ObjectNotFound
from llmdo.storage.objects.store import ObjectStore
from llmdo.storage.output import configuration
from llmdo.storage.output.costs import NOTHING, Cost, total
from llmdo.storage.output.jobs import JobRecord, Jobs
from llmdo.storage.output.manifests import MANIFEST_NAME, Manifest, ShardKind
from llmdo.storage.output.receipts import FileReceipt, receipt_of
from llmdo.storage.runs.histories import RunHistory, histories
from llmdo.storage.runs.runs import SeenRun, seen_runs

# Manifests that are read, the newest; runs that are shown.
MOST_MANIFESTS, MOST_RUNS = 20_000, 50
# Of all shards, whatever is in them: lines may be vectors of 20 KB. Bytes.
MOST_BYTES_READ = 512 << 20
_READS = 16
_ERROR_SAMPLES = 2  # at most one in this number of the samples is an error line


@dataclass(frozen=True, slots=True)
class Wanted:
    """How much is read.

    Attributes:
        lines: answers for distributions, and as many error lines.
        samples: answers to look through, 0 for none of anything that users or models wrote.
    """

    lines: int
    samples: int


@dataclass(frozen=True, slots=True)
class FileFacts:
    """A file that is done, by its manifest."""

    name: str
    answered: int
    failed: int
    input_tokens: int
    output_tokens: int
    cost: Cost
    finished: str
    run_id: str

    @property
    def lines(self) -> int:
        """Of both outcomes."""
        return self.answered + self.failed


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """A shard that may be read."""

    folder: str
    name: str
    lines: int
    place: SourcePlace


@dataclass(slots=True)
class Findings:
    """What the report is of.

    Attributes:
        files_done: all of them; ``files`` those whose manifests were read, the newest.
        sampled: lines were left out, because there are more than were wanted.
        problems: what could not be read, a sentence each.
        decisive: the output's configuration: model, prompt …
    """

    url: str
    files_done: int = 0
    files: list[FileFacts] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    samples: list[Sample] = field(default_factory=list)
    in_work: list[str] = field(default_factory=list)
    dead: int = 0
    runs: list[SeenRun] = field(default_factory=list)
    histories: list[RunHistory] = field(default_factory=list)
    decisive: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def answered(self) -> int:
        """By the manifests that were read."""
        return sum(file.answered for file in self.files)

    @property
    def failed(self) -> int:
        """By the manifests that were read."""
        return sum(file.failed for file in self.files)

    @property
    def cost(self) -> Cost:
        """By the manifests that were read."""
        return total(file.cost for file in self.files) if self.files else NOTHING

    @property
    def receipt(self) -> FileReceipt | None:
        """By the manifests that were read; None where all answers were paid at list price from the start."""
        return receipt_of(self.cost, self.answered)


class Collector:
    """Reads an output. ``says`` is told in words what is being done."""

    def __init__(self, store: ObjectStore, prefix: str, url: str, wanted: Wanted, says: Callable[[str], None]) -> None:
        self._store, self._prefix, self._wanted, self._says = store, prefix, wanted, says
        self._found = Findings(url)
        self._shards: dict[ShardKind, Lowest[ShardFacts]] = {
            kind: Lowest(wanted.lines) for kind in ("answers", "errors")
        }
        self._answers = Lowest[Sample](wanted.samples)
        self._errors = Lowest[Sample](wanted.samples // _ERROR_SAMPLES)

    def collect(self) -> Findings:
        """Raises StorageError."""
        found = self._found
        asked = self._templates()
        self._look_at_work()
        with ThreadPoolExecutor(_READS, thread_name_prefix="llmdo-report") as reads:
            self._read_manifests(reads)
            for kind in self._shards:
                self._read_rows(kind, asked, reads)
        found.samples = [*self._answers.chosen(), *self._errors.chosen()]
        if found.samples:
            self._says("reading what was asked")
            find_prompts(found.samples, asked)
        return found

    def _templates(self) -> Templates:
        try:
            self._found.decisive = dict(configuration.read(self._store, self._prefix) or {})
        except ValueError as error:
            self._found.problems.append(str(error))
        prompt, system = (self._found.decisive.get(name) for name in ("prompt", "system"))
        return Templates(prompt if isinstance(prompt, str) else "", system if isinstance(system, str) else "")

    def _look_at_work(self) -> None:
        found = self._found
        for one in Jobs(self._store, self._prefix).sweep():
            if not isinstance(one, JobRecord):
                found.problems.append(str(one))
            elif one.dead:
                found.dead += 1
            else:
                found.in_work.append(SourcePlace(one.store_url, one.key, one.etag, one.size).name)
        found.runs = list(seen_runs(self._store, self._prefix))
        found.histories = histories(self._store, self._prefix, MOST_RUNS)

    def _read_manifests(self, reads: ThreadPoolExecutor) -> None:
        self._says("listing files")
        newest = iter(heapq.nlargest(MOST_MANIFESTS, self._manifests()))
        while some := [key for _, key in islice(newest, 16 * _READS)]:
            for key, manifest in zip(some, reads.map(self._manifest, some), strict=True):
                if isinstance(manifest, Manifest):
                    self._take(key.removesuffix(MANIFEST_NAME), manifest)
                elif manifest:
                    self._found.problems.append(manifest)
            self._says(f"{len(self._found.files):,} manifests of {min(self._found.files_done, MOST_MANIFESTS):,}")

    def _manifests(self) -> Iterator[tuple[datetime, str]]:
        for info in self._store.list(self._prefix):
            if info.key.rpartition("/")[2] == MANIFEST_NAME:
                self._found.files_done += 1
                yield info.modified, info.key

    def _manifest(self, key: str) -> Manifest | str | None:
        try:
            return Manifest.model_validate_json(self._store.read(key)[0])
        except ObjectNotFound:
            return None
        except ValidationError:
            return f"{self._store.url}/{key} is not a manifest that this version can read: llmdo verify says more"

    def _take(self, folder: str, manifest: Manifest) -> None:
        place = place_of(manifest)
        self._found.files.append(
            FileFacts(
                *(place.name, manifest.answered, manifest.failed, manifest.input_tokens, manifest.output_tokens),
                *(manifest.cost, manifest.created_at, manifest.run_id),
            )
        )
        for shard in manifest.shards:
            facts = ShardFacts(folder, shard.name, shard.lines, place)
            self._shards[shard.kind].offer(folder + shard.name, lambda facts=facts: facts)  # type: ignore[misc]

    def _read_rows(self, kind: ShardKind, asked: Templates, reads: ThreadPoolExecutor) -> None:
        shards, lines, size = iter(self._shards[kind].chosen()), 0, 0
        while lines < self._wanted.lines and size < MOST_BYTES_READ and (some := list(islice(shards, _READS))):
            for shard, body in zip(some, reads.map(self._body, some), strict=True):
                size += len(body)
                for line in body.splitlines():
                    lines += 1
                    self._add(kind, shard, line, asked)
            self._says(f"{lines:,} {'answers' if kind == 'answers' else 'error lines'}")

    def _body(self, shard: ShardFacts) -> bytes:
        try:
            return self._store.read(shard.folder + shard.name)[0]
        except ObjectNotFound:  # a retry has replaced it
            return b""

    def _add(self, kind: ShardKind, shard: ShardFacts, line: bytes, asked: Templates) -> None:
        tally, place = self._found.tally, shard.place
        try:
            row = orjson.loads(line)
            if kind == "answers":
                name = f"{shard.folder} {row['source']['offset']}"
                tally.add_answer(row)
                self._answers.offer(name, lambda: answer_sample(row, place))
            else:
                name = f"{shard.folder} {row['error']['offset']}"
                tally.add_error(row, place.name)
                self._errors.offer(name, lambda: error_sample(line, row, place, asked))
        except (ValueError, KeyError, TypeError, AttributeError):
            tally.unreadable += 1


def files_by_cost(files: list[FileFacts]) -> Iterator[FileFacts]:
    """The dearest first, then those with most lines."""
    yield from sorted(files, key=lambda file: (-(file.cost.usd or 0.0), -file.lines, file.name))
