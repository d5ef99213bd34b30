"""Rows to look through: answers and error lines, with what was asked where the source can still be read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from llmdo.runners.inspecting.oracle import DAMAGED
from llmdo.runners.inspecting.oracle_tables import lines_of_source
from llmdo.runners.inspecting.report.tally import finish_reason
from llmdo.runners.inspecting.report.texts import Part, answer_parts, part, prompt_parts, visible
from llmdo.runners.showing.summary import dollars
from llmdo.storage.errors import StorageError
from llmdo.storage.objects.local import is_by_time
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import R2_SCHEME
from llmdo.storage.output.manifests import FormatName, Manifest
from llmdo.transforms.elements import FileVersion
from llmdo.transforms.prompts.line_json import BadLine, unwrapped
from llmdo.transforms.unreadable import CorruptData

# A compressed source, or a table, is read from its begin; a larger one is not. Bytes.
_MOST_READ = 64 << 20
_LONGEST_LINE = 8 << 20


@dataclass(frozen=True, slots=True)
class SourcePlace:
    """Where a file of an output came from; "" for the store if that is not known. ``form``: its format."""

    store_url: str
    key: str
    etag: str
    size: int
    form: FormatName = "jsonl"

    @property
    def name(self) -> str:
        """For people."""
        return visible(f"{self.store_url}/{self.key}" if self.store_url.startswith(R2_SCHEME) else self.key)


def place_of(manifest: Manifest) -> SourcePlace:
    """The source of a file that is done."""
    url = R2_SCHEME + manifest.bucket if manifest.bucket else manifest.folder
    return SourcePlace(url, manifest.key, manifest.etag, manifest.size, manifest.format)


@dataclass(frozen=True, slots=True)
class Templates:
    """What a run puts around each line: its prompt template and its system prompt, or ""."""

    prompt: str = ""
    system: str = ""

    def parts(self, line: bytes) -> list[Part]:
        """What a line of a source asks."""
        try:
            document = orjson.loads(line.removeprefix(b"\xef\xbb\xbf"))
        except ValueError:
            return [part("line", line.decode(errors="replace"))]
        return prompt_parts(document, self.prompt, self.system)


@dataclass(slots=True)
class Sample:
    """A row to look at; ``facts`` are short texts about it, ``problem`` says why there is no prompt."""

    place: SourcePlace
    offset: int
    length: int
    id: str
    model: str
    outcome: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    answer: list[Part] = field(default_factory=list)
    prompt: list[Part] = field(default_factory=list)
    problem: str = ""


def answer_sample(row: Mapping[str, Any], place: SourcePlace) -> Sample:
    """An answer, without its prompt yet."""
    usage, source = row["usage"] or {}, row["source"]
    cost = usage.get("cost_usd")
    reused = not row["attempts"] or bool(row.get("shared"))
    facts = [
        ("latency", "from the ledger or another line" if reused else f"{row['latency_ms']:,} ms"),
        ("tokens", f"{usage.get('input_tokens') or 0:,} in, {usage.get('output_tokens') or 0:,} out"),
        ("cost", dollars(cost, lower_bound=False)),
        ("tries", str(row["attempts"])),
        ("ended by", finish_reason(row)),
    ]
    return Sample(
        *(place, int(source["offset"]), int(source["length"])),
        visible(str(row["id"]))[:200],
        visible(str(row["model"]))[:200],
        "answer",
        [(name, text) for name, text in facts if text],
        [visible(str(one))[:400] for one in row.get("warnings") or ()][:5],
        answer_parts(row["response"].get("body")),
    )


def error_sample(line: bytes, row: Mapping[str, Any], place: SourcePlace, asked: Templates) -> Sample:
    """An error line, which holds what was asked."""
    error = row["error"]
    code = error.get("code") or error.get("status")
    facts = [
        ("class", visible(str(error["class"]))[:100]),
        ("code", "" if code is None else visible(str(code))[:100]),
        ("tries", str(error.get("attempts"))),
        ("may succeed later", "yes" if error.get("retryable") else "no"),
    ]
    found = Sample(
        *(place, int(error["offset"]), int(error["length"])),
        visible(str(row.get("id", row.get("custom_id", ""))))[:200],
        "",
        "error",
        [(name, text) for name, text in facts if text],
        answer=[part("", str(error.get("message") or ""))],
    )
    try:
        found.prompt = asked.parts(unwrapped(line))
    except BadLine as bad:
        found.problem = visible(str(bad))[:400]
    return found


def find_prompts(samples: Iterable[Sample], asked: Templates) -> None:
    """Reads what the answers were asked from their sources, where these are as they were."""
    by_file: dict[SourcePlace, list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.outcome == "answer":
            by_file[sample.place].append(sample)
    for place, some in by_file.items():
        problem = _unreadable(place)
        if not problem:
            try:
                _read(place, some, asked)
            except StorageError as error:
                problem = f"the source cannot be read: {error}"
            except (*DAMAGED, CorruptData):
                problem = "the source cannot be unpacked"
        for sample in some:
            if not sample.prompt and not sample.problem:
                sample.problem = visible(problem or "the source has no such line")[:400]


def _unreadable(place: SourcePlace) -> str:
    """Why a source is not even looked at, or ""."""
    if not place.store_url:
        return "the output does not say where its source was"
    # A manifest names the file: only with a hash of its content is it certainly the one that was answered.
    if not place.store_url.startswith(R2_SCHEME) and is_by_time(place.etag):
        return "the output was written by a version that did not record the content of its sources"
    if not _has_lines(place) and place.size > _MOST_READ:
        return "the source is compressed or a table, and too large to be read here"
    return ""


def _file_of(place: SourcePlace) -> FileVersion:
    return FileVersion(place.store_url, place.key, place.etag, place.size, format=place.form)


def _has_lines(place: SourcePlace) -> bool:
    """Whether the bytes of a row's place are its line."""
    file = _file_of(place)
    return file.divisible and not file.has_rows


def _read(place: SourcePlace, samples: list[Sample], asked: Templates) -> None:
    store = open_store(place.store_url)
    if _has_lines(place):
        for sample in samples:
            if sample.length > _LONGEST_LINE:
                sample.problem = f"the line has {sample.length:,} bytes, too many to show"
                continue
            stop = sample.offset + sample.length
            sample.prompt = asked.parts(b"".join(store.stream(place.key, place.etag, sample.offset, stop)))
        return
    wanted = {sample.offset: sample for sample in samples}
    last = max(wanted)
    for line in lines_of_source(_file_of(place)):
        if line.start in wanted and line.data is not None:
            wanted[line.start].prompt = asked.parts(line.data)
        if line.start >= last:
            return
