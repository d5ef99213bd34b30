import asyncio
import os
import re
import threading
import time

import pytest

from llmdo.storage.errors import LedgerError
from llmdo.storage.ledger import filesystem as ledger_filesystem
from llmdo.storage.ledger.ledger import Pruned, open_ledger, prune
from tests.storage.beam_files import MemoryFileSystem
from tests.storage.ledger.test_ledger import get_all, in_ledger, key, opened, put_all

KEY = key("a")
URL = "mem://bucket/paid"
NAME = f"{URL}/{KEY[:2]}/{KEY}.json"


@pytest.fixture(autouse=True)
def objects(monkeypatch):
    objects = {}
    monkeypatch.setattr(MemoryFileSystem, "objects", objects)
    return objects


@pytest.fixture
def trouble(monkeypatch):
    """Makes the file system raise for some operations."""

    def raises(error, *operations):
        def trouble(operation, path):
            if operation in operations:
                raise error

        monkeypatch.setattr(MemoryFileSystem, "trouble", staticmethod(trouble))

    return raises


def test_an_answer_is_one_object_below_the_url(objects):
    put_all(URL + "/", {"a": b'{"text": "one"}'})
    assert sorted(objects) == sorted([f"{URL}/_ledger.json", NAME])
    header, _, value = objects[NAME][0].partition(b"\n")
    assert value == b'{"text": "one"}'
    assert re.fullmatch(rb'\{"format": 1, "key": "%s", "crc32": \d+\}' % KEY.encode(), header)
    assert get_all(URL, "a") == {"a": b'{"text": "one"}'}


def test_of_two_writers_at_the_same_moment_the_last_one_stays_and_both_are_whole(objects, monkeypatch):
    both_looked = threading.Barrier(2)

    def trouble(operation, path):
        if operation == "create" and path == NAME:
            both_looked.wait(20)

    async def main():
        async with opened(URL) as one, opened(URL) as two:
            monkeypatch.setattr(MemoryFileSystem, "trouble", staticmethod(trouble))
            await asyncio.gather(one.put(KEY, b"one" * 1000), two.put(KEY, b"two" * 900))
            found = await one.get(KEY), await two.get(KEY)
        assert found in [(b"one" * 1000,) * 2, (b"two" * 900,) * 2]

    asyncio.run(main())


@pytest.mark.parametrize("operation", ["open", "exists"])
def test_a_place_that_does_not_answer_is_an_error_and_no_miss(operation, trouble):
    async def work(ledger):
        if operation == "exists":  # asked where an object could not be opened
            trouble(ConnectionError("no route to host"), "open", "exists")
        else:
            await ledger.put(KEY, b"value")
            trouble(ConnectionError("no route to host"), "open")
        with pytest.raises(LedgerError, match=f"{NAME}: no route to host; check the URL and the credentials"):
            await ledger.get(KEY)
        assert (ledger.counts.misses, ledger.counts.unreadable) == (0, 0)

    in_ledger(URL, work)


@pytest.mark.parametrize("operation", ["exists", "create", "close"])
def test_an_answer_that_cannot_be_written_is_an_error(operation, trouble, objects):
    async def work(ledger):
        trouble(PermissionError("you may not"), operation)
        with pytest.raises(LedgerError, match=f"{NAME}: you may not; check the URL and the credentials"):
            await ledger.put(KEY, b"value")
        assert ledger.counts.stored == 0

    in_ledger(URL, work)
    assert NAME not in objects


def test_what_would_fail_later_is_said_at_the_opening(trouble):
    trouble(PermissionError("403 Forbidden"), "open", "exists", "create")
    for call in (lambda: open_ledger(URL), lambda: prune(URL, 0)):
        with pytest.raises(LedgerError, match=r"mem://bucket/paid/_ledger\.json: 403 Forbidden; check the URL"):
            call()


def test_a_torn_entry_is_a_miss_and_is_replaced_once_it_is_paid(tmp_path):
    url = f"disk://{tmp_path}/paid"
    put_all(url, {"a": b"value" * 100})
    file = tmp_path / "paid" / KEY[:2] / f"{KEY}.json"
    whole = file.read_bytes()
    for size in (0, 10, 100, len(whole) - 1):
        file.write_bytes(whole[:size])

        async def work(ledger):
            assert await ledger.get(KEY) is None
            assert ledger.counts.unreadable == 1
            await ledger.put(KEY, b"value" * 100)

        in_ledger(url, work)
        assert file.read_bytes() == whole


def test_an_entry_that_another_process_finishes_meanwhile_stays(tmp_path):
    url = f"disk://{tmp_path}/paid"
    put_all(url, {"a": b"first"})
    file = tmp_path / "paid" / KEY[:2] / f"{KEY}.json"
    whole = file.read_bytes()

    async def work(ledger):
        file.write_bytes(whole[:20])
        assert await ledger.get(KEY) is None
        file.write_bytes(whole)
        await ledger.put(KEY, b"second")
        return await ledger.get(KEY)

    assert in_ledger(url, work) == b"first"


