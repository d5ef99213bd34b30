"""How soon a message is answered, and how many conversations run at once. Prints one JSON object a line.

    python -m benchmarks.chat [--quick] [--seconds 60] [--only PART]
    python -m benchmarks.chat --livestore [--quick] [--seconds 60] [--only PART]

With ``--livestore`` the chats are in LiveStore's event logs: see ``benchmarks.chats.livestore``. It needs Node.js 20.

Queues and R2 are an ``llmdo local``, the model an endpoint that always takes a second, ``llmdo chat`` on Prism a third
process, which polls every 0.25 s.

``delay``: 20 messages a second, at random moments and in many conversations; the time from a message's push to the
moment at which the reply queue has its response, less the model's second. ``stages`` are the medians of its parts:
until it is read and logged, until it is sent to the model, the call beyond its second, and until it is pushed.

``full``: 256 conversations that always have a message waiting, so that 256 calls a second are possible; the log is a
folder in memory, since the stand-in for R2, or a disk, would be the limit. ``calls_per_s`` and ``of_limit`` are of the
middle half of the time; ``from_the_start`` is the share of the 256 from the first call to the start of the last one.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx

from benchmarks import continuous
from benchmarks.chats import livestore
from benchmarks.chats.livestore import MEMORY
from benchmarks.chats.times import percentiles, stages
from benchmarks.read_lines import PROMPT
from benchmarks.reporting.figures import Figure, Goal, at_most, command_line, report
from benchmarks.servers.fake_endpoint import Span, fake_endpoint, take_spans
from benchmarks.servers.local_cloudflare import BUCKET, local_cloudflare
from benchmarks.ways.measuring import children_cpu_s
from llmdo.settings.environment import cloudflare_account
from llmdo.storage.chat.records import RESPONSE
from llmdo.storage.queues.client import QueueClient

POLL_S = 0.25
TIMEOUT_S = 600.0
GOALS = {
    "delay: median": at_most(0.5),
    "delay: 99 % within": at_most(1.5),
    "full: of the calls a second that are possible": Goal(0.9),
}


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured.

    Attributes:
        latency_s: of every call.
        per_s: messages a second for ``delay``, for ``seconds``, spread over ``talks`` conversations.
        conversations: that always have a message waiting, for ``full``, with ``each`` messages.
    """

    latency_s: float = 1.0
    per_s: float = 20.0
    seconds: float = 60.0
    talks: int = 200
    conversations: int = 256
    each: int = 20


QUICK = Scale(latency_s=0.2, per_s=10.0, seconds=3.0, talks=20, conversations=8, each=5)


class Queues:
    """Where events go and responses come from."""

    def __init__(self, name: str) -> None:
        self.names = f"{name}-in", f"{name}-out"
        self.events, self._responses = (_made(each) for each in self.names)
        self.arrived: dict[str, float] = {}  # message → Unix time at which the queue had its response

    def take(self) -> None:
        """Takes what has arrived."""
        while messages := self._responses.pull().messages:
            for message in messages:
                if message.body["name"] == RESPONSE:
                    args = message.body["args"]
                    if args["modelId"] == "error":
                        raise SystemExit(f"a message got no answer: {args['message']}")
                    self.arrived.setdefault(args["responseToMessageId"], message.timestamp_ms / 1000)
            self._responses.settle([message.lease_id for message in messages])


def _made(name: str) -> QueueClient:
    account = cloudflare_account()
    with httpx.Client(headers={"Authorization": f"Bearer {account.token}"}, trust_env=False, timeout=60) as api:
        made = api.post(f"{account.url}/queues", json={"queue_name": name}).raise_for_status().json()["result"]
        consumer = {"type": "http_pull", "dead_letter_queue": f"{name}-dead"}
        api.post(f"{account.url}/queues/{made['queue_id']}/consumers", json=consumer).raise_for_status()
    return QueueClient(account, made["queue_id"])


def sent(identity: str, conversation: str) -> dict[str, Any]:
    """A user's message, sent now."""
    args = {"id": identity, "conversationId": conversation, "message": PROMPT, "role": "user"}
    return {"name": "v1.ChatMessageSent", "args": args | {"createdAt": round(time.time() * 1000)}}


@contextlib.contextmanager
def answering(scale: Scale, url: str, queues: Queues, log: str) -> Iterator[subprocess.Popen[bytes]]:
    """An ``llmdo chat`` that has answered a first message."""
    places = ["--queue", queues.names[0], "--reply-queue", queues.names[1], "--log", log]
    window = continuous.Scale(window=scale.conversations)
    with continuous.llmdo(window, url, "chat", *places, "--poll-seconds", str(POLL_S)) as process:
        queues.events.push_many([sent("first", "first")])
        wait_for(lambda: "first" in queues.arrived, queues, process)
        yield process


def wait_for(done: Callable[[], bool], queues: Queues, process: subprocess.Popen[bytes]) -> None:
    """Takes responses until ``done``."""
    begin = time.monotonic()
    while not done():
        continuous.check(process, begin)
        time.sleep(0.1)
        queues.take()


