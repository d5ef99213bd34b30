"""Finds ids that several lines of a file have, in 8 bytes a line: by hashes, of which two are the same by chance in one
of a million files of four million lines.
"""

from __future__ import annotations

import hashlib
from array import array

import numpy as np
from numpy.typing import NDArray

from llmdo.backends.errors import short

# Ids that are held as text until they are looked up together.
BATCH = 1 << 16


class RepeatedIds:
    """Counts the lines whose id another line of the file had before.

    Attributes:
        repeated: how many there are, and ``example``, the id of one of them.
    """

    def __init__(self, batch: int = BATCH) -> None:
        self.repeated = 0
        self.example: str | None = None
        self._batch = batch
        self._ids: list[str] = []
        # Hashes of earlier batches, each array sorted, and at least twice as long as the next.
        self._seen: list[NDArray[np.uint64]] = []

    def add(self, name: str) -> None:
        """One more line."""
        self._ids.append(name)
        if len(self._ids) >= self._batch:
            self.close()

    def note(self, file: str) -> str:
        """A sentence about them; "" if there are none."""
        self.close()
        if not self.repeated:
            return ""
        have = "line has" if self.repeated == 1 else "lines have"
        return (
            f"{file}: {self.repeated:,} {have} an id that a line before has ({short(self.example)}): their answers are "
            "told apart by source.offset"
        )

    def close(self) -> None:
        """Looks up what was added since the last time."""
        names, self._ids = self._ids, []
        if not names:
            return
        hashes = np.frombuffer(array("Q", map(_hash, names)), np.uint64)
        unique, first = np.unique(hashes, return_index=True)
        new = np.ones(len(unique), bool)
        for seen in self._seen:
            new &= ~np.isin(unique, seen)
        again = np.ones(len(names), bool)
        again[first[new]] = False
        if again.any():
            self.repeated += int(again.sum())
            self.example = self.example or names[int(again.argmax())]
        self._seen.append(unique[new])
        while len(self._seen) > 1 and len(self._seen[-2]) < 2 * len(self._seen[-1]):
            last = self._seen.pop()
            self._seen[-1] = np.union1d(self._seen[-1], last)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest())
