"""Messages about settled files, for whoever works on with the answers and does not want to poll."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmdo.settings.environment import cloudflare_account
from llmdo.storage.errors import StorageError
from llmdo.storage.output.manifests import MANIFEST_NAME
from llmdo.storage.queues.client import QueueClient
from llmdo.transforms.elements import FileVersion, Settled
from llmdo.transforms.files.folders import folder_of
from llmdo.transforms.outages import Outage, pause
from llmdo.transforms.run import Run
from llmdo.transforms.run_state import RunState

TYPE = "file-settled"
# How long one push is tried while the queue does not answer; the job records stay then. Seconds.
TELL_PATIENCE_S = 60.0


def settled_json(settled: Settled) -> dict[str, Any]:
    """A settled file for machines; ``cost_usd`` is that of all its answers, a lower bound where some are unpriced."""
    file, cost = settled.file, settled.cost
    said: dict[str, Any] = {"file": f"{file.store_url}/{file.key}", "etag": file.etag, "status": settled.status}
    if settled.status == "done":
        said |= {"answered": settled.answered, "failed": settled.failed}
        said |= {"neurons": cost.neurons, "cost_usd": cost.usd, "cost_is_lower_bound": cost.unpriced > 0}
    return said | ({"reason": settled.reason} if settled.reason else {})


def message_of(run: Run, settled: Settled) -> dict[str, Any]:
    """The message about a file: ``settled_json`` with the manifest's place, which a stale file does not have."""
    manifest = f"{run.output.store_url}/{folder_of(run.output, settled.file)}{MANIFEST_NAME}"
    return {
        "type": TYPE,
        "version": 1,
        **settled_json(settled),
        "size": settled.file.size,
        "manifest": manifest if settled.status == "done" else None,
        "run_id": run.run_id,
    }


def tell_settled(run: Run, settled: Sequence[Settled]) -> bool:
    """Sends a message for each file, if the run has a queue for them; False if the queue did not take them.

    Before the files' job records are removed: a run that dies in between leaves the records, and the next run tells
    again. So every message comes at least once. An error that will not pass stops the run.
    """
    if not run.notify or not settled:
        return True
    client = run.state.shared(QueueClient, lambda: QueueClient(cloudflare_account(), run.notify), run.notify)
    outage = Outage(run.state, f"push to queue {run.notify}")
    while True:
        try:
            client.push_many(message_of(run, one) for one in settled)
        except StorageError as error:
            try:
                wait = outage.wait_after(error)
            except StorageError as lasting:
                run.state.stop(lasting)
                return False
            if outage.lasted_s > TELL_PATIENCE_S or run.state.stopping:
                what = f"messages to queue {run.notify}"
                run.state.report_undone(what, f"some files that are done were not told of ({error}): run again")
                return False
            pause(run.state, wait)
        else:
            outage.over()
            return True


def close_pushes(state: RunState) -> None:
    """Closes what ``tell_settled`` opened in this process."""
    for client in state.take(QueueClient).values():
        client.close()


def remove_told(run: Run, settled: Sequence[Settled]) -> None:
    """Removes the job records of settled files once they were told of. Raises StorageError."""
    if tell_settled(run, settled):
        run.jobs.remove_many([_record_key(one.file) for one in settled])


def _record_key(file: FileVersion) -> tuple[str, str, str]:
    return file.store_url, file.key, file.etag
