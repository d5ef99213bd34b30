"""What every ledger promises: the database, the folder and the bucket, on the same cases."""

import asyncio
import hashlib
import logging
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmdo.storage.errors import LedgerError, StorageError
from llmdo.storage.ledger.ledger import Pruned
from llmdo.storage.ledger.opening import open_ledger, prune_ledger
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import locate

ROOT = Path(__file__).parents[3]
KINDS = ["sqlite", "folder", "r2"]
VALUES = [b"", b'{"text": "one"}', b"\n\n{}\n", bytes(range(256)), os.urandom(3 << 20)]

# Puts with 16 at once, and says the number of each entry after its put returned.
PUTS_FOR_EVER = """
import asyncio, hashlib, itertools, os, sys
from llmdo.storage.ledger.opening import open_ledger

async def main(ledger, numbers):
    async def putter():
        for n in numbers:
            await ledger.put(hashlib.sha256(b"%d" % n).hexdigest(), b"value %d " % n * 50)
            os.write(1, b"%d\\n" % n)
    await asyncio.gather(*(putter() for _ in range(16)))

asyncio.run(main(open_ledger(sys.argv[1]), itertools.count()))
"""


def key(name):
    return hashlib.sha256(str(name).encode()).hexdigest()


@asynccontextmanager
async def opened(url):
    ledger = open_ledger(url)
    try:
        yield ledger
    finally:
        await ledger.aclose()


def in_ledger(url, work):
    async def main():
        async with opened(url) as ledger:
            return await work(ledger)

    return asyncio.run(main())


def put_all(url, entries):
    async def work(ledger):
        await asyncio.gather(*(ledger.put(key(name), value) for name, value in entries.items()))

    in_ledger(url, work)


def get_all(url, names):
    async def work(ledger):
        return {name: await ledger.get(key(name)) for name in names}

    return in_ledger(url, work)


@pytest.fixture(params=KINDS)
def url(request, tmp_path):
    if request.param == "r2":
        return f"r2://{request.getfixturevalue('bucket')}/paid/answers/"
    return f"sqlite:///{tmp_path}/ledger.sqlite" if request.param == "sqlite" else str(tmp_path / "ledger")


def change_stored(url, name, change):
    """Changes the stored value of an entry behind the ledger's back."""
    if url.startswith("sqlite:"):
        db = sqlite3.connect(url.removeprefix("sqlite:///"))
        where = (bytes.fromhex(key(name)),)
        [(value,)] = db.execute("SELECT value FROM answers WHERE key = ?", where)
        db.execute("UPDATE answers SET value = ? WHERE key = ?", (change(value), *where))
        db.commit()
        db.close()
    else:
        store, stored = object_of(url, name)
        head, _, value = store.read(stored)[0].partition(b"\n")
        store.put(stored, head + b"\n" + change(value))


def is_stored(url, name):
    if url.startswith("sqlite:"):
        db = sqlite3.connect(url.removeprefix("sqlite:///"))
        [(found,)] = db.execute("SELECT count(*) FROM answers WHERE key = ?", (bytes.fromhex(key(name)),))
        db.close()
        return found == 1
    store, stored = object_of(url, name)
    return bool(list(store.list(stored)))


def object_of(url, name):
    where = locate(url)
    return open_store(where.store_url), f"{where.key}{key(name)[:2]}/{key(name)}.json"


def test_what_was_put_is_found_again_also_by_the_next_process(url, caplog):
    entries = dict(enumerate(VALUES))

    async def work(ledger):
        for name, value in entries.items():
            assert await ledger.get(key(name)) is None
            await ledger.put(key(name), value)
            assert await ledger.get(key(name)) == value

    in_ledger(url, work)
    assert get_all(url, entries) == entries
    assert caplog.messages == []


@given(entries=st.dictionaries(st.integers(), st.binary(max_size=300), max_size=20), others=st.sets(st.integers()))
@settings(max_examples=25)
@pytest.mark.parametrize("kind", ["sqlite", "folder"])
def test_every_key_has_its_own_value_or_none(kind, entries, others):
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/ledger.sqlite" if kind == "sqlite" else folder
        put_all(url, entries)
        assert get_all(url, entries.keys() | others) == {name: entries.get(name) for name in entries.keys() | others}


def test_the_first_value_stays(url):
    async def work(ledger):
        await ledger.put(key("a"), b"first")
        await ledger.put(key("a"), b"second")
        await asyncio.gather(*(ledger.put(key("b"), b"%d" % n) for n in range(10)))
        return await ledger.get(key("a")), await ledger.get(key("b"))

    a, b = in_ledger(url, work)
    assert a == b"first"
    assert get_all(url, ["a", "b"]) == {"a": a, "b": b}
    put_all(url, {"a": b"third"})
    assert get_all(url, ["a"]) == {"a": b"first"}


