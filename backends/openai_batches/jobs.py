"""What services say of a batch, in one form.

OpenAI's object, Together's (in ``job``, states in capitals, times as text) and Mistral's (``input_files``,
``output_file``, states of its own). A state that is not known means that the service still works.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from llmdo.backends.errors import BadReply
from llmdo.backends.http.reply_json import excerpt, mapping, whole_number

# In lower case. `cancelling` and `cancellation_requested` are not the end: answers are still collected.
_ENDED = frozenset({"completed", "success", "failed", "expired", "timeout_exceeded", "cancelled", "canceled"})
_DONE = frozenset({"completed", "success"})
_TOO_MANY_TOKENS = "token_limit_exceeded"
_LIMIT = re.compile(r"limit(?: of|:)?\s*([\d,]{2,}|\d+)\s*(k|m)?\b", re.IGNORECASE)
_UNITS = {"": 1, "k": 1_000, "m": 1_000_000}
LISTED_AT_ONCE = 100  # batches of a page of their list, at most
_SHOWN = 3  # problems of a batch that a sentence quotes


@dataclass(frozen=True, slots=True)
class BatchJob:
    """A batch as its service describes it.

    Attributes:
        name: its id.
        status: in lower case.
        files: ids of the files with its answers, then with its errors.
        input: id of the file that was handed over, or "".
        created, ended: Unix times in seconds; None where they are not told.
        metadata: what was given to it.
        answered: how many requests the service says that it has answered.
        problems: what it says against the batch as a whole: (code, words).
    """

    name: str
    status: str
    files: tuple[str, ...] = ()
    input: str = ""
    created: float | None = None
    ended: float | None = None
    metadata: Mapping[str, Any] | None = None
    answered: int = 0
    problems: tuple[tuple[str, str], ...] = ()

    @property
    def working(self) -> bool:
        """Whether answers may still come."""
        return self.status not in _ENDED

    @property
    def succeeded(self) -> bool:
        """Whether it came to its own end: neither failed, nor expired, nor cancelled."""
        return self.status in _DONE

    @property
    def was_refused(self) -> bool:
        """Whether the service looked at it, and ran none of it."""
        return self.status == "failed" and not self.files and not self.answered

    @property
    def token_limit(self) -> int | None:
        """How many tokens of a model may wait, where that is what it failed for; 0 where no number is told."""
        words = next((words for code, words in self.problems if _TOO_MANY_TOKENS in (code, words)), None)
        if words is None:
            return None
        found = _LIMIT.search(words)
        return int(found[1].replace(",", "")) * _UNITS[(found[2] or "").lower()] if found else 0

    @property
    def words(self) -> str:
        """The service's problems with it, in one line; "" without any."""
        return "; ".join(f"{code}: {words}" if code else words for code, words in self.problems[:_SHOWN])


def read_job(body: Any, model: str) -> BatchJob:
    """The batch that a reply describes. Raises BadReply."""
    fields = mapping(mapping(body).get("job")) or mapping(body)
    if not isinstance(fields.get("id"), str) or not isinstance(fields.get("status"), str):
        raise BadReply(f"{model}: the service sent no batch ({excerpt(body)}): check the base URL, or use --mode sync")
    inputs = fields.get("input_files")
    first = inputs[0] if isinstance(inputs, list) and inputs else fields.get("input_file_id")
    given = (fields.get(f"{kind}_file_id") or fields.get(f"{kind}_file") for kind in ("output", "error"))
    counted = mapping(fields.get("request_counts")).get("completed", fields.get("succeeded_requests"))
    ended = (fields.get(f"{kind}_at") for kind in ("completed", "failed", "expired", "cancelled"))
    return BatchJob(
        name=fields["id"],
        status=fields["status"].lower(),
        files=tuple(one for one in given if isinstance(one, str)),
        input=first if isinstance(first, str) else "",
        created=_time(fields.get("created_at")),
        ended=next((time for time in map(_time, ended) if time is not None), None),
        metadata=fields["metadata"] if isinstance(fields.get("metadata"), dict) else None,
        answered=whole_number(counted) or 0,
        problems=tuple(_problems(fields)),
    )


def listed_jobs(body: Any, model: str) -> list[BatchJob]:
    """The batches of a page of their list. Raises BadReply."""
    entries = mapping(body).get("data", body)
    if not isinstance(entries, list):
        raise BadReply(f"{model}: the service sent no list of batches ({excerpt(body)}): check the base URL")
    return [read_job(entry, model) for entry in entries]


def has_more(body: Any) -> bool:
    """Whether a list of batches goes on after this page: as it says, or since the page is full."""
    entries = mapping(body).get("data")
    return (
        isinstance(entries, list)
        and bool(entries)
        and bool(mapping(body).get("has_more", len(entries) >= LISTED_AT_ONCE))
    )


def _problems(fields: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    errors = fields.get("errors") or fields.get("error")
    listed = mapping(errors).get("data", errors)
    for one in listed if isinstance(listed, list) else [listed]:
        if isinstance(one, str) and one:
            yield "", one
        elif isinstance(one, dict):
            line = f"line {one['line']}: " if one.get("line") is not None else ""
            yield str(one.get("code") or ""), f"{line}{one.get('message') or ''}"


def _time(value: Any) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    try:
        read = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()
