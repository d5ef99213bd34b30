import asyncio
import json
import logging
import threading
import time

import pytest

from llmdo.settings.environment import MissingSettings
from llmdo.storage.errors import LedgerError
from llmdo.storage.ledger import objects as ledger_objects
from llmdo.storage.ledger.ledger import Pruned, checksum
from llmdo.storage.ledger.objects import LEDGER_THREADS
from llmdo.storage.ledger.opening import open_ledger, prune_ledger
from llmdo.storage.objects.local import LocalStore
from llmdo.storage.objects.r2 import R2Store
from tests.storage.ledger.test_ledger import get_all, in_ledger, key, opened, put_all

KEY = key("a")
NAME = f"{KEY[:2]}/{KEY}.json"


@pytest.fixture
def url(bucket):
    return f"r2://{bucket}/paid/"


def names(store):
    return [info.key for info in store.list("")]


def test_an_answer_is_one_object_below_the_prefix(store, url):
    put_all(url, {"a": b'{"text": "one"}'})
    assert sorted(names(store)) == sorted(["paid/_ledger.json", f"paid/{NAME}"])
    header, value = store.read(f"paid/{NAME}")[0].split(b"\n")
    assert json.loads(header).keys() == {"format", "key", "crc32"}
    assert json.loads(header)["key"] == KEY
    assert value == b'{"text": "one"}'


@pytest.mark.parametrize("prefix", ["", "/", "paid", "paid/", "a b/ü"])
def test_a_prefix_is_meant_with_and_without_its_slash(store, bucket, prefix):
    put_all(f"r2://{bucket}/{prefix}", {"a": b"value"})
    where = prefix.strip("/")
    assert f"{where}/{NAME}".lstrip("/") in names(store)
    assert get_all(f"r2://{bucket}/{where}", "a") == {"a": b"value"}


def test_a_get_and_a_put_are_one_request_each(server, url):
    async def work(ledger):
        server.seen.clear()
        await ledger.get(KEY)
        await ledger.put(KEY, b"value")
        await ledger.get(KEY)
        assert [seen.method for seen in server.seen] == ["GET", "PUT", "GET"]

    in_ledger(url, work)


def test_requests_run_side_by_side_but_not_all_at_once(tmp_path, monkeypatch):
    lock = threading.Lock()
    now, most = 0, 0
    plain = LocalStore.read

    def read(self, name):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1
        return plain(self, name)

    monkeypatch.setattr(LocalStore, "read", read)

    async def work(ledger):
        await asyncio.gather(*(ledger.get(key(n)) for n in range(200)))

    in_ledger(str(tmp_path), work)
    assert 1 < most <= LEDGER_THREADS


def test_a_put_whose_reply_is_lost_is_kept(server, url, waits):
    async def work(ledger):
        server.lose_replies = 1
        await ledger.put(KEY, b"value")
        return await ledger.get(KEY)

    assert in_ledger(url, work) == b"value"


def test_a_bucket_that_does_not_answer_is_an_error_and_no_miss(server, url, waits):
    async def work(ledger):
        for call in (lambda: ledger.get(KEY), lambda: ledger.put(KEY, b"value")):
            server.refuse(503, "ServiceUnavailable", times=20)
            with pytest.raises(LedgerError, match=f"{url}.*R2 kept failing after every retry; run again later"):
                await call()
            server.answers.clear()
        await ledger.put(KEY, b"value")  # later it goes on

    in_ledger(url, work)


def test_what_would_fail_later_is_said_at_the_opening(server, url, waits, monkeypatch):
    server.refuse(403, "AccessDenied")
    with pytest.raises(LedgerError, match="check R2_ACCESS_KEY_ID and R2_SECRET_ACCESS_KEY"):
        open_ledger(url)
    with pytest.raises(LedgerError, match=r"r2://no-such-bucket/.*there is no such bucket"):
        open_ledger("r2://no-such-bucket/paid/")
    monkeypatch.delenv("R2_SECRET_ACCESS_KEY")
    with pytest.raises(MissingSettings, match="R2_SECRET_ACCESS_KEY is not set"):
        open_ledger(url)