@pytest.mark.parametrize(
    "change",
    [lambda value: value[:-1], lambda value: value + b"}", lambda value: b"X" + value[1:], lambda value: b""],
    ids=["torn", "longer", "one byte", "emptied"],
)
def test_an_altered_value_is_a_miss_and_is_paid_once_more(url, change, caplog):
    put_all(url, dict.fromkeys("abc", b'{"answer": 1}'))
    for name in "ab":
        change_stored(url, name, change)

    async def work(ledger):
        found = [await ledger.get(key(name)) for name in "abc"]
        assert found == [None, None, b'{"answer": 1}']
        await ledger.put(key("a"), b'{"answer": 2}')
        return await ledger.get(key("a"))

    with caplog.at_level(logging.WARNING):
        assert in_ledger(url, work) == b'{"answer": 2}'
    [warning] = caplog.messages  # once for its kind
    assert key("a") in warning
    assert "is not the one that was kept" in warning
    assert get_all(url, "ac") == {"a": b'{"answer": 2}', "c": b'{"answer": 1}'}


def test_two_that_put_a_damaged_entry_right_leave_a_whole_one(url):
    put_all(url, {"a": b"paid for"})
    change_stored(url, "a", bytes.upper)

    async def main():
        async with opened(url) as one, opened(url) as two:
            assert await one.get(key("a")) is await two.get(key("a")) is None
            await one.put(key("a"), b"by one")
            await two.put(key("a"), b"by two")
            assert await one.get(key("a")) == await two.get(key("a")) == b"by one"

    asyncio.run(main())


def test_another_keys_entry_is_never_given(url):
    put_all(url, {"mine": b"mine", "yours": b"yours"})
    if url.startswith("sqlite:"):
        db = sqlite3.connect(url.removeprefix("sqlite:///"))
        db.execute("DELETE FROM answers WHERE key = ?", (bytes.fromhex(key("mine")),))
        db.execute("UPDATE answers SET key = ?", (bytes.fromhex(key("mine")),))
        db.commit()
        db.close()
    else:
        store, yours = object_of(url, "yours")
        store.put(object_of(url, "mine")[1], store.read(yours)[0])
    assert get_all(url, ["mine"]) == {"mine": None}


def test_many_at_once_each_get_their_own(url):
    async def work(ledger):
        async def one(n):
            assert await ledger.get(key(n)) is None
            await ledger.put(key(n), b"value %d" % n)
            return await ledger.get(key(n))

        found = await asyncio.gather(*(one(n) for n in range(100)))
        assert found == [b"value %d" % n for n in range(100)]

    in_ledger(url, work)


def test_cancelled_puts_hang_nothing_and_leave_whole_entries_or_none(url):
    async def work(ledger):
        puts = [asyncio.create_task(ledger.put(key(n), b"value %d" % n)) for n in range(60)]
        for turns, put in enumerate(puts):
            if turns % 10 == 0:
                await asyncio.sleep(0)
            if turns % 2:
                put.cancel()
        results = await asyncio.wait_for(asyncio.gather(*puts, return_exceptions=True), 60)
        assert results[::2] == [None] * 30
        assert all(isinstance(result, asyncio.CancelledError) or result is None for result in results)
        await asyncio.wait_for(ledger.put(key("next"), b"next"), 30)

    in_ledger(url, work)
    found = get_all(url, [*range(60), "next"])
    assert found.pop("next") == b"next"
    for n, value in found.items():
        assert value == b"value %d" % n or (n % 2 and value is None)


def test_closing_keeps_what_was_put_before(url):
    async def main():
        ledger = open_ledger(url)
        puts = [asyncio.create_task(ledger.put(key(n), b"value")) for n in range(50)]
        await asyncio.sleep(0)  # all have begun
        await ledger.aclose()
        assert all(is_stored(url, n) for n in reversed(range(50)))  # the last first
        await ledger.aclose()
        assert await asyncio.gather(*puts) == [None] * 50
        for call in (ledger.put(key("late"), b"late"), ledger.get(key(1))):
            with pytest.raises(LedgerError, match="closed; open it again"):
                await call

    asyncio.run(main())
    assert get_all(url, [*range(50), "late"]) == {**dict.fromkeys(range(50), b"value"), "late": None}


