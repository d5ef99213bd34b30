"""What can go wrong with a picture, a sound or a file that a line names, in the tree of ``llmdo.backends.errors``."""

from __future__ import annotations

from llmdo.backends.errors import LineError, Retryable, StopRun


class MediaNotAllowed(LineError):
    """The line names a place that the run was not given; a retry that allows it answers the line."""


class MediaUnusable(LineError):
    """The object is missing, too large, or of another kind than the line says."""


class MediaChanged(Retryable):
    """The object was replaced between the look at its version and the read."""


class MediaAway(StopRun):
    """The place of the objects cannot be read at all; the lines stay open, and a later run resumes."""


class MediaOutage(Exception):
    """The place did not answer this time; asked again, it may. The argument is a sentence."""
