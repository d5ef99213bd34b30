"""`--ready-by` against a local OpenAI whose batches wait: what is late is cancelled, and called in time."""

from __future__ import annotations

import time

import pytest

from llmdo.backends.lanes.ready_by import ReadyBy
from llmdo.backends.lanes.records import BatchRecord
from llmdo.runners.exit_codes import EXIT_ANSWERED
from llmdo.storage.objects.store import locate_folder
from llmdo.transforms.answers.batch_records import OutputBatches
from tests.integration.batches.test_money import PRICES
from tests.integration.batches.user import MODEL, prompts

LINES = 400
READY_S = 120.0


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_batch_that_is_late_is_cancelled_and_only_what_it_has_not_answered_is_called(user):
    """A third is answered when it stands still."""
    known = OutputBatches(locate_folder(str(user.folder / "out")))
    for number in range(20):  # of earlier runs
        name, model = f"earlier-{number}", MODEL.partition("/")[2]
        known.keep(BatchRecord(name, "openai", model, 9, 1.0, name, ended_at=9.0, queue_s=20.0, cancel_s=5.0))
    user.server.fault("openai", batch="hold", share=1 / 3)
    asked, begun = prompts(LINES), time.time()
    summary = user.run(asked, ready_by=ReadyBy(begun + READY_S, begun), price_file=PRICES)
    took_s = time.time() - begun
    assert summary.exit_code == EXIT_ANSWERED
    texts = {row["id"]: row["response"]["body"]["choices"][0]["message"]["content"] for row in user.rows()}
    assert (len(user.rows()), texts) == (LINES, {n: f"echo: {prompt}" for n, prompt in enumerate(asked)})
    ways, paid = summary.receipt.ways, user.server.stats()["paid"]
    print(
        f"{took_s:.0f} s of {READY_S:.0f} s;", {way: (one.calls, one.usd) for way, one in ways.items()}, paid["calls"]
    )
    # That no line is late is shown on a fake clock: here another test may have the machine.
    assert sum(way.usd for way in ways.values()) == pytest.approx(summary.receipt.usd)
    assert sum(ways[way].calls for way in ("batch", "list", "rescued") if way in ways) == LINES
    assert ways["rescued"].calls > 0
    assert (0 < ways["batch"].calls < LINES / 2, paid["calls"]) == (True, LINES)