def test_a_loop_that_ends_with_everything_cancelled_can_still_close(url):
    async def main():
        ledger = open_ledger(url)
        puts = [asyncio.create_task(ledger.put(key(n), b"value")) for n in range(50)]
        await asyncio.sleep(0)
        for put in puts:
            put.cancel()
        closing = asyncio.create_task(ledger.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait_for(ledger.aclose(), 60)

    asyncio.run(main())
    put_all(url, {"next": b"next"})
    assert get_all(url, ["next"]) == {"next": b"next"}


@pytest.mark.parametrize("wrong", ["", "a" * 63, "a" * 65, "A" * 64, "../" * 21 + "a", "g" * 64, "a" * 64 + "\n"])
def test_what_is_no_sha256_is_no_key(url, wrong):
    async def work(ledger):
        for call in (ledger.get(wrong), ledger.put(wrong, b"")):
            with pytest.raises(ValueError, match="64 lower-case hexadecimal digits"):
                await call

    in_ledger(url, work)


def test_kill_9_loses_no_put_that_returned(url):
    for lives in (1, 2):  # the second finds what the killed one left
        child = subprocess.Popen(
            [sys.executable, "-c", PUTS_FOR_EVER, url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        said = [child.stdout.readline() for _ in range(150 * lives)]
        child.send_signal(signal.SIGKILL)
        rest, problems = child.communicate()
        assert (child.returncode, problems) == (-signal.SIGKILL, b"")
        kept = [int(line) for line in (b"".join(said) + rest).splitlines()]
        assert len(kept) >= 150 * lives
        assert get_all(url, kept) == {n: b"value %d " % n * 50 for n in kept}


def test_prune_removes_what_is_old_enough(url):
    put_all(url, dict.fromkeys(range(20), b"x" * 100))
    assert prune_ledger(url, 3600) == Pruned(0, 0)
    removed = prune_ledger(url, 0)
    assert removed.entries == 20
    assert 2000 <= removed.bytes < 8000
    assert set(get_all(url, range(20)).values()) == {None}
    put_all(url, {1: b"again"})
    assert get_all(url, [1]) == {1: b"again"}


def test_prune_goes_on_beside_a_run(url):
    async def work(ledger):
        await asyncio.gather(*(ledger.put(key(n), b"x" * 100) for n in range(20)))
        removed = await asyncio.to_thread(prune_ledger, url, 0)
        assert removed.entries == 20
        assert await ledger.get(key(1)) is None
        await ledger.put(key(1), b"again")
        assert await ledger.get(key(1)) == b"again"

    in_ledger(url, work)


def test_prune_touches_nothing_where_no_ledger_is(url):
    with pytest.raises(LedgerError, match="there is no ledger to prune; check the"):
        prune_ledger(url, 0)
    with pytest.raises(LedgerError, match="-1 s is not an age"):
        prune_ledger(url, -1)
    with pytest.raises(LedgerError, match="none is not a ledger"):
        prune_ledger("none", 0)


def test_none_is_no_ledger():
    assert open_ledger("none") is None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("", "the ledger has no name; name sqlite:///PATH"),
        ("sqlite:", "names no file; write sqlite:///PATH, with four slashes for an absolute path"),
        ("sqlite://ledger", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite:////", "names no file"),
        ("ledger.sqlite", "for a database write sqlite:///ledger.sqlite"),
        ("r2://", "a bucket's name has 3 to 63 characters"),
        (
            "gs://bucket/prefix/",
            "a ledger cannot be kept at gs://; name sqlite:///PATH, r2://BUCKET/PREFIX/, a folder,",
        ),
        (
            "s3://bucket/prefix/",
            "a ledger cannot be kept at s3://; name sqlite:///PATH, r2://BUCKET/PREFIX/, a folder,",
        ),
        ("hdfs://host/folder", "a ledger cannot be kept at hdfs://; name sqlite:///PATH"),
        ("file:///folder", "a ledger cannot be kept at file://; name sqlite:///PATH, r2://BUCKET/PREFIX/, a folder,"),
    ],
)
def test_a_wrong_url_says_what_to_write(wrong, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for call in (lambda: open_ledger(wrong), lambda: prune_ledger(wrong, 0)):
        with pytest.raises(LedgerError, match=said):
            call()
    assert list(tmp_path.iterdir()) == []


def test_a_relative_path_is_the_working_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for url in ("sqlite:///one.sqlite", "sqlite:///~/two.sqlite", "folder"):
        monkeypatch.setenv("HOME", str(tmp_path))
        put_all(url, {"a": b"value"})
    assert {path.name for path in tmp_path.iterdir()} == {"one.sqlite", "two.sqlite", "folder"}
    assert get_all(f"sqlite:///{tmp_path}/one.sqlite", "a") == {"a": b"value"}


def test_a_ledgers_error_is_one_of_storage_and_can_be_sent_between_processes():
    error = pickle.loads(pickle.dumps(LedgerError("what it is; what to do")))
    assert isinstance(error, StorageError)
    assert str(error) == "what it is; what to do"