def delay(scale: Scale) -> dict[str, Any]:
    """20 messages a second."""
    queues, log, pushed = Queues("delay"), f"{BUCKET}/chat/", dict[str, float]()
    with fake_endpoint(scale.latency_s) as url, answering(scale, url, queues, log) as process:
        sender = threading.Thread(target=send, args=(scale, queues.events, pushed))
        begin = time.monotonic()
        sender.start()
        wait_for(lambda: not sender.is_alive() and pushed.keys() <= queues.arrived.keys(), queues, process)
        sender.join()
    beyond = [queues.arrived[name] - at - scale.latency_s for name, at in pushed.items()]
    per_s = len(pushed) / (max(pushed.values()) - min(pushed.values()))
    figures = {"messages": len(pushed), "per_s": round(per_s, 1), "seconds": round(time.monotonic() - begin, 1)}
    spent = stages(log, scale.talks, scale.latency_s, pushed, queues.arrived)
    return figures | percentiles(beyond) | {"stages": spent}


def send(scale: Scale, events: QueueClient, pushed: dict[str, float]) -> None:
    """Pushes messages one by one, and records when."""
    chance, due = random.Random(3), time.monotonic()
    end = due + scale.seconds
    while (due := due + chance.expovariate(scale.per_s)) < end:
        name = f"m{len(pushed)}"
        event = sent(name, f"c{len(pushed) % scale.talks}")
        time.sleep(max(0.0, due - time.monotonic()))
        now = time.time()
        events.push_many([event])
        pushed[name] = now


def full(scale: Scale) -> dict[str, Any]:
    """As many conversations as there may be calls in flight."""
    with tempfile.TemporaryDirectory(prefix="llmdo-benchmark-", dir=MEMORY if MEMORY.is_dir() else None) as folder:
        return _full(scale, folder)


def _full(scale: Scale, log: str) -> dict[str, Any]:
    queues = Queues("full")
    names = [(f"c{c}-m{n}", f"c{c}") for n in range(scale.each) for c in range(scale.conversations)]
    with fake_endpoint(scale.latency_s) as url:
        cpu = children_cpu_s()
        with answering(scale, url, queues, log) as process:
            take_spans(url)
            queues.events.push_many(sent(*name) for name in names)
            wait_for(lambda: len(queues.arrived) == len(names) + 1, queues, process)
        spans = take_spans(url)
        cpu = children_cpu_s() - cpu
    return {
        "conversations": scale.conversations,
        "calls": len(spans),
        **in_the_middle(spans, scale),
        "from_the_start": round(continuous.share(spans, scale.conversations, max(begin for begin, _ in spans)), 3),
        "cpu_ms_per_call": round(1000 * cpu / len(spans), 1),
    }


def in_the_middle(spans: Sequence[Span], scale: Scale) -> dict[str, float]:
    """What was answered in the middle half of the time, and its share of what was possible."""
    begin, end = min(begin for begin, _ in spans), max(end for _, end in spans)
    start, stop = (begin + part * (end - begin) for part in (0.25, 0.75))
    in_flight = sum(max(0.0, min(end, stop) - max(begin, start)) for begin, end in spans) / (stop - start)
    calls_per_s = in_flight / scale.latency_s
    return {
        "seconds": round(end - begin, 1),
        "calls_per_s": round(calls_per_s, 1),
        "of_limit": round(in_flight / scale.conversations, 3),
    }


PARTS: dict[str, Callable[[Scale], dict[str, Any]]] = {"delay": delay, "full": full}


def run(scale: Scale, only: str | None = None) -> list[dict[str, Any]]:
    """Measures the parts, and prints the figures of each as they come."""
    os.environ.pop("STORE_ID", None)
    results = []
    for name, measure in PARTS.items():
        if only in (None, name):
            with local_cloudflare():
                row = {"benchmark": "chat", "part": name, "latency_s": scale.latency_s} | measure(scale)
            print(json.dumps(row), flush=True)
            results.append(row)
    return results


def main() -> None:
    """The command."""
    parser = command_line(__doc__, "chat")
    parser.add_argument("--livestore", action="store_true", help="chats in LiveStore's stores, not in queues")
    parser.add_argument("--seconds", type=float, default=Scale().seconds, help="of messages, for delay")
    parser.add_argument("--only", choices=dict.fromkeys([*PARTS, *livestore.PARTS]), help="one part")
    chosen = parser.parse_args()
    parts = livestore.PARTS if chosen.livestore else PARTS
    if chosen.only not in (None, *parts):
        parser.error(f"there is no part {chosen.only} here: choose from {', '.join(parts)}")
    if chosen.livestore:
        stores = livestore.QUICK if chosen.quick else replace(livestore.StoreScale(), seconds=chosen.seconds)
        found = livestore.figures(livestore.run(stores, chosen.only))
        report("chat --livestore", found, livestore.GOALS, quick=chosen.quick)
        return
    scale = QUICK if chosen.quick else replace(Scale(), seconds=chosen.seconds)
    report("chat", figures(run(scale, chosen.only)), GOALS, quick=chosen.quick)


def figures(results: Sequence[dict[str, Any]]) -> Iterator[Figure]:
    """What is judged."""
    for row in results:
        if row["part"] == "delay":
            yield Figure("delay: median", row["p50_s"], "s")
            yield Figure("delay: 99 % within", row["p99_s"], "s")
            yield Figure("delay: longest", row["max_s"], "s")
        else:
            yield Figure("full: of the calls a second that are possible", row["of_limit"])
            yield Figure("full: CPU a call", row["cpu_ms_per_call"], "ms")


if __name__ == "__main__":
    main()
