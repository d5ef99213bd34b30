"""How a run ended, for people, for machines, and as an exit code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transforms.elements import FileVersion, Settled
from transforms.run_state import Counts

EXIT_ANSWERED, EXIT_FAILED, EXIT_USAGE, EXIT_SOME_ERRORS = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended.

    Attributes:
        settled: files that are done or stale, also those that were done before; the newest 10,000, ``counts`` has all.
        in_work: files that this run opened and did not finish; the next run goes on with them.
        left: what was not opened, and why.
        problem: why the run stopped early, or None.
        asleep: it was frozen or cut off for too long.
        final: it would stop again for the same reason.
        others: files that other runs work on, with the run's id.
        restarts: how often the pipeline of a continuous run was begun again.
    """

    run_id: str
    counts: Counts
    settled: tuple[Settled, ...]
    in_work: tuple[FileVersion, ...]
    left: dict[str, str]
    problem: str | None = None
    asleep: bool = False
    final: bool = False
    others: dict[str, str] = field(default_factory=dict)
    restarts: int = 0
    continuous: bool = False

    @property
    def exit_code(self) -> int:
        """0 all answered, or drained when told to; 3 finished, but some lines ended as errors or a file as stale; 1
        failed or stopped.
        """
        if self.continuous:
            return EXIT_FAILED if self.problem else EXIT_ANSWERED
        if self.problem or self.in_work or self.left:
            return EXIT_FAILED
        incomplete = self.counts.files_with_errors or self.counts.files_stale
        return EXIT_SOME_ERRORS if incomplete else EXIT_ANSWERED

    def as_json(self) -> dict[str, Any]:
        """For ``--json``; times in ISO 8601, sizes in bytes."""
        counts = self.counts
        return {
            "run_id": self.run_id,
            "exit_code": self.exit_code,
            "problem": self.problem,
            "restarts": self.restarts,
            "answered": counts.answered + counts.answered_before,
            "failed": counts.failed + counts.failed_before,
            "input_tokens": counts.input_tokens,
            "output_tokens": counts.output_tokens,
            "messages": {"passed_over": counts.messages_passed_over, "undecodable": counts.messages_undecodable},
            "files_done": counts.files_done,
            "files_stale": counts.files_stale,
            "files": [
                {"file": f"{s.file.store_url}/{s.file.key}", "etag": s.file.etag, "status": s.status}
                | ({"answered": s.answered, "failed": s.failed} if s.status == "done" else {})
                | ({"reason": s.reason} if s.reason else {})
                for s in self.settled
            ],
            "in_work": [f"{file.store_url}/{file.key}" for file in self.in_work],
            "left": self.left,
            "in_work_by_others": self.others,
        }
