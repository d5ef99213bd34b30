"""The command is killed, or gets Ctrl-C, at each stage of a batch: a later run in any mode fetches its answers."""

from __future__ import annotations

import signal
from itertools import product

import pytest

from llmdo.runners.exit_codes import EXIT_ANSWERED, EXIT_FAILED, EXIT_HANDED_OVER
from tests.integration.batches.commands import HELD_S, Commands, wait_until

LINES = 40
# A stage → the operation of the server during which the process is stopped.
STAGES = {
    "openai": {
        "uploading": "files.create",
        "reply lost": "batches.list",  # by which it looks for the batch
        "polling": "batches.retrieve",
        "fetching": "files.content",
    },
    "anthropic": {
        "uploading": "batches.create",
        "reply lost": "batches.list",
        "polling": "batches.retrieve",
        "fetching": "batches.results",
    },
}
LATER = ("sync", "auto", "schedule", "batch")
FAST = {("openai", "reply lost", "SIGKILL"), ("anthropic", "polling", "SIGINT")}


def cases():
    """Each shape, stage and signal; the modes of later runs take turns."""
    stops = [*product(STAGES, STAGES["openai"], ("SIGKILL", "SIGINT"))]
    for number, (shape, stage, stop) in enumerate(stops):
        fast = (shape, stage, stop) in FAST
        later = "sync" if fast else LATER[(number + number // 4) % 4]
        name = f"{shape}-{stage}-{stop}-{later}".replace(" ", "-")
        yield pytest.param(shape, stage, stop, later, fast, id=name, marks=() if fast else pytest.mark.slow)


@pytest.fixture
def commands(cloudflare, tmp_path):
    """Makes the commands of a test."""
    made = []

    def make(shape, *, quick):
        made.append(Commands(cloudflare, tmp_path, shape, quick=quick))
        made[0].ask(LINES)
        return made[0]

    yield make
    for one in made:
        one.kill_all()


def bring_to(one, stage, held_s, *more):
    """Starts a run that stands still at a stage, for so long; returns it when it does."""
    operation = STAGES[one.shape][stage]
    if stage == "reply lost":
        one.server.fault(one.shape, match="#batches.create", drop=True, after=True, count=1)
    if stage in ("polling", "reply lost"):
        one.server.fault(one.shape, batch="hold", share=0.5)  # half of its lines are answered, and paid for
    one.hold(
        operation, held_s, drop=stage == "uploading" and held_s == HELD_S
    )  # and is not done after the client's death
    process = one.start("--mode", "batch", *more)
    wait_until(lambda: one.is_held(operation), process)
    return process


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("shape", "stage", "stop", "later", "quick"), [*cases()])
def test_a_command_that_is_stopped_at_any_stage_pays_for_nothing_twice(commands, shape, stage, stop, later, quick):
    one = commands(shape, quick=quick)
    killed = stop == "SIGKILL"
    process = bring_to(one, stage, HELD_S if killed else 3.0)
    process.send_signal(getattr(signal, stop))
    code, summary, err = one.end(process)
    if killed:
        assert code == -signal.SIGKILL
    elif stage == "fetching":  # nothing waits any more
        assert code in (EXIT_ANSWERED, EXIT_FAILED), (summary, err)
        assert code == EXIT_ANSWERED or summary["problem"].startswith("stopped by SIGINT; run the same command again")
    elif (shape, stage) == ("anthropic", "reply lost"):  # a batch in progress does not tell whose it is
        assert code == EXIT_FAILED, (summary, err)
        assert "nobody can tell whether a batch of 40 requests was submitted" in " ".join(err.split())
    else:
        assert code == EXIT_HANDED_OVER, (summary, err)
        assert summary["handed_over"]["lines"] == LINES
        assert summary["handed_over"]["said"].startswith(f"handed over, {LINES} lines, expected by 20")
    one.server.clear_faults()
    one.collect(later)
    one.check(LINES)
    assert one.submitted() <= 1 + (stage == "uploading")


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("shape", STAGES)
@pytest.mark.parametrize("stage", ["uploading", "reply lost", None])
def test_what_was_left_with_detach_or_killed_meanwhile_is_fetched_by_a_schedule(commands, shape, stage):
    one = commands(shape, quick=False)
    one.server.fault(shape, batch="hold", share=0.5)
    if stage:
        process = bring_to(one, stage, HELD_S, "--detach")
        process.kill()
        assert one.end(process)[0] == -signal.SIGKILL
    else:
        code, summary, _ = one.end(one.start("--mode", "batch", "--detach"))
        assert (code, summary["handed_over"]["lines"]) == (EXIT_HANDED_OVER, LINES)
        assert one.submitted() == 1
    one.server.clear_faults()
    one.collect("schedule")
    one.check(LINES)
    assert one.submitted() == 1
