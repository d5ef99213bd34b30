"""How long answers take, and where the time goes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median

from llmdo.storage.chat.log import ChatLog
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import locate_folder


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and maximum."""
    ordered = sorted(seconds)
    p99 = ordered[math.ceil(0.99 * len(ordered)) - 1]
    return {"p50_s": round(median(ordered), 3), "p99_s": round(p99, 3), "max_s": round(ordered[-1], 3)}


def stages(
    log: str, talks: int, latency_s: float, pushed: Mapping[str, float], arrived: Mapping[str, float]
) -> dict[str, float]:
    """Where the time went, according to a log with conversations c0, c1, …: medians in seconds.

    ``pushed`` and ``arrived``: Unix times by message.
    """
    where, found = locate_folder(log), dict[str, list[float]]()
    chats = ChatLog(open_store(where.store_url), where.key)
    for answer in (one for talk in range(talks) for one in chats.conversation(f"c{talk}").answers.values()):
        trace, name = answer.trace, answer.message_id
        times = pushed[name], trace["queued"], trace["called"], trace["answered"], arrived[name]
        for stage, (begin, end) in zip(("logged", "called", "call", "pushed"), pairwise(times), strict=True):
            found.setdefault(stage, []).append(end - begin - (latency_s if stage == "call" else 0.0))
    return {stage: round(median(each), 3) for stage, each in found.items()}
