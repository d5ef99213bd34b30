"""How a run ended, for people: the files, some answers, what was spent, what held calls back and what is left to do."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from pydantic_core import from_json
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmdo.backends.money.receipt import Receipt
from llmdo.backends.money.spent import lost_text
from llmdo.backends.openai.raw import is_response, read_response
from llmdo.runners.showing.errors import errors_table
from llmdo.runners.showing.limits import limits_text
from llmdo.runners.showing.summary import Summary, dollars, handed_over_text, receipt_text
from llmdo.runners.showing.words import counted
from llmdo.storage.errors import StorageError
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import Location
from llmdo.storage.output.error_classes import ErrorClass
from llmdo.storage.output.manifests import read_manifest
from llmdo.transforms.acks import VISIBILITY_TIMEOUT
from llmdo.transforms.elements import FileVersion
from llmdo.transforms.files.folders import folder_of

_SAMPLE_CHARACTERS = 160


def show_summary(
    summary: Summary, output: Location, console: Console, samples: int = 0, errors: Sequence[ErrorClass] = ()
) -> None:
    """The table of files, why lines failed, ``samples`` of the answers, and what is left to do.

    The answers are the user's data, and what is printed may be kept by a log: none are shown unless asked for.
    """
    table = files_table(summary, "in progress: the next run resumes")
    counts = summary.counts
    console.print(table if table.row_count else "No files to answer.")
    if counts.files_done + counts.files_stale > len(summary.settled):
        console.print(f"{counts.files_done:,} files are done in all, {counts.files_stale:,} stale.")
    if said := handed_over_text(summary.handed_over):
        _say(f"{said[0].upper()}{said[1:]}.", console)
    show_spent(summary, console)
    show_limits(summary, console)
    if summary.restarts:
        console.print(f"The pipeline was restarted {summary.restarts:,} times.")
    if counts.messages_passed_over or counts.messages_undecodable:
        console.print(
            f"{counts.messages_passed_over:,} messages did not concern this run, "
            f"{counts.messages_undecodable:,} could not be decoded (kept in _dead/)."
        )
    where = shlex.quote("/".join(filter(None, (output.store_url, output.key))))
    if errors:
        console.print(errors_table(errors))
    if counts.files_with_errors and not summary.continuous:
        _say(
            f"All errors: llmdo cat {where} --errors. To try again those that may be answered now, or with --all every "
            f"one: llmdo retry {where}",
            console,
        )
    if counts.files_done:
        _say(f"The answers: llmdo cat {where}. As a table: llmdo export {where} --to answers.csv", console)
    for question, answer in _samples(summary, output, samples):
        console.print(Text.assemble(("Q ", "bold"), question, "\n", ("A ", "bold green"), answer, "\n"))


def _say(sentence: str, console: Console) -> None:
    """A line that somebody may copy a command from."""
    console.print(sentence, markup=False, highlight=False, soft_wrap=True)


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
        prices = "" if summary.receipt else " at list prices"
        known = dollars(spent.cost_usd, lower_bound=spent.unpriced > 0) + prices
        cost = "an unknown cost" if spent.cost_usd is None else known
        cached = f" ({spent.cached_tokens:,} from caches)" if spent.cached_tokens else ""
        used = f"{counted(spent.input_tokens, 'token')} in{cached}, {spent.output_tokens:,} out"
        console.print(f"Spent: {cost}, {used}.", highlight=False)
    if spent.lost_calls:
        usd = spent.lost_cost_usd
        cost = "an unknown cost" if usd is None else f"at most {dollars(usd, lower_bound=False)}"
        used = f"{counted(spent.lost_input_tokens, 'token')} in, {spent.lost_output_tokens:,} out"
        waiting = summary.handed_over.lines >= spent.lost_calls  # a batch that is left is not known to be paid or not
        lost = f"{counted(spent.lost_calls, 'line')} left in batches" if waiting else lost_text(spent.lost_calls)
        console.print(f"May also have been billed: {cost}, {used}, for {lost}.", highlight=False)
    if summary.receipt is not None and spent.cost_usd is not None:
        console.print(f"{_receipt_text(summary.receipt)}.", highlight=False)
    if summary.budget is not None:
        console.print(f"{summary.budget}.", highlight=False)


def _receipt_text(receipt: Receipt) -> str:
    """What lanes have saved, and what keeping a deadline has cost."""

    ways = {way: (one.calls, one.usd) for way, one in receipt.ways.items()}
    return receipt_text(ways, receipt.list_usd, receipt.saved_usd, receipt.rescue_usd)


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
    if name is None or not file.divisible or file.has_rows:
        return None
    row = from_json(store.read(folder + name)[0].split(b"\n", 1)[0])
    answer = _said(row["response"]["body"])
    if answer is None:
        return None
    start = row["source"]["offset"]
    source = open_store(file.store_url).stream(file.key, file.etag, start, start + row["source"]["length"])
    return _short(_question(from_json(b"".join(source)))), _short(answer)


def _said(body: object) -> str | None:
    """The text of an answer; None for vectors, and a model's own result."""
    if is_response(body):
        return str(read_response(cast(Mapping[str, Any], body)).text)
    choices = body.get("choices") if isinstance(body, dict) else None
    return str(choices[0]["message"]["content"]) if choices else None


def _question(line: dict[str, object]) -> str:
    body = line.get("body", line)
    if isinstance(body, dict) and isinstance(body.get("messages"), list):
        return str(body["messages"][-1].get("content"))
    return str(body.get("prompt", body.get("input", line))) if isinstance(body, dict) else str(body)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SAMPLE_CHARACTERS else text[: _SAMPLE_CHARACTERS - 1] + "…"
