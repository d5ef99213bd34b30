"""The addresses that a process and its descendants listen on, read from /proc, and a refusal of public ones."""

from __future__ import annotations

import logging
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from llmdo.pipelines.usage import UsageError

_log = logging.getLogger(__name__)

_PROC = Path("/proc")
_LISTEN = "0A"  # TCP_LISTEN of Linux
_SOCKET = re.compile(r"socket:\[(\d+)\]")

ALLOW = "--allow-open-ports"
_RISK = "whoever reaches that over the network can run any program as this user, without a password"

Listener = tuple[IPv4Address | IPv6Address, int]


def can_look() -> bool:
    """Whether this system shows sockets in /proc. macOS does not."""
    return (_PROC / "self" / "net" / "tcp").exists()


def listening(pid: int) -> set[Listener]:
    """Address and port of each TCP socket that a process or one of its descendants listens on.

    An IPv4 address within IPv6 comes as IPv4. Raises OSError for a process that has ended or is another user's, and
    where ``can_look`` is false.
    """
    found = _listening_itself(pid)
    for descendant in _descendants(pid):
        with suppress(OSError):  # ended meanwhile, or became another user's
            found |= _listening_itself(descendant)
    return found


def open_to_strangers(pid: int) -> list[str]:
    """The addresses, such as ``[::]:8073``, where other machines may reach a process or one of its descendants.

    Sorted; empty if they listen on loopback only. Raises what ``listening`` does.
    """
    return sorted(shown(endpoint) for endpoint in listening(pid) if not endpoint[0].is_loopback)


def refuse_strangers(name: str, pid: int, remedy: str, *, allowed: bool) -> None:
    """Refuses a server, by its pid, that other machines may reach: it runs whatever program it is sent.

    Args:
        name: what the error calls it.
        remedy: how to get one that listens on loopback only, as an imperative.
        allowed: only warn.

    Raises UsageError. Does nothing where ``can_look`` is false.
    """
    if not can_look():
        return
    addresses = ", ".join(open_to_strangers(pid))
    if addresses and allowed:
        _log.warning("%s listens on %s: %s", name, addresses, _RISK)
    elif addresses:
        raise UsageError([f"{name} listens on {addresses}: {_RISK}; {remedy}, or accept that with {ALLOW}"])


def shown(endpoint: Listener) -> str:
    """``127.0.0.1:8073`` or ``[::1]:8073``."""
    address, port = endpoint
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def _listening_itself(pid: int) -> set[Listener]:
    held = set(_sockets(pid))
    return {endpoint for inode, endpoint in _table(pid) if inode in held}


def _sockets(pid: int) -> Iterator[str]:
    """The inodes of the sockets that a process holds open."""
    for descriptor in (_PROC / str(pid) / "fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            if match := _SOCKET.fullmatch(str(descriptor.readlink())):
                yield match[1]


def _table(pid: int) -> Iterator[tuple[str, Listener]]:
    """Inode and endpoint of all sockets that listen in a process's network namespace."""
    for name in ("tcp", "tcp6"):
        table = _PROC / str(pid) / "net" / name
        if not table.exists():  # tcp6 where the kernel has no IPv6
            continue
        for line in table.read_text().splitlines()[1:]:
            _, local, _, state, _, _, _, _, _, inode, *_ = line.split()
            if state == _LISTEN:
                yield inode, _endpoint(local)


def _endpoint(text: str) -> Listener:
    """Reads ``0100007F:1F89``: the address in words of 32 bits, each in the machine's byte order.

    >>> shown(_endpoint("00000000:1F89"))
    '0.0.0.0:8073'
    """
    address, _, port = text.partition(":")
    words = (int(address[i : i + 8], 16) for i in range(0, len(address), 8))
    packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    if len(packed) == 4:
        return IPv4Address(packed), int(port, 16)
    ipv6 = IPv6Address(packed)
    return ipv6.ipv4_mapped or ipv6, int(port, 16)


def _descendants(pid: int) -> list[int]:
    """Children, their children, and so on, of a process."""
    children: dict[int, list[int]] = defaultdict(list)
    for stat in _PROC.glob("[0-9]*/stat"):
        with suppress(OSError):  # ended meanwhile
            # The name, in parentheses, may hold anything; the state and the parent's pid come after it.
            parent = stat.read_text(errors="replace").rpartition(")")[2].split()[1]
            children[int(parent)].append(int(stat.parent.name))
    found, new = [], [pid]
    while new:
        new = [child for one in new for child in children[one]]
        found += new
    return found
