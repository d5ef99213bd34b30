"""A worker of ``--processes``: a process that another one of llmdo starts, with its end of a socket.

``python -m llmdo.runners.workers.child DESCRIPTOR``; not to be started by hand.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from llmdo.runners.lean_beam import import_beam
from llmdo.runners.workers.wire import Begin, Channel


def main(arguments: Sequence[str]) -> int:
    """Works until the other side has no more for it, or is gone."""
    channel = Channel(int(arguments[0]))
    try:
        begin = channel.receive()
    except EOFError:
        return 1
    if not isinstance(begin, Begin):
        return 1
    import_beam(begin.options.runner)  # before anything that imports it
    return int(import_module("llmdo.runners.workers.working").work(channel, begin))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
