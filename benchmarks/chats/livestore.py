"""``llmdo chat --livestore`` against a real sync backend, LiveStore's own in a bare workerd on this machine.

``delay``: two messages a second, at random moments and in 20 conversations of one store; the time from the moment at
which a client pushes a message to the moment at which it has the answer, less the model's second. ``stages`` are the
medians of its parts: until it is read and logged, until it is sent to the model (after its claim is in the store's
log), the call beyond its second, and until the client has the answer. The client speaks the protocol with llmdo's own
code; what LiveStore's takes to show a row is not in it. The log is in the stand-in for R2.

``rate``: 2,000 messages in 500 conversations of one store, pushed at once, and a model that takes 0.1 s. ``per_s`` is
of the whole time, from the first push to the last answer in the client, and ``in_the_middle`` of its middle half. The
logs of both sides are folders in memory.

``resume`` and ``memory`` are about connections: see ``benchmarks.chats.stores``.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import continuous
from benchmarks.chats import stores
from benchmarks.chats.store_client import StoreClient
from benchmarks.chats.times import percentiles, stages
from benchmarks.reporting.figures import Figure, Goal, at_most
from benchmarks.servers.fake_endpoint import fake_endpoint
from benchmarks.servers.local_cloudflare import BUCKET, local_cloudflare
from benchmarks.servers.sync_backend import SyncBackend, sync_backend
from benchmarks.ways.measuring import children_cpu_s
from llmdo.storage.livestore.frames import MOST_EVENTS

MEMORY = Path("/dev/shm")
STORE, FIRST = "store", "first"
GOALS = {
    "delay: median": at_most(0.15),
    "delay: 99 % within": at_most(0.5),
    "rate: answers a second in one store": Goal(400),
    "resume: from connecting to caught up, median": at_most(0.05),
    "memory: a process that is connected to all stores": at_most(80),
}


@dataclass(frozen=True, slots=True)
class StoreScale:
    """How much is measured.

    Attributes:
        latency_s: of every call in ``delay``; ``fast_s``: in the other parts.
        per_s: messages a second for ``delay``, for ``seconds``, spread over ``talks`` conversations.
        conversations: for ``rate``, with ``each`` messages.
        events: that the store of ``resume`` has; ``times``: how often it is read again.
        stores: for ``memory``.
    """

    latency_s: float = 1.0
    per_s: float = 2.0
    seconds: float = 60.0
    talks: int = 20
    fast_s: float = 0.1
    conversations: int = 500
    each: int = 4
    events: int = 20_000
    times: int = 20
    stores: int = 100


QUICK = StoreScale(
    latency_s=0.2, per_s=5.0, seconds=3.0, talks=5, conversations=10, each=2, events=300, times=3, stores=4
)


@contextlib.contextmanager
def answering(
    url: str, backend: SyncBackend, names: Sequence[str], log: str
) -> Iterator[tuple[subprocess.Popen[bytes], StoreClient]]:
    """An ``llmdo chat`` that has answered a first message in each of some stores, and a client of these."""
    places = ["--livestore", backend.url, "--store", ",".join(names), "--log", log, "--since", "0"]
    window = continuous.Scale(window=256)
    with (
        contextlib.closing(StoreClient(backend, names)) as client,
        continuous.llmdo(window, url, "chat", *places) as process,
    ):
        for name in names:
            client.say(name, (FIRST, FIRST))
        client.wait_for(lambda: all((name, FIRST) in client.answered for name in names), process)
        yield process, client


def delay(scale: StoreScale) -> dict[str, Any]:
    """Two messages a second."""
    log, pushed = f"{BUCKET}/livestore/", dict[str, float]()
    with (
        sync_backend() as backend,
        fake_endpoint(scale.latency_s) as url,
        answering(url, backend, [STORE], log) as (process, client),
    ):
        chance, begin = random.Random(3), time.monotonic()
        due = begin
        while (due := due + chance.expovariate(scale.per_s)) < begin + scale.seconds:
            client.wait_for(lambda: time.monotonic() >= due, process)
            name = f"m{len(pushed)}"
            pushed[name] = time.time()
            client.say(STORE, (name, f"c{len(pushed) % scale.talks}"))
        client.wait_for(lambda: len(client.answered) == len(pushed) + 1, process)
    arrived = {name: at for (_, name), at in client.answered.items()}
    beyond = [arrived[name] - at - scale.latency_s for name, at in pushed.items()]
    figures = {"messages": len(pushed), "latency_s": scale.latency_s} | percentiles(beyond)
    return figures | {"stages": stages(f"{log}{STORE}/", scale.talks, scale.latency_s, pushed, arrived)}


def rate(scale: StoreScale) -> dict[str, Any]:
    """Everything at once."""
    memory = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="llmdo-benchmark-", dir=memory) as log, sync_backend(memory) as backend:
        names = [(f"c{c}-m{n}", f"c{c}") for n in range(scale.each) for c in range(scale.conversations)]
        cpu = children_cpu_s()
        with fake_endpoint(scale.fast_s) as url, answering(url, backend, [STORE], log) as (process, client):
            begin = time.time()
            for start in range(0, len(names), MOST_EVENTS):
                client.say(STORE, *names[start : start + MOST_EVENTS])
            client.wait_for(lambda: len(client.answered) == len(names) + 1, process)
        cpu = children_cpu_s() - cpu
    times = sorted(at for (_, name), at in client.answered.items() if name != FIRST)
    return {
        "messages": len(names),
        "conversations": scale.conversations,
        "latency_s": scale.fast_s,
        "seconds": round(times[-1] - begin, 2),
        "per_s": round(len(times) / (times[-1] - begin), 1),
        "in_the_middle": round(middle_rate(times), 1),
        "cpu_ms_per_answer": round(1000 * cpu / len(names), 2),
    }


def middle_rate(times: Sequence[float]) -> float:
    """How many of these sorted times there are in a second, in the middle half of them."""
    begin, end = len(times) // 4, 3 * len(times) // 4
    return (end - begin) / (times[end] - times[begin])


def resume(scale: StoreScale) -> dict[str, Any]:
    """A long log."""
    with sync_backend() as backend:
        return stores.resume(backend, scale.events, scale.times)


def memory(scale: StoreScale) -> dict[str, Any]:
    """Many stores."""
    names = [f"store-{number}" for number in range(scale.stores)]
    with tempfile.TemporaryDirectory(prefix="llmdo-benchmark-") as log, sync_backend() as backend:
        held = stores.held(backend, names)
        with fake_endpoint(scale.fast_s) as url:
            used = []
            for some in (names[:1], names):
                with answering(url, backend, some, f"{log}/{len(some)}") as (process, client):
                    messages = len(some) * (stores.EACH + 1)
                    client.wait_for(lambda: len(client.answered) == messages, process)  # noqa: B023  called at once
                    used.append(stores.resident(process.pid))
    one, all_ = used
    return {
        "stores": len(names),
        **held,
        "chat_mb": all_.mb,
        "chat_one_store_mb": one.mb,
        "chat_threads": all_.threads,
        "chat_one_store_threads": one.threads,
    }


PARTS: dict[str, Callable[[StoreScale], dict[str, Any]]] = {
    "delay": delay,
    "rate": rate,
    "resume": resume,
    "memory": memory,
}


def run(scale: StoreScale, only: str | None = None) -> list[dict[str, Any]]:
    """Measures the parts, and prints the figures of each as they come."""
    results = []
    for name, measure in PARTS.items():
        if only in (None, name):
            with local_cloudflare():
                row = {"benchmark": "chat --livestore", "part": name} | measure(scale)
            print(json.dumps(row), flush=True)
            results.append(row)
    return results


def figures(results: Sequence[dict[str, Any]]) -> Iterator[Figure]:
    """What is judged, and what explains it."""
    for row in results:
        match row["part"]:
            case "delay":
                yield Figure("delay: median", row["p50_s"], "s")
                yield Figure("delay: 99 % within", row["p99_s"], "s")
                yield Figure("delay: longest", row["max_s"], "s")
            case "rate":
                yield Figure("rate: answers a second in one store", row["per_s"])
                yield Figure("rate: the same, in the middle half", row["in_the_middle"])
                yield Figure("rate: CPU an answer", row["cpu_ms_per_answer"], "ms")
            case "resume":
                yield Figure("resume: from connecting to caught up, median", row["p50_s"], "s")
                yield Figure("resume: from connecting to caught up, longest", row["max_s"], "s")
                yield Figure("resume: the whole log, read first", row["first_s"], "s")
            case "memory":
                yield Figure("memory: a process that is connected to all stores", row["mb"], "MB")
                yield Figure("memory: of it the connections", round(row["mb"] - row["before_mb"], 1), "MB")
                yield Figure("memory: llmdo chat", row["chat_mb"], "MB")
                yield Figure(
                    "memory: more than llmdo chat with one store",
                    round(row["chat_mb"] - row["chat_one_store_mb"], 1),
                    "MB",
                )
                yield Figure("memory: threads of llmdo chat", row["chat_threads"])
                yield Figure("memory: its threads with one store", row["chat_one_store_threads"])