def test_a_file_is_no_folder_to_keep_answers_in(tmp_path):
    (tmp_path / "file").write_text("something")
    with pytest.raises(LedgerError, match="a part of this path is a file, not a folder"):
        open_ledger(str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "something"


@pytest.mark.parametrize("marker", [b'{"format": 2}', b"[]", b"{"])
def test_a_ledger_of_another_format_is_refused(store, url, marker):
    store.put("paid/_ledger.json", marker)
    for call in (lambda: open_ledger(url), lambda: prune_ledger(url, 0)):
        with pytest.raises(LedgerError, match=r"_ledger.json: has format \w+, this program reads 1"):
            call()


def test_processes_that_open_a_new_ledger_together_agree(tmp_path):
    async def work():
        ledgers = await asyncio.gather(*(asyncio.to_thread(open_ledger, str(tmp_path / "new")) for _ in range(8)))
        await asyncio.gather(*(ledger.put(KEY, b"value") for ledger in ledgers))
        assert {await ledger.get(KEY) for ledger in ledgers} == {b"value"}
        for ledger in ledgers:
            await ledger.aclose()

    asyncio.run(work())


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "is not the one that was kept"),
        (b"{", "is not the one that was kept"),
        (b"[]\nvalue", "is not the one that was kept"),
        (b'{"text": "an answer without a header"}', "is not the one that was kept"),
        (b"\xff\xfe\n", "is not the one that was kept"),
        (b"[" * 100_000, "is not the one that was kept"),
        (b'{"format": 1, "key": "%s", "crc32": %d}\nvalue' % (b"0" * 64, checksum(KEY, b"value")), "is not the one"),
        (b'{"format": 2}\nvalue', "has a format of another version"),
    ],
)
def test_an_object_that_is_no_entry_is_a_miss_that_is_said_once(store, url, body, said, caplog):
    async def work(ledger):
        store.put(f"paid/{NAME}", body)
        with caplog.at_level(logging.WARNING):
            assert await ledger.get(KEY) is None
            assert await ledger.get(KEY) is None
        await ledger.put(KEY, b"value")
        return await ledger.get(KEY)

    assert in_ledger(url, work) == b"value"
    [warning] = caplog.messages
    assert f"{url}{NAME}: " in warning
    assert said in warning


def test_a_damaged_entry_that_was_removed_meanwhile_is_written_anew(store, url):
    async def main():
        async with opened(url) as ledger:
            store.put(f"paid/{NAME}", b"torn")
            assert await ledger.get(KEY) is None
            store.delete(f"paid/{NAME}")
            await ledger.put(KEY, b"value")
            assert await ledger.get(KEY) == b"value"

    asyncio.run(main())


def test_prune_removes_entries_and_nothing_else(store, url, monkeypatch):
    monkeypatch.setattr(ledger_objects, "_PRUNE_OBJECTS", 7)
    others = [
        "paid/answers.jsonl",
        f"paid/{KEY}.json",
        f"paid/00/{KEY}.json" if KEY[:2] != "00" else f"paid/11/{KEY}.json",
        f"paid/x/{NAME}",
        f"paid/{NAME}.bak",
        f"other/{NAME}",
    ]
    put_all(url, dict.fromkeys(range(30), b"value"))
    entries = [name for name in names(store) if name != "paid/_ledger.json"]
    for name in others:
        store.put(name, b"not a ledger's")
    assert prune_ledger(url, 3600) == Pruned(0, 0)
    size = sum(store.stat(name).size for name in entries)
    assert prune_ledger(url, 0) == Pruned(30, size)
    assert sorted(names(store)) == sorted([*others, "paid/_ledger.json"])


def test_where_no_ledger_was_made_prune_removes_nothing(store, bucket):
    store.put(NAME, b"looks like an entry")
    with pytest.raises(LedgerError, match=f"r2://{bucket}/: there is no ledger to prune; check the URL"):
        prune_ledger(f"r2://{bucket}/", 0)
    assert names(store) == [NAME]


def test_a_key_is_stored_by_name_and_no_path(store, url):
    assert isinstance(store, R2Store)
    put_all(url, dict.fromkeys(range(5), b"value"))
    for name in names(store):
        assert name == "paid/_ledger.json" or name == f"paid/{name[-69:-67]}/{name[-69:]}"


def test_a_torn_entry_that_was_never_asked_for_does_not_stay_for_the_first_value(store, url):
    store.put(f"paid/{NAME}", b'{"format": 1, "ke')
    put_all(url, {"a": b"value"})
    assert get_all(url, "a") == {"a": b"value"}
