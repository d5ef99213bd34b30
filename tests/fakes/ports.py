"""Ports for servers that a test starts later, or again."""

from __future__ import annotations

import random
import socket

# Below those that systems give to outgoing connections and to port 0, which would be taken by others in between: some
# hundred processes of a test run connect and listen meanwhile.
_PORTS = range(20_000, 32_000)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, and nobody gets by chance."""
    for port in random.SystemRandom().sample(_PORTS, 100):
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port of this machine is free")
