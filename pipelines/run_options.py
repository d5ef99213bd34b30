"""What all runs' options tell of where they run and what is theirs, whatever their graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from llmdo.backends.money.money import Limits
from llmdo.storage.objects.store import Location


class RunOptions(Protocol):
    """See JsonlOptions. A ``configuration`` of "": answers of any model and prompt may stand together."""

    @property
    def runner(self) -> str:
        """A name in ``llmdo.runners.running.attempt.RUNNERS``."""

    @property
    def prism_location(self) -> str | None:
        """Where the binary is, if it is said."""

    @property
    def allow_open_ports(self) -> bool:
        """Whether its runner may listen where other machines reach it."""

    @property
    def continuous(self) -> bool:
        """Whether the run goes on until it is stopped."""

    @property
    def apart(self) -> bool:
        """Whether its steps run in other processes than the one that begins it."""

    @property
    def drain_seconds(self) -> float:
        """How long calls in flight may go on when it is told to stop."""

    @property
    def limits(self) -> Limits:
        """What it may spend."""

    @property
    def output(self) -> str | None:
        """As the user wrote it."""

    @property
    def output_location(self) -> Location:
        """Where its heartbeat goes."""

    @property
    def configuration(self) -> str:
        """The fingerprint of what decides an answer."""

    @property
    def decisive(self) -> Mapping[str, Any]:
        """What decides an answer."""
