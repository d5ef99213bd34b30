import errno
import multiprocessing
import os
import threading
from pathlib import Path

import pytest

from llmdo.storage.errors import AccessDenied, AlreadyExists, InvalidLocation, ObjectChanged, StorageUnavailable
from llmdo.storage.objects.local import LocalStore
from llmdo.storage.objects.store import READ_CHUNK


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "out")


def everything(tmp_path):
    return sorted(path.name for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "key", ["", "/", "../x", "a/../../x", "a/./b", "a//b", "/etc/passwd", "a/", "a\0b", "a/\udcff"]
)
def test_no_key_leads_out_of_the_folder(store, tmp_path, key):
    for call in (
        store.stat,
        store.read,
        store.delete,
        lambda k: store.put(k, b""),
        lambda k: store.put_if_absent(k, b""),
    ):
        with pytest.raises(InvalidLocation, match=r"names no file below this folder|is not UTF-8"):
            call(key)
    assert everything(tmp_path) == []


def test_a_listing_does_not_lead_out_either(store):
    with pytest.raises(InvalidLocation):
        list(store.list("../"))


def test_the_etag_is_size_and_modification_time(store, tmp_path):
    etag = store.put("a/key", b"four")
    assert etag == f"4-{(tmp_path / 'out/a/key').stat().st_mtime_ns}"


def test_versions_of_one_size_in_one_clock_tick_differ(store):
    assert len({store.put("key", b"same size") for _ in range(50)}) == 50


def test_no_call_leaves_another_file_behind(store, tmp_path):
    etag = store.put("key", b"one")
    with pytest.raises(AlreadyExists):
        store.put_if_absent("key", b"two")
    store.put_if_absent("other", b"three")
    with pytest.raises(ObjectChanged):
        store.put_if_match("key", b"four", "0-0")
    store.put_if_match("key", b"five", etag)
    assert everything(tmp_path) == ["key", "other"]


def test_a_failed_write_keeps_the_old_version_and_leaves_nothing(store, tmp_path, monkeypatch):
    store.put("key", b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageUnavailable, match=r"out/key: the disk is full; make room"):
        store.put("key", b"new")
    assert store.read("key")[0] == b"old"
    assert everything(tmp_path) == ["key"]


def test_a_put_that_was_killed_is_not_listed(store, tmp_path):
    store.put("a/key", b"x")
    (tmp_path / "out/a/.llmdo-0123456789abcdef.tmp").write_bytes(b"half")
    assert [info.key for info in store.list("")] == ["a/key"]


def race(call, times=8):
    won, lost, start = [], [], threading.Barrier(times)

    def run(number):
        start.wait()
        try:
            won.append((number, call(number)))
        except (AlreadyExists, ObjectChanged) as error:
            lost.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won, lost


def test_of_many_that_create_one_file_one_wins(store):
    won, lost = race(lambda number: store.put_if_absent("key", f"{number}".encode()))
    assert (len(won), len(lost)) == (1, 7)
    assert store.read("key") == (f"{won[0][0]}".encode(), won[0][1])


def test_of_many_that_replace_one_version_one_wins(store):
    etag = store.put("key", b"-")
    won, lost = race(lambda number: store.put_if_match("key", f"{number}".encode(), etag))
    assert (len(won), len(lost)) == (1, 7)
    assert store.read("key") == (f"{won[0][0]}".encode(), won[0][1])


def create(root, number, wins):
    try:
        LocalStore(root).put_if_absent("key", b"%d" % number)
        wins.put(number)
    except AlreadyExists:
        pass


def test_processes_exclude_each_other_too(tmp_path):
    context = multiprocessing.get_context("fork")
    wins = context.SimpleQueue()
    processes = [context.Process(target=create, args=(tmp_path, number, wins)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    winner = wins.get()
    assert wins.empty()
    assert LocalStore(tmp_path).read("key")[0] == b"%d" % winner


@pytest.mark.parametrize("change", ["append", "rewrite", "truncate"])
def test_a_change_in_place_is_noticed_in_the_middle(store, tmp_path, change):
    etag = store.put("key", b"x" * (2 * READ_CHUNK))
    path = tmp_path / "out/key"
    stream = store.stream("key", etag)
    assert len(next(stream)) == READ_CHUNK
    with path.open("r+b") as file:
        if change == "append":
            file.seek(0, os.SEEK_END)
            file.write(b"more")
        elif change == "rewrite":
            file.write(b"y")
        else:
            file.truncate(READ_CHUNK)
    os.utime(path, ns=(1, 1))  # the clock of a kernel may not have ticked since the put
    with pytest.raises(ObjectChanged, match="run again"):
        next(stream)


def test_a_replaced_file_is_read_to_its_own_end(store):
    etag = store.put("key", b"x" * (2 * READ_CHUNK))
    stream = store.stream("key", etag)
    first = next(stream)
    store.put("key", b"other")
    assert first + b"".join(stream) == b"x" * (2 * READ_CHUNK)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no file whose size is not told")
def test_a_file_that_has_more_bytes_than_its_size_is_read_whole():
    body, _ = LocalStore(Path("/proc/self")).read("status")
    assert body.startswith(b"Name:") and body.count(b"\n") > 10


def test_links_to_files_are_read_and_links_to_folders_are_not_followed(store, tmp_path):
    store.put("a/key", b"x")
    (tmp_path / "out/link").symlink_to(tmp_path / "out/a/key")
    (tmp_path / "out/a/loop").symlink_to(tmp_path / "out")
    (tmp_path / "out/nowhere").symlink_to(tmp_path / "gone")
    assert [info.key for info in store.list("")] == ["a/key", "link"]


def test_a_file_in_the_place_of_a_folder_is_named(store):
    store.put("a", b"")
    for call in (store.put, store.put_if_absent):
        with pytest.raises(InvalidLocation, match=r"out/a/b: a part of this path is a file"):
            call("a/b", b"")


def test_a_folder_in_the_place_of_a_file_is_named(store):
    store.put("a/b", b"")
    with pytest.raises(InvalidLocation, match="this is a folder"):
        store.put("a", b"")


def test_a_name_that_is_too_long_is_said(store):
    with pytest.raises(InvalidLocation, match="too long"):
        store.put("x" * 300, b"")


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.EACCES, AccessDenied), (errno.EROFS, AccessDenied), (errno.EIO, StorageUnavailable)]
)
def test_what_the_disk_refuses_names_the_file(store, monkeypatch, code, kind):
    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("llmdo.storage.objects.local.os.utime", refuse)
    with pytest.raises(kind, match=r"out/a/key: .*;"):
        store.put("a/key", b"")


def test_a_folder_that_is_not_there_yet_is_empty(store, tmp_path):
    assert list(store.list("")) == []
    assert not (tmp_path / "out").exists()
