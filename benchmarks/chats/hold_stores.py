"""Connects to stores, reads all that they have, and prints its resident memory in MB before and after.

    python -m benchmarks.chats.hold_stores URL EVENTS STORE…

EVENTS is how many each has. It imports what the connections need, and nothing more.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

from llmdo.storage.livestore.stores import LiveStores
from llmdo.storage.livestore.synced_store import StorePlace

REST_S = 1.0


def memory_mb() -> float:
    """Of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGESIZE") / (1 << 20), 1)


def main() -> None:
    """The command."""
    url, events, *names = sys.argv[1:]
    payload = json.loads(os.environ["LIVESTORE_PAYLOAD"])
    before, read = memory_mb(), Counter[str]()
    places = [StorePlace(url, name, payload) for name in names]
    stores = LiveStores(places, dict.fromkeys(names, "holder"), {}, lambda *_: None, lambda _: None)
    while any(read[name] < int(events) for name in names):
        read.update(one.store for one in stores.take(1_000, 1.0))
    time.sleep(REST_S)
    print(before, memory_mb())
    stores.close()


if __name__ == "__main__":
    main()
