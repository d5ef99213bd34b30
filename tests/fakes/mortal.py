"""A provider of batches whose caller's process stands still at a chosen point, as one that has died."""

from __future__ import annotations

import asyncio

from llmdo.backends.backend import BatchLimits
from llmdo.backends.errors import Overloaded


class Mortal:
    """Outlives processes; at its ``at``-th point the one that comes by stands still."""

    def __init__(self, at=None):
        self.at, self.points, self.dead = at, 0, False

    async def point(self):
        self.points += 1
        self.dead = self.dead or self.points == self.at
        if self.dead:
            await asyncio.Event().wait()

    def takes_batches(self, model):
        return True

    def batch_limits(self, model):
        return BatchLimits(1000, 10_000_000, 86_400.0, finds=True)

    async def batch_share(self, request):
        return 1e-6

    async def list_models(self):
        raise Overloaded("no list")
