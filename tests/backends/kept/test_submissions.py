"""What the ledger knows of requests that were handed over, in any order of events and with several runs at once."""

from __future__ import annotations

import asyncio
import random

from hypothesis import given
from hypothesis import strategies as st

from llmdo.backends.kept.submissions import Pointer, Submissions


class Ledger:
    """Entries that are written once; each operation takes its turn among those of other runs."""

    def __init__(self, seed: int = 0) -> None:
        self.entries: dict[str, bytes] = {}
        self._random = random.Random(seed)

    async def get(self, key: str) -> bytes | None:
        for _ in range(self._random.randrange(3)):
            await asyncio.sleep(0)
        return self.entries.get(key)

    async def put(self, key: str, value: bytes) -> None:
        for _ in range(self._random.randrange(3)):
            await asyncio.sleep(0)
        self.entries.setdefault(key, value)

    def run(self) -> Submissions:
        """As a run sees it that begins now: it remembers nothing."""
        return Submissions(self.get, self.put)


def pointer(nonce: str) -> Pointer:
    return Pointer(0, "r", 1, 0.0, nonce)


@given(st.lists(st.sampled_from(["attach", "give back", "give up", "die"]), max_size=6))
def test_a_pointer_holds_until_its_nonce_is_returned_whatever_happened_before(ends):
    async def story() -> None:
        ledger = Ledger()
        for generation, end in enumerate(ends):
            assert await ledger.run().find("key") == (generation, None)
            run, nonce = ledger.run(), f"nonce{generation}"
            assert await run.reserve(nonce, "", {("key", generation): pointer(nonce)})
            assert await ledger.run().find("key") == (generation, pointer(nonce))
            if end == "give back":
                assert await run.give_back(nonce) == ""
                continue
            if end == "give up":
                assert await run.attach(nonce, "batch") == "batch"
                await run.give_up(nonce)
                continue
            if end == "attach":
                assert await run.attach(nonce, "batch") == "batch"
            # The next run settles it one way only, and the first decision stays.
            holds = await ledger.run().give_back(nonce)
            assert holds == ("batch" if end == "attach" else "")
            assert await ledger.run().attach(nonce, "another") == holds
            if holds:
                assert await ledger.run().find("key") == (generation, pointer(nonce))
                return

    asyncio.run(story())


@given(
    st.integers(0, 10_000),
    st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=2, max_size=4),
)
def test_of_runs_that_reserve_one_request_at_the_same_time_at_most_one_has_it(seed, wanted):
    async def story() -> list[bool]:
        ledger = Ledger(seed)
        return await asyncio.gather(
            *(
                ledger.run().reserve(str(run), "", {(f"key{one}", 0): pointer(str(run)) for one in keys})
                for run, keys in enumerate(wanted)
            )
        )

    won = [keys for keys, mine in zip(wanted, asyncio.run(story()), strict=True) if mine]
    assert sum(map(len, won)) == len(set().union(*won))


@given(st.integers(0, 10_000))
def test_attach_and_give_back_at_the_same_time_agree(seed):
    async def story() -> tuple[str, str, str]:
        ledger = Ledger(seed)
        both = await asyncio.gather(ledger.run().attach("n", "batch"), ledger.run().give_back("n"))
        return (*both, await ledger.run().batch_of("n") or "")

    assert len(set(asyncio.run(story()))) == 1


def test_an_entry_of_another_shape_is_no_pointer_and_the_next_generation_is_free(caplog):
    async def story() -> tuple[int, Pointer | None]:
        ledger = Ledger()
        await ledger.run().reserve("n", "", {("key", 0): pointer("n")})
        (place,) = [key for key, value in ledger.entries.items() if b'"nonce"' in value]
        ledger.entries[place] = b'{"from": "a later version"}'
        return await ledger.run().find("key")

    assert asyncio.run(story()) == (1, None)
    assert "cannot read" in caplog.text
