"""The states of runs in the process of the tests."""

from __future__ import annotations

from llmdo.transforms import run_state as module
from llmdo.transforms.acks import close_acks
from llmdo.transforms.chat.conversations import close_conversations
from llmdo.transforms.members import Member
from llmdo.transforms.run_state import RunState, state_of


def run_state(run_id: str = "run-1") -> RunState:
    """The state of a run; most tests have one, of this name."""
    return state_of(run_id)


def fresh_state(run_id: str = "run-1") -> RunState:
    """A run's state in a process that has not heard of the run."""
    module._states.pop(run_id, None)
    return state_of(run_id)


def forget_runs() -> None:
    """Closes what runs have left open in this process, and forgets them."""
    for state in list(module._states.values()):
        close_acks(state)
        close_conversations(state)
        for member in state.take(Member).values():
            member.stop()
    module._states.clear()
    module._over.clear()