def test_a_marker_that_is_still_being_written_is_waited_for(tmp_path, monkeypatch):
    url, marker = f"disk://{tmp_path}/paid", tmp_path / "paid" / "_ledger.json"
    put_all(url, {})
    whole = marker.read_bytes()
    marker.write_bytes(b"")
    writer = threading.Timer(0.1, lambda: marker.write_bytes(whole))
    writer.start()
    put_all(url, {"a": b"value"})
    writer.join()
    marker.write_bytes(b"")
    with pytest.raises(LedgerError, match=r"_ledger.json: is empty, its writer was killed; remove it, and run again"):
        open_ledger(url)


def test_an_object_that_is_written_between_its_opening_and_a_second_look_is_read(monkeypatch):
    put_all(URL, {"a": b"value"})
    failed = []

    def trouble(operation, path):
        if operation == "open" and path not in failed:
            failed.append(path)
            raise FileNotFoundError(path)

    monkeypatch.setattr(MemoryFileSystem, "trouble", staticmethod(trouble))
    assert get_all(URL, "a") == {"a": b"value"}
    assert failed == [f"{URL}/_ledger.json", NAME]


def test_processes_that_open_a_new_ledger_together_agree(tmp_path):
    async def work():
        url = f"disk://{tmp_path}/new"
        ledgers = await asyncio.gather(*(asyncio.to_thread(open_ledger, url) for _ in range(8)))
        await asyncio.gather(*(ledger.put(key(i), b"value") for i, ledger in enumerate(ledgers)))
        assert [await ledgers[0].get(key(i)) for i in range(8)] == [b"value"] * 8
        for ledger in ledgers:
            await ledger.aclose()

    asyncio.run(work())


@pytest.mark.parametrize("scheme", ["mem", "disk"])
def test_prune_removes_old_entries_and_nothing_else(scheme, tmp_path, objects):
    url = f"{scheme}://{tmp_path}/paid"
    put_all(url, dict.fromkeys(range(40), b"value"))

    def put(name):
        if scheme == "mem":
            objects[f"{url}/{name}"] = (b"not a ledger's", time.time())
        else:
            (tmp_path / "paid" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "paid" / name).write_bytes(b"not a ledger's")

    others = ["answers.jsonl", f"{KEY}.json", f"{KEY[:2]}/{KEY}.json.bak", f"{KEY[:2]}/mine.json", f"zz/{KEY}.json"]
    for name in others:
        put(name)
    assert prune(url, 3600) == Pruned(0, 0)
    removed = prune(url, 0)
    assert removed.entries == 40
    assert removed.bytes > 40 * len(b"value")
    left = (
        [name.removeprefix(url + "/") for name in objects]
        if scheme == "mem"
        else [str(p.relative_to(tmp_path / "paid")) for p in (tmp_path / "paid").rglob("*") if p.is_file()]
    )
    assert sorted(left) == sorted([*others, "_ledger.json"])


def test_where_a_listing_says_no_time_it_is_asked_for(objects, monkeypatch):
    put_all(URL, {"a": b"value"})
    monkeypatch.setattr(MemoryFileSystem, "last_updated", lambda self, path: time.time() - 60)
    objects[NAME] = (objects[NAME][0], 0.0)
    assert prune(URL, 3600) == Pruned(0, 0)
    assert prune(URL, 0).entries == 1


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (
            "hdfs://folder",
            r"Beam cannot use hdfs:// \(.*\); pip install 'apache-beam\[hadoop\]', and give its options in",
        ),
        ("gs+x://bucket/a", r"gs\+x:// is not known to Beam here; correct the URL, or name another --ledger"),
        ("mem://", "names no place; name sqlite:///PATH"),
        ("mem://bucket/a*", r"a ledger's URL has none of \*\?\["),
    ],
)
def test_a_place_that_cannot_be_used_is_said_with_the_remedy(url, said):
    with pytest.raises(LedgerError, match=said):
        open_ledger(url)


def test_file_systems_get_their_options_from_the_environment(monkeypatch):
    given = []
    monkeypatch.setattr(MemoryFileSystem, "__init__", lambda self, options: given.append(options.get_all_options()))
    monkeypatch.setenv("LLMDO_FILESYSTEM_OPTIONS", "--hdfs_host='name node' --hdfs_port=9870")
    ledger_filesystem.BeamStore(URL)
    assert (given[0]["hdfs_host"], given[0]["hdfs_port"]) == ("name node", "9870")


def test_beams_own_s3_keeps_answers_too(server, bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", os.environ["R2_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", os.environ["R2_ACCESS_KEY_ID"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", os.environ["R2_SECRET_ACCESS_KEY"])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "auto")
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    url = f"s3://{bucket}/paid"
    put_all(url, {"a": b"value" * 1000, "b": b""})
    assert get_all(url, "abc") == {"a": b"value" * 1000, "b": b"", "c": None}
    assert get_all(f"r2://{bucket}/paid", "ab") == {"a": b"value" * 1000, "b": b""}  # the same format
