"""What holds prompts, answers or keys is readable by its owner only, whatever the umask; also what is there already."""

import asyncio
import fcntl
import os
import sqlite3
import stat
import threading

import pytest

from llmdo.settings import private
from llmdo.storage.ledger.database import connect_database
from llmdo.storage.ledger.opening import open_ledger
from llmdo.storage.objects.local import LocalStore

KEY = "ab" * 32


@pytest.fixture(autouse=True, params=[0o000, 0o022, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def modes(folder):
    """Of all files and of all folders below."""
    found = list(folder.rglob("*"))
    return {mode(path) for path in found if path.is_file()}, {mode(path) for path in found if path.is_dir()}


def open_to_all(folder):
    """As an earlier version left it."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_a_database_and_the_files_beside_it_are_private_also_those_of_an_earlier_version(tmp_path):
    path = tmp_path / "ledger.sqlite"
    for _ in range(2):
        writer = connect_database(path)
        reader = sqlite3.connect(path)
        assert reader.execute("SELECT count(*) FROM answers").fetchone() == (0,)
        assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, f"{path.name}-shm", f"{path.name}-wal"]
        assert modes(tmp_path) == ({0o600}, set())
        open_to_all(tmp_path)  # while they are open: a run of the old version that goes on
        connect_database(path).close()
        assert modes(tmp_path) == ({0o600}, set())
        reader.close()
        writer.close()
        path.chmod(0o644)


def test_a_link_to_nowhere_makes_a_private_database(tmp_path):
    (tmp_path / "link.sqlite").symlink_to(tmp_path / "there.sqlite")
    connect_database(tmp_path / "link.sqlite").close()
    assert mode(tmp_path / "there.sqlite") == 0o600


def is_locked(path):
    """Whether another process finds SQLite's shared lock on a database (sqlite.org/lockingv3.html)."""
    pid = os.fork()
    if pid == 0:
        with path.open("r+b") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 510, 0x40000002)
            except OSError:
                os._exit(7)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_opening_a_database_again_keeps_the_locks_of_this_process(tmp_path):
    path = tmp_path / "ledger.sqlite"
    writer = connect_database(path)
    assert is_locked(path)
    private.make_database(path)
    assert is_locked(path)
    writer.close()
    assert not is_locked(path)


def test_many_threads_make_one_database(tmp_path):
    path = tmp_path / "a.sqlite"
    threads = [threading.Thread(target=private.make_database, args=(path,)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (mode(path), path.stat().st_size) == (0o600, 0)


def test_a_ledger_of_objects_in_a_folder_is_private_also_one_of_an_earlier_version(tmp_path):
    folder = tmp_path / "ledger"

    async def keep(key):
        ledger = open_ledger(str(folder))
        await ledger.put(key, b"an answer")
        await ledger.aclose()

    asyncio.run(keep(KEY))
    assert modes(tmp_path) == ({0o600}, {0o700})
    open_to_all(folder)
    asyncio.run(keep("cd" * 32))
    assert mode(folder) == 0o700  # nobody else reaches what is in it


def test_a_private_store_replaces_files_of_all_by_its_own_and_another_one_follows_the_umask(tmp_path, umask):
    store = LocalStore(tmp_path / "log", private=True)
    store.put("a/b/c.json", b"x")
    (tmp_path / "log" / "a" / "b" / "c.json").chmod(0o644)
    etag = store.put("a/b/c.json", b"xy")
    assert modes(tmp_path) == ({0o600}, {0o700})
    (tmp_path / "log" / "a" / "b" / "c.json").chmod(0o644)
    store.put_if_match("a/b/c.json", b"xyz", etag)
    store.put_if_absent("a/d.json", b"x")
    assert modes(tmp_path) == ({0o600}, {0o700})
    LocalStore(tmp_path / "out").put("a/shard.jsonl", b"x")
    assert modes(tmp_path / "out") == ({0o666 & ~umask}, {0o777 & ~umask})


def test_a_folder_of_ones_own_is_closed_and_one_that_is_there_is_not_touched(tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o755)
    private.make_folder(tmp_path / "shared" / "x" / "y")
    assert mode(tmp_path / "shared") == 0o755
    assert modes(tmp_path / "shared") == (set(), {0o700})
    private.own_folder(tmp_path / "shared")
    assert mode(tmp_path / "shared") == 0o700
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        private.make_folder(tmp_path / "file")
    with pytest.raises(NotADirectoryError):
        private.make_folder(tmp_path / "file" / "below")


def test_a_file_is_replaced_whole_and_a_failure_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "credentials.json"
    private.write(path, b"old")
    path.chmod(0o644)
    private.write(path, b"new")
    assert (path.read_bytes(), mode(path)) == (b"new", 0o600)
    monkeypatch.setattr(type(path), "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        private.write(path, b"newer")
    assert [p.name for p in tmp_path.iterdir()] == ["credentials.json"]
