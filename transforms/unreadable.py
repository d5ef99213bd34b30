"""What is raised of a file that cannot be read as it is."""

from __future__ import annotations


class CorruptData(ValueError):
    """The bytes are not what the file's name or format says, are damaged, or end in the middle.

    Attributes:
        remedy: what to do, for the end of the sentence; "" where the message is whole sentence about the file. Where
            it is set, the message continues a sentence that begins with the file's name.
    """

    def __init__(self, message: str, remedy: str = "upload it again") -> None:
        super().__init__(message)
        self.remedy = remedy

    def about(self, place: str) -> CorruptData:
        """The same with a whole sentence about the file at ``place``."""
        return CorruptData(f"{place} {self}: {self.remedy}", "") if self.remedy else self


class TooLarge(ValueError):
    """There is more content than is allowed. The message continues a sentence."""
