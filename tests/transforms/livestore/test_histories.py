"""Whatever happens to backend, connections and instances: each message gets one response."""

from __future__ import annotations

import asyncio
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmdo.storage.livestore import synced_store
from llmdo.transforms.livestore import store_replies
from tests.storage.livestore.fake_backend import FakeBackend, Faults
from tests.transforms.livestore.instances import (
    Instance,
    answers,
    contiguous_behind_ours,
    message,
    of,
    respond,
    say,
    until,
)

FAULTS = {
    "calm": Faults(),
    "lossy": Faults(lose_broadcast=0.2, late_broadcast=0.3, repeat_broadcast=0.2, chunk=5),
    "cutting": Faults(cut=0.05, cut_after_push=0.2),
    "deaf": Faults(deaf=0.03),
    "refusing": Faults(refuse_push=0.2),
}
# What happens next: a message, a fault, the end of an instance and the start of another, another service's response.
STEPS = st.one_of(
    st.just(("say",)),
    st.just(("say",)),
    st.sampled_from([("fault", name) for name in FAULTS]),
    st.just(("cut",)),
    st.just(("restart",)),
    st.tuples(st.just("die"), st.integers(0, 2)),
    st.just(("respond",)),
)
# Seconds that are minutes elsewhere.
SHORT = {
    synced_store: {
        "REPLY_S": 0.4,
        "BROADCAST_S": 0.2,
        "SILENCE_S": 0.3,
        "PULL_REPLY_S": 0.5,
        "RECHECK_S": 0.8,
        "_LONGEST_WAIT_S": 0.5,
    },
    store_replies: {"_LOOK_S": 0.03, "_FIRST_WAIT_S": 0.05, "_LONGEST_WAIT_S": 0.2},
}


class History:
    """Instances that answer all messages of a store, each as soon as it is there."""

    def __init__(self, backend, *, shared, announced):
        self.backend, self.shared, self.announced = backend, shared, announced
        self.alive, self.paid, self.asked, self.foreign = set(), {}, [], set()
        self.instances, self.ended = [], []
        self.in_flight_at_deaths = 0
        for _ in range(3):
            self.join()

    def join(self):
        name = f"run-{len(self.instances) + len(self.ended)}"
        log = "log" if self.shared else f"log-{name}"
        common = (self.alive, self.paid) if self.shared else ()
        one = Instance(self.backend, name, log, *common, announced=self.announced)
        self.instances.append(one)
        for each in self.asked:
            one.begin(each)

    async def step(self, kind, which=None):
        backend = self.backend
        if kind == "say":
            self.asked.append(message(f"m{len(self.asked)}"))
            await asyncio.to_thread(say, backend, self.asked[-1].id)
            for one in self.instances:
                one.begin(self.asked[-1], takes_s=0.05)
        elif kind == "fault":
            backend.faults = FAULTS[which]
        elif kind == "cut":
            await asyncio.to_thread(backend.cut)
        elif kind == "restart":
            await asyncio.to_thread(backend.kill)
            await asyncio.to_thread(backend.start)
        elif kind == "die" and self.instances:
            one = self.instances.pop(which % len(self.instances))
            # Whoever waits for its claim asks again: it does not look at the log of chats, as a conversation does.
            self.in_flight_at_deaths += len(set(one.calls) - set(answers(backend)))
            await one.kill()
            self.ended.append(one)
            self.join()
        elif kind == "respond" and self.asked and self.asked[-1].id not in answers(backend):
            # As another service does that looks before: by compare-and-swap, too.
            self.foreign.add(self.asked[-1].id)
            await asyncio.to_thread(respond, backend, self.asked[-1].id, f"r-{self.asked[-1].id}")
        await asyncio.sleep(0.05)

    async def end(self):
        """Once all is answered, after the faults have passed."""
        self.backend.faults = Faults()
        names = {one.id for one in self.asked}
        await until(lambda: set(answers(self.backend)) >= names)
        for one in self.instances:
            await asyncio.gather(*one.tasks)

    async def close(self):
        for one in self.instances:
            await one.end()


def live(steps, *, shared, announced, claim_s):
    """What became of a history."""
    backend = FakeBackend(seed=len(steps))

    async def main():
        history = History(backend, shared=shared, announced=announced)
        try:
            async with asyncio.timeout(110):
                for step in steps:
                    await history.step(*step)
                await history.end()
        finally:
            await history.close()
        return history

    try:
        patches = [
            patch.object(module, name, value) for module, values in SHORT.items() for name, value in values.items()
        ]
        patches += [
            patch.object(store_replies, "CLAIM_S", claim_s),
            patch.object(store_replies, "RENEW_S", claim_s / 4),
        ]
        for one in patches:
            one.start()
        return asyncio.run(main()), backend
    finally:
        for one in patches:
            one.stop()
        backend.stop()


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(STEPS, min_size=3, max_size=14))
def test_each_message_gets_one_response_and_ours_follow_the_head(shared, announced, steps):
    history, backend = live(steps, shared=shared, announced=announced, claim_s=120.0 if shared else 1.5)
    found = answers(backend)
    ours = [name for name in found if name not in history.foreign]
    assert len(ours) == len(set(ours)), found
    assert set(found) == {one.id for one in history.asked}
    responses = [event["args"]["id"] for event in of(backend, "v1.LLMResponseReceived")]
    assert len(responses) == len(set(responses))
    assert contiguous_behind_ours(backend)
    calls = sum(len(one.calls) for one in [*history.instances, *history.ended])
    if announced and shared:
        # No claim ends but with its run: each is paid once, besides what was in flight at a death.
        assert calls <= len(history.asked) + history.in_flight_at_deaths
