"""Which addresses a name has."""

from __future__ import annotations

import socket

from aiohttp import ThreadedResolver
from aiohttp.abc import ResolveResult

_LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


class Resolver(ThreadedResolver):
    """The system's resolver, but ``localhost`` is both loopback addresses, as for curl and browsers.

    Some systems give only one of them, and a server may listen on the other one alone.
    """

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Addresses in the order in which they are tried. Raises OSError."""
        if host.rstrip(".").lower() != "localhost":
            return await super().resolve(host, port, family)
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=socket.AI_NUMERICHOST)
            for kind, address in _LOOPBACK
            if family in (kind, socket.AF_UNSPEC)
        ]
