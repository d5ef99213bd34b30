"""One run, as a value that its steps carry to the process that they work in. Without Beam."""

from __future__ import annotations

from dataclasses import dataclass

from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import Location, ObjectStore
from llmdo.storage.output.jobs import Jobs
from llmdo.storage.runs.members import Members
from llmdo.transforms.run_state import RunState, state_of


@dataclass(frozen=True, slots=True)
class Run:
    """What all steps of a run need to know about it.

    Attributes:
        run_id: names the run among all others.
        output: where its answers go; that of chats is their log. The run's heartbeat is there, too.
        configuration: fingerprint of what decides an answer; "" where answers of any model and prompt may stand
            together.
        remote: whether the steps run in other processes than the one that started the run; these are its members.
        notify: id of the queue that gets a message for each settled file, or "".
    """

    run_id: str
    output: Location
    configuration: str = ""
    remote: bool = False
    notify: str = ""

    @property
    def state(self) -> RunState:
        """What this process has done for the run."""
        return state_of(self.run_id)

    @property
    def store(self) -> ObjectStore:
        """The store that the output is in."""
        return open_store(self.output.store_url)

    @property
    def jobs(self) -> Jobs:
        """The job records of files in progress."""
        return Jobs(self.store, self.output.key)

    @property
    def notes(self) -> Members:
        """Reports and orders among the processes of the run."""
        return Members(self.store, self.output.key, self.run_id)
