"""``llmdo verify``: is every line of every source in exactly one shard row, and does every manifest tell the truth?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmdo.runners.inspecting.verify_file import FILES_AT_ONCE, SHARDS_AHEAD, FileCheck, FileId, FileReport, identity
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import Location, locate_folder
from llmdo.storage.output.configuration import read as read_configuration
from llmdo.storage.output.jobs import JobRecord, Jobs
from llmdo.storage.output.manifests import manifest_folders
from llmdo.transforms.elements import FileVersion
from llmdo.transforms.files.folders import as_begun
from llmdo.transforms.files.listing import Skipped, list_inputs
from llmdo.transforms.files.source import Listing
from llmdo.transforms.kinds.inside import look_inside
from llmdo.transforms.unreadable import CorruptData

_SUMMED = ("compared", "answered", "failed", "blank", "input_tokens", "output_tokens")


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found.

    Attributes:
        files: manifests below the output.
        compared: files whose source was read again; of the others only the output's own consistency was checked.
        lines: rows of the manifests' shards, ``answered`` and ``failed`` together.
        blank: blank lines of the sources; of a source that was not read, as its manifest says.
        in_work: files with a job record and no manifest.
        differences: one sentence each, with file and offset; the first 20 of a file, then how many more.
        notes: what is worth knowing but not a fault: files that could not be compared, shards that no manifest names.
    """

    files: int = 0
    compared: int = 0
    lines: int = 0
    answered: int = 0
    failed: int = 0
    blank: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    in_work: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing differs. A file in progress is a difference only if the inputs were named."""
        return not self.differences

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"ok": self.ok, **asdict(self)}


def verify(output_url: str, inputs: Sequence[str] = ()) -> Verification:
    """Checks everything below an output against its manifests, and against the sources where they can be read.

    Sources in R2 are found by themselves; local ones, and files that have no manifest yet, only with ``inputs`` (r2://
    prefixes, files, folders, patterns, as given to ``run``). Memory: the rows of the shards that overlap at one place
    of a file, and one manifest for each of the files checked at once. Raises StorageError, MissingSettings.
    """
    output = locate_folder(output_url)
    store = open_store(output.store_url)
    only = _format_of(output)
    listed = {
        place: [as_begun(output, notice.file) for notice in list_inputs(Listing((place,), only), output, Skipped())]
        for place in inputs
    }
    sources = {identity(file): file for files in listed.values() for file in files}
    records = [record for record in Jobs(store, output.key).sweep() if isinstance(record, JobRecord)]
    with ThreadPoolExecutor(FILES_AT_ONCE * SHARDS_AHEAD) as reads, ThreadPoolExecutor(FILES_AT_ONCE) as files:
        folders = manifest_folders(store, output.key)
        reports = list(files.map(lambda folder: FileCheck(store, output.key, folder, sources, reads).run(), folders))
    in_work = {identity(r): r for r in records if identity(r) not in {report.identity for report in reports}}
    differences = [
        *(text for report in reports for text in report.differences),
        *(f"--input {place}: no file of prompts is there" for place, found in listed.items() if not found),
        *_unfinished(sources, reports, in_work),
    ]
    if not reports and not in_work:
        differences.append(f"{output_url}: there is no manifest; give the --output of a run")
    sums = {name: sum(getattr(report, name) for report in reports) for name in _SUMMED}
    return Verification(
        files=len(reports),
        lines=sums["answered"] + sums["failed"],
        in_work=tuple(f"{record.store_url}/{record.key}" for record in in_work.values()),
        differences=tuple(differences),
        notes=tuple(text for report in reports for text in report.notes),
        **sums,
    )


def _unfinished(
    sources: dict[FileId, FileVersion], reports: Iterable[FileReport], in_work: dict[FileId, JobRecord]
) -> Iterator[str]:
    done = {report.identity for report in reports}
    earlier = {(bucket, key) for bucket, key, _ in done}
    for version, file in sources.items():
        if version in done:
            continue
        if version in in_work:
            why = "it is in progress, and the next run finishes it"
        elif problem := _unusable(file):
            why = problem
        elif version[:2] in earlier:
            why = "it has changed since it was answered; run again to answer this version"
        else:
            why = "it was never started; run again to answer it"
        yield f"{file.store_url}/{file.key} has no manifest: {why}"


def _format_of(output: Location) -> Any:
    """The ``--format`` of the output's runs, or ""."""
    with suppress(ValueError):
        there = read_configuration(open_store(output.store_url), output.key)
        return (there or {}).get("format", "")
    return ""


def _unusable(file: FileVersion) -> str | None:
    """Why no run could read a file."""
    try:
        look_inside(file)
    except CorruptData as error:
        return str(error)
    return None


def render(verification: Verification) -> RenderableType:
    """The counts as a table, what is in progress, notes, differences, and the verdict."""
    table = Table(show_header=False)
    for name in ("files", "compared", "lines", "answered", "failed", "blank", "input_tokens", "output_tokens"):
        table.add_row(name.replace("_", " "), Text(f"{getattr(verification, name):,}", justify="right"))
    parts: list[RenderableType] = [table]
    parts += [Text.assemble(("in progress: ", "yellow"), name) for name in verification.in_work]
    parts += [Text.assemble(("note: ", "yellow"), note) for note in verification.notes]
    parts += [Text.assemble(("differs: ", "bold red"), difference) for difference in verification.differences]
    if not verification.ok:
        parts.append(Text("The output is not what its manifests or its sources say.", "bold red"))
    elif verification.compared < verification.files or verification.in_work:
        parts.append(Text("What was checked is right; not everything could be (see above).", "bold yellow"))
    else:
        parts.append(Text("Every line is in exactly one shard, and every manifest is true.", "bold green"))
    return Group(*parts)
