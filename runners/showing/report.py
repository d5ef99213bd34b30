"""How a run ended, for people: the files, some answers, what was spent, what held calls back and what is left to do."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from pydantic_core import from_json
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmdo.backends.money.money import lost_text
from llmdo.runners.showing.limits import limits_text
from llmdo.runners.showing.summary import Summary, dollars
from llmdo.storage.errors import StorageError
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import Location
from llmdo.storage.output.manifests import read_manifest
from llmdo.transforms.acks import VISIBILITY_TIMEOUT
from llmdo.transforms.elements import FileVersion
from llmdo.transforms.files.folders import folder_of

_SAMPLE_CHARACTERS = 160


def show_summary(summary: Summary, output: Location, console: Console, samples: int = 0) -> None:
    """The table of files, ``samples`` of the answers, and what is left to do.

    The answers are the user's data, and what is printed may be kept by a log: none are shown unless asked for.
    """
    table = files_table(summary, "in progress: the next run resumes")
    counts = summary.counts
    console.print(table if table.row_count else "No files to answer.")
    if counts.files_done + counts.files_stale > len(summary.settled):
        console.print(f"{counts.files_done:,} files are done in all, {counts.files_stale:,} stale.")
    show_spent(summary, console)
    show_limits(summary, console)
    if summary.restarts:
        console.print(f"The pipeline was restarted {summary.restarts:,} times.")
    if counts.messages_passed_over or counts.messages_undecodable:
        console.print(
            f"{counts.messages_passed_over:,} messages did not concern this run, "
            f"{counts.messages_undecodable:,} could not be decoded (kept in _dead/)."
        )
    if counts.files_with_errors and not summary.continuous:
        where = shlex.quote("/".join(filter(None, (output.store_url, output.key))))
        console.print(
            "Why lines ended as errors is in the files errors-*.jsonl of the output. To try again those that may be "
            f"answered now, or with --all every one: llmdo retry {where}",
            highlight=False,
            soft_wrap=True,
        )
    for question, answer in _samples(summary, output, samples):
        console.print(Text.assemble(("Q ", "bold"), question, "\n", ("A ", "bold green"), answer, "\n"))


def files_table(summary: Summary, in_progress: str) -> Table:
    """A row for each file: what became of it, and its lines; ``in_progress`` is the status of unfinished ones."""
    table = Table("file", "status", "answered", "errors")
    for settled in sorted(summary.settled, key=lambda s: s.file.key):
        status = settled.status if not settled.reason else f"{settled.status}: {settled.reason}"
        lines = (f"{settled.answered:,}", f"{settled.failed:,}") if settled.status == "done" else ("", "")
        table.add_row(Text(settled.file.key), Text(status), *lines)
    for file in summary.in_work:
        if file.id not in summary.left:
            table.add_row(Text(file.key), in_progress, "", "")
    for what, run_id in summary.others.items():
        table.add_row(Text(what), Text(f"in progress at {run_id}"), "", "")
    for what, why in summary.left.items():
        table.add_row(Text(what), Text(f"left: {why}"), "", "")
    return table


def show_spent(summary: Summary, console: Console) -> None:
    """What the calls have used, if there were any, and what lost ones may have used in addition."""
    spent = summary.spent
    if spent.calls or spent.lost_calls:
        cost = dollars(spent.cost_usd, lower_bound=spent.unpriced > 0)
        used = f"{spent.input_tokens:,} tokens in, {spent.output_tokens:,} out"
        console.print(f"Spent: {cost} at list prices, {used}.", highlight=False)
    if spent.lost_calls:
        usd = spent.lost_cost_usd
        cost = "an unknown cost" if usd is None else f"at most {dollars(usd, lower_bound=False)}"
        used = f"{spent.lost_input_tokens:,} tokens in, {spent.lost_output_tokens:,} out"
        lost = lost_text(spent.lost_calls)
        console.print(f"May also have been billed: {cost}, {used}, for {lost}.", highlight=False)


def show_limits(summary: Summary, console: Console) -> None:
    """What held calls back, and what may be waiting in the queue."""
    for text in filter(None, map(limits_text, summary.limits)):
        console.print(Text(text))
    if summary.backlog:
        console.print(
            f"The queue still holds about {summary.backlog:,} messages that cannot be pulled now: delayed, or leased "
            f"by another consumer or a pull whose reply was lost. Run again after {VISIBILITY_TIMEOUT:g} s.",
            highlight=False,
        )


def _samples(summary: Summary, output: Location, most: int) -> Iterator[tuple[str, str]]:
    """At most ``most`` questions with their answers, each from another file, shortened to a line."""
    shown = 0
    for settled in sorted(summary.settled, key=lambda s: -s.answered):
        if shown == most:
            return
        if not settled.answered:
            continue
        try:
            pair = _first_answer(settled.file, output)
        except (StorageError, ValueError):
            continue  # only a sample: verify reports what is wrong with an output
        if pair is not None:
            shown += 1
            yield pair


def _first_answer(file: FileVersion, output: Location) -> tuple[str, str] | None:
    store = open_store(output.store_url)
    folder = folder_of(output, file)
    manifest = read_manifest(store, folder)
    name = next((shard.name for shard in manifest.shards if shard.kind == "answers"), None) if manifest else None
    if name is None or file.compression:
        return None
    row = from_json(store.read(folder + name)[0].split(b"\n", 1)[0])
    choices = row["response"]["body"].get("choices") if isinstance(row["response"]["body"], dict) else None
    if not choices:
        return None
    start = row["source"]["offset"]
    source = open_store(file.store_url).stream(file.key, file.etag, start, start + row["source"]["length"])
    return _short(_question(from_json(b"".join(source)))), _short(str(choices[0]["message"]["content"]))


def _question(line: dict[str, object]) -> str:
    body = line.get("body", line)
    if isinstance(body, dict) and isinstance(body.get("messages"), list):
        return str(body["messages"][-1].get("content"))
    return str(body.get("prompt", line)) if isinstance(body, dict) else str(body)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SAMPLE_CHARACTERS else text[: _SAMPLE_CHARACTERS - 1] + "…"
