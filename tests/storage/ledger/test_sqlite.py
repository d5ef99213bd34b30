import asyncio
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from llmdo.storage.errors import LedgerError
from llmdo.storage.ledger import database as ledger_database
from llmdo.storage.ledger import sqlite as ledger_sqlite
from llmdo.storage.ledger.ledger import Pruned
from llmdo.storage.ledger.opening import open_ledger, prune_ledger
from tests.storage.ledger.test_ledger import ROOT, get_all, in_ledger, key, opened, put_all

# One of several processes that begin together on one new file; half of their keys are the same.
ONE_OF_MANY = """
import asyncio, hashlib, sys
from llmdo.storage.ledger.opening import open_ledger

async def main():
    ledger = open_ledger(sys.argv[1])
    me = sys.argv[2]
    async def one(name):
        key = hashlib.sha256(name.encode()).hexdigest()
        if await ledger.get(key) is None:
            await ledger.put(key, f"{name} by {me}".encode())
    for turn in range(10):
        await asyncio.gather(*(one(f"own {me} {turn} {n}") for n in range(20)))
        await asyncio.gather(*(one(f"shared {turn} {n}") for n in range(20)))
    await ledger.aclose()

sys.stdin.readline()
asyncio.run(main())
"""

# As the engine: a loop in a daemon thread, which is stopped at the interpreter's end and puts until then.
PUTS_AT_EXIT = """
import asyncio, atexit, sys, threading
from llmdo.storage.ledger.opening import open_ledger

loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_forever, daemon=True).start()

def end():
    asyncio.run_coroutine_threadsafe(ledger.put("b" * 64, b"last"), loop).result(60)
    asyncio.run_coroutine_threadsafe(ledger.aclose(), loop).result(60)
    print("closed")

atexit.register(end)
ledger = open_ledger(sys.argv[1])
asyncio.run_coroutine_threadsafe(ledger.put("a" * 64, b"first"), loop).result(60)
"""

NEVER_CLOSES = """
import asyncio, sys
from llmdo.storage.ledger.opening import open_ledger
asyncio.run(open_ledger(sys.argv[1]).put("a" * 64, b"kept"))
"""


async def one_after_the_other(ledger, count):
    for n in range(count):
        await ledger.put(key(str(n)), b"value")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def url(path):
    return f"sqlite:///{path}"


def log_of(path):
    return Path(f"{path}-wal").read_bytes()


def commits_in_log(path):
    """Counts the frames that end a transaction in a write-ahead log (sqlite.org/fileformat2.html#walformat)."""
    log = log_of(path)
    page = int.from_bytes(log[8:12], "big")
    frames = [log[at : at + 24] for at in range(32, len(log), 24 + page)]
    assert len(frames) < 1000  # otherwise SQLite has begun to write the log from its begin again
    return sum(frame[4:8] != b"\0\0\0\0" for frame in frames)


def rows(path):
    """How many entries other connections see."""
    db = sqlite3.connect(path)
    try:
        return db.execute("SELECT count(*) FROM answers").fetchone()[0]
    finally:
        db.close()


def run(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


NEVER = -1.0  # for QUICK_S: no commit is made on the loop


@pytest.mark.parametrize(("quick_s", "commits", "most"), [(10.0, 16, 120), (NEVER, 1, 60)])
def test_puts_that_wait_together_are_committed_together(path, url, monkeypatch, quick_s, commits, most):
    monkeypatch.setattr(ledger_sqlite, "QUICK_S", quick_s)

    async def work(ledger):
        before = commits_in_log(path)
        await asyncio.gather(*(ledger.put(key(n), b"value") for n in range(256)))
        assert commits_in_log(path) - before == commits

        numbers = iter(range(1000, 2000))

        async def putter():
            for n in numbers:
                await ledger.put(key(n), b"value")

        await asyncio.gather(*(putter() for _ in range(100)))
        assert rows(path) == 1256
        assert commits_in_log(path) - before < most + commits

    in_ledger(url, work)


def test_who_puts_first_goes_on_before_the_last_is_committed(path, url, monkeypatch):
    monkeypatch.setattr(ledger_sqlite, "QUICK_S", 10.0)

    async def work(ledger):
        before = commits_in_log(path)

        async def put(n):
            await ledger.put(key(n), b"value")
            return commits_in_log(path) - before

        return await asyncio.gather(*(put(n) for n in range(256)))

    commits = in_ledger(url, work)
    assert max(commits[:16]) <= 3
    assert commits == sorted(commits)


async def every_5_ms(ledger, count, patience_s, name="a"):
    """Puts that come one by one; the seconds that each took."""

    async def put(n):
        begin = time.monotonic()
        await ledger.put(key(f"{name} {n}"), b"value", patience_s)
        return time.monotonic() - begin

    puts = []
    for n in range(count):
        puts.append(asyncio.ensure_future(put(n)))
        await asyncio.sleep(0.005)
    return await asyncio.gather(*puts)


def test_puts_that_have_patience_are_committed_with_those_that_follow(path, url):
    async def work(ledger):
        await every_5_ms(ledger, 50, 1.0)  # it learns how far apart they come
        before, stored = commits_in_log(path), rows(path)
        took = await every_5_ms(ledger, 100, 1.0, "more")
        assert rows(path) == stored + 100
        assert commits_in_log(path) - before <= 50  # 85 to 100 without patience
        assert min(took) < max(took) - 0.1  # who comes last waits least

    in_ledger(url, work)


@pytest.mark.parametrize("patience_s", [0.0, 0.004])
def test_puts_without_the_patience_for_another_one_are_committed_by_themselves(path, url, monkeypatch, patience_s):
    monkeypatch.setattr(ledger_sqlite, "QUICK_S", 10.0)

    async def work(ledger):
        before = commits_in_log(path)
        await every_5_ms(ledger, 40, patience_s)
        assert commits_in_log(path) - before >= 20  # a slow machine makes some of them meet

    in_ledger(url, work)


@pytest.mark.parametrize("patience_s", [0.0, 0.1])
def test_puts_wait_no_longer_than_the_least_patient_of_them(path, url, patience_s):
    async def work(ledger):
        ledger._apart_s, ledger._last_at = 0.02, asyncio.get_running_loop().time()
        before = commits_in_log(path)
        first = asyncio.ensure_future(ledger.put(key("long"), b"value", 3_000.0))
        await asyncio.sleep(0.05)
        assert not first.done()
        async with asyncio.timeout(60):
            await asyncio.gather(first, ledger.put(key("short"), b"value", patience_s))
        assert commits_in_log(path) - before == 1

    in_ledger(url, work)


def test_many_that_come_at_once_wait_for_nobody(url):
    async def work(ledger):
        await every_5_ms(ledger, 50, 0.1)
        begin = time.monotonic()
        await asyncio.gather(*(ledger.put(key(f"at once {n}"), b"value", 200.0) for n in range(4)))
        assert time.monotonic() - begin < 150.0

    in_ledger(url, work)


@pytest.mark.parametrize(("apart_s", "at_once"), [(0.0005, True), (0.005, False)])
def test_where_puts_are_close_anyway_none_waits(url, apart_s, at_once, monkeypatch):
    monkeypatch.setattr(ledger_sqlite, "_WEIGHT", 0.0)  # it learns nothing from how late this put is

    async def work(ledger):
        ledger._apart_s = apart_s
        put = asyncio.ensure_future(ledger.put(key("a"), b"value", 3_000.0))
        done, _ = await asyncio.wait([put], timeout=60.0 if at_once else 0.5)
        assert bool(done) == at_once
        put.cancel()
        ledger._idle.set()  # closing waits for no timer of 30 s

    in_ledger(url, work)


def test_closing_waits_for_a_put_that_has_patience(url):
    async def work(ledger):
        await every_5_ms(ledger, 50, 0.1)
        put = asyncio.ensure_future(ledger.put(key("last"), b"value", 0.3))
        await asyncio.sleep(0)
        await ledger.aclose()
        await put

    in_ledger(url, work)
    assert in_ledger(url, lambda ledger: ledger.get(key("last"))) == b"value"


def test_a_put_alone_does_not_wait_for_others(path, url):
    async def work(ledger):
        before = commits_in_log(path)
        for n in range(20):
            await ledger.put(key(n), b"value")
        assert commits_in_log(path) - before == 20

    in_ledger(url, work)


def test_one_commit_takes_only_so_many_bytes(path, url, monkeypatch):
    monkeypatch.setattr(ledger_sqlite, "QUICK_S", NEVER)
    monkeypatch.setattr(ledger_sqlite, "_GROUP_BYTES", 10_000)

    async def work(ledger):
        before = commits_in_log(path)
        await asyncio.gather(*(ledger.put(key(n), b"x" * 1000) for n in range(100)))
        assert commits_in_log(path) - before == 10

    in_ledger(url, work)
    assert set(get_all(url, range(100)).values()) == {b"x" * 1000}


def test_when_a_put_returns_any_other_process_sees_the_entry(path, url):
    async def work(ledger):
        other = sqlite3.connect(path)
        for n in range(20):
            await ledger.put(key(n), b"value")
            [(found,)] = other.execute("SELECT count(*) FROM answers")
            assert found == n + 1
        other.close()

    in_ledger(url, work)


def test_each_commit_is_synced_to_the_disk(url):
    async def work(ledger):
        [(level,)] = ledger._writing.execute("PRAGMA synchronous")
        assert level == 2  # FULL

    in_ledger(url, work)


@pytest.fixture
def commits(monkeypatch):
    """The threads that made commits; ``takes_s`` is what each takes longer."""
    made, takes_s, commit = [], [0.0], ledger_sqlite.SqliteLedger._commit

    def slower(self, group):
        made.append(threading.current_thread().name)
        time.sleep(takes_s[0])
        commit(self, group)

    monkeypatch.setattr(ledger_sqlite.SqliteLedger, "_commit", slower)
    return made, takes_s


@pytest.mark.parametrize(("large", "prepared"), [(False, 1), (True, 2)])
def test_a_statement_is_prepared_once_and_holds_no_large_values(url, large, prepared):
    found = []

    def note(action, table, *_):
        found.extend([table] if action == sqlite3.SQLITE_INSERT else [])
        return sqlite3.SQLITE_OK

    async def work(ledger):
        ledger._writing.set_authorizer(note)  # SQLite asks it when it prepares a statement
        for n in range(20):
            await ledger.put(key(n), b"x" * (ledger_database.HELD_BYTES + 1 if large and n == 10 else 100))

    in_ledger(url, work)
    assert found.count("answers") == prepared


def test_while_commits_are_quick_the_loop_makes_them(url, commits, monkeypatch):
    monkeypatch.setattr(ledger_sqlite, "QUICK_S", 10.0)
    made, _ = commits
    in_ledger(url, lambda ledger: one_after_the_other(ledger, 20))
    assert made == [threading.current_thread().name] * 20


def test_slow_commits_do_not_hold_up_the_loop_and_are_tried_there_again_now_and_then(url, commits):
    made, takes_s = commits
    takes_s[0] = 0.01
    in_ledger(url, lambda ledger: one_after_the_other(ledger, 40))
    assert made.count("llmdo-ledger") > 30
    takes_s[0] = 0.0
    made.clear()
    in_ledger(url, lambda ledger: one_after_the_other(ledger, 10))  # a new one does not know
    assert made[0] == threading.current_thread().name


def test_after_one_slow_commit_the_loop_makes_them_again(url, commits):
    made, takes_s = commits

    async def work(ledger):
        takes_s[0] = 0.05
        await ledger.put(key("slow"), b"slow")
        takes_s[0] = 0.0
        for n in range(400):
            await ledger.put(key(f"quick {n}"), b"quick")
            if made[-1] != "llmdo-ledger" and n > 5:
                return
        raise AssertionError("no commit is made on the loop any more")

    in_ledger(url, work)
    assert made[1] == "llmdo-ledger"


def test_a_large_commit_does_not_hold_up_the_loop(url, commits, monkeypatch):
    monkeypatch.setattr(ledger_sqlite, "QUICK_BYTES", 1000)
    made, _ = commits
    in_ledger(url, lambda ledger: ledger.put(key("large"), b"x" * 1001))
    assert made == ["llmdo-ledger"]


def test_while_another_process_writes_the_loop_goes_on(path, url):
    async def work(ledger):
        await ledger.put(key("first"), b"1")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        putting, turns, begin = asyncio.ensure_future(ledger.put(key("second"), b"2")), 0, time.monotonic()
        for _ in range(20):
            await asyncio.sleep(0.005)
            turns += not putting.done()
        assert time.monotonic() - begin < ledger_sqlite.BUSY_S / 2  # for which the thread waits
        other.execute("ROLLBACK")
        other.close()
        await putting
        return turns

    assert in_ledger(url, work) == 20


def test_reads_hold_nothing_up(path, url):
    """A read that stayed open would keep the log from being moved into the database."""

    async def work(ledger):
        await ledger.put(key("a"), b"value")
        assert await ledger.get(key("a")) == b"value"
        assert await ledger.get(key("b")) is None
        other = sqlite3.connect(path, timeout=0)
        [(busy, *_)] = other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        other.close()
        assert busy == 0
        assert log_of(path) == b""

    in_ledger(url, work)


def test_processes_that_begin_together_share_one_file(path, url):
    children = [run(ONE_OF_MANY, url, str(me)) for me in range(4)]
    for child in children:
        child.stdin.write(b"go\n")
        child.stdin.flush()
    for child in children:
        assert child.communicate(timeout=120) == (b"", b"")
        assert child.returncode == 0
    own = {f"own {me} {turn} {n}": me for me in range(4) for turn in range(10) for n in range(20)}
    assert get_all(url, own) == {name: f"{name} by {me}".encode() for name, me in own.items()}
    shared = [f"shared {turn} {n}" for turn in range(10) for n in range(20)]
    for name, value in get_all(url, shared).items():
        assert value in {f"{name} by {me}".encode() for me in range(4)}
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert db.execute("SELECT count(*) FROM answers").fetchone() == (1000,)
    db.close()


def test_who_finds_a_ledger_half_made_waits_for_the_rest(tmp_path):
    async def work():
        for n in range(30):
            url = f"sqlite:///{tmp_path}/{n}.sqlite"
            ledgers = await asyncio.gather(*(asyncio.to_thread(open_ledger, url) for _ in range(4)))
            await asyncio.gather(*(ledger.put(key(me), b"value") for me, ledger in enumerate(ledgers)))
            for ledger in ledgers:
                assert [await ledger.get(key(me)) for me in range(4)] == [b"value"] * 4
                await ledger.aclose()

    asyncio.run(work())


def test_puts_until_the_interpreters_end_are_kept(url):
    child = run(PUTS_AT_EXIT, url)
    assert child.communicate(timeout=240) == (b"closed\n", b"")
    assert in_ledger(url, lambda ledger: ledger.get("a" * 64)) == b"first"
    assert in_ledger(url, lambda ledger: ledger.get("b" * 64)) == b"last"


def test_a_process_that_never_closes_ends_all_the_same(url):
    child = run(NEVER_CLOSES, url)
    assert child.communicate(timeout=240) == (b"", b"")
    assert in_ledger(url, lambda ledger: ledger.get("a" * 64)) == b"kept"


# What open_ledger refuses, before anything was paid.


def no_database(path):
    path.write_bytes(b"id,answer\n" * 1000)


def another_programs(path):
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE cookies (name)")
    db.close()


def of_a_newer_version(path):
    put_all(f"sqlite:///{path}", {"a": b"value"})
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 2")
    db.close()


def without_its_table(path):
    put_all(f"sqlite:///{path}", {"a": b"value"})
    db = sqlite3.connect(path)
    db.execute("DROP TABLE answers")
    db.close()


def truncated(path):
    put_all(f"sqlite:///{path}", {n: bytes(5000) for n in range(100)})
    os.truncate(path, path.stat().st_size // 2)


def with_a_hole(path):
    put_all(f"sqlite:///{path}", dict.fromkeys(range(100), b"x" * 5000))
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 8192 * 4096)
        file.write(bytes(4096 * 10))


def a_folder(path):
    path.mkdir()


REFUSED = [
    (no_database, "not an SQLite database; move it away, or name another ledger"),
    (another_programs, "another program's database; leave it, and name another ledger"),
    (of_a_newer_version, "has version 2, this program reads 1; use the llmdo that wrote it"),
    (without_its_table, "the database is damaged; move it away"),
    (truncated, "the database is damaged; move it away"),
    (with_a_hole, "the database is damaged; move it away"),
    (a_folder, "this is a folder; name a file in it"),
]


@pytest.mark.parametrize(("made", "said"), REFUSED, ids=[made.__name__ for made, _ in REFUSED])
def test_what_is_no_whole_ledger_is_refused_and_left_as_it_is(path, url, made, said):
    made(path)
    before = path.is_file() and path.read_bytes()
    for _ in range(2):
        with pytest.raises(LedgerError, match=f"{path}: .*{said}"):
            open_ledger(url)
    assert (path.is_file() and path.read_bytes()) == before


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(LedgerError, match=f"there is no folder {tmp_path}/no/such; create it"):
        open_ledger(f"sqlite:///{tmp_path}/no/such/ledger.sqlite")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_no_file_can_have_is_refused(tmp_path):
    with pytest.raises(LedgerError, match="the file cannot be opened; check its permissions"):
        open_ledger(f"sqlite:///{tmp_path}/{'x' * 300}")


@pytest.fixture
def shut_folder():
    """A folder that this process may read but not write, even where the tests run as root."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        put_all(f"sqlite:///{folder}/old.sqlite", {"a": b"value"})
        (folder / "old.sqlite").chmod(0o444)
        folder.chmod(0o555)
        if user == 0:
            os.seteuid(65534)
        yield folder
        os.seteuid(user)
        folder.chmod(0o755)


@pytest.mark.parametrize("name", ["old.sqlite", "new.sqlite"])
def test_where_it_may_not_write_it_says_so_before_anything_is_paid(shut_folder, name):
    with pytest.raises(LedgerError, match=f"{name}: .*permissions and its folder's, or name another ledger"):
        open_ledger(f"sqlite:///{shut_folder}/{name}")


@pytest.fixture
def lock(path, url):
    """Locks the database as another program may, on demand."""
    put_all(url, {"a": b"value"})
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    yield db
    db.close()


@pytest.mark.parametrize("how", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE", "PRAGMA locking_mode = EXCLUSIVE"])
def test_a_locked_database_is_refused(lock, path, url, how, monkeypatch):
    monkeypatch.setattr(ledger_database, "BUSY_S", 0.2)
    lock.execute(how)
    lock.execute("UPDATE answers SET created_at = 0")
    with pytest.raises(LedgerError, match=f"{path}: another program keeps the database locked; close it, or name"):
        open_ledger(url)


def test_a_lock_that_ends_is_waited_for(lock, url):
    async def work(ledger):
        lock.execute("BEGIN IMMEDIATE")
        put = asyncio.create_task(ledger.put(key("b"), b"value"))
        await asyncio.sleep(0.2)
        assert not put.done()
        assert await ledger.get(key("a")) == b"value"  # reads go on meanwhile
        lock.execute("COMMIT")
        await asyncio.wait_for(put, 60)

    in_ledger(url, work)
    lock.execute("BEGIN IMMEDIATE")
    threading.Timer(0.3, lock.execute, ["COMMIT"]).start()
    assert get_all(url, ["b"]) == {"b": b"value"}


def test_a_lock_that_stays_fails_the_put_and_not_the_next(lock, path, url, monkeypatch):
    monkeypatch.setattr(ledger_sqlite, "BUSY_S", 0.2)

    async def work(ledger):
        lock.execute("BEGIN IMMEDIATE")
        before = rows(path)
        puts = [ledger.put(key(n), b"value") for n in range(10)]
        failed = await asyncio.gather(*puts, return_exceptions=True)
        assert [type(error) for error in failed] == [LedgerError] * 10
        assert "another program keeps the database locked" in str(failed[0])
        assert rows(path) == before
        lock.execute("COMMIT")
        await ledger.put(key("next"), b"value")

    in_ledger(url, work)


def test_a_full_disk_is_said_and_loses_no_earlier_put(url):
    async def work(ledger):
        await ledger.put(key("before"), b"value")
        [(pages,)] = ledger._writing.execute("PRAGMA page_count")
        ledger._writing.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(LedgerError, match="the disk is full; make room and run again"):
            await ledger.put(key("too much"), bytes(100_000))
        ledger._writing.execute("PRAGMA max_page_count = 1000000")
        await ledger.put(key("after"), bytes(100_000))

    in_ledger(url, work)
    assert get_all(url, ["before", "too much", "after"]) == {
        "before": b"value",
        "too much": None,
        "after": bytes(100_000),
    }


def test_a_page_that_goes_bad_during_the_run_is_a_miss(path, url, caplog):
    put_all(url, dict.fromkeys(range(100), b"x" * 1500))

    async def work(ledger):
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(4096 * 4)
            file.write(bytes(size - 4096 * 4))
        found = [await ledger.get(key(n)) for n in range(100)]
        assert None in found
        assert set(found) <= {None, b"x" * 1500}

    in_ledger(url, work)
    assert len(caplog.messages) == 1
    assert "a page of the database is damaged" in caplog.text


def test_a_checksum_of_another_kind_is_a_miss_too(path, url):
    put_all(url, {"a": b"value", "b": b"value"})
    db = sqlite3.connect(path)
    db.execute("UPDATE answers SET crc = 'x' WHERE key = ?", (bytes.fromhex(key("a")),))
    db.execute("UPDATE answers SET value = 'value' WHERE key = ?", (bytes.fromhex(key("b")),))
    db.commit()
    db.close()

    async def work(ledger):
        for name in "ab":
            assert await ledger.get(key(name)) is None
            await ledger.put(key(name), b"again")

    in_ledger(url, work)
    assert get_all(url, "ab") == {"a": b"again", "b": b"again"}


def test_a_torn_end_of_the_log_costs_only_what_it_held(path, url):
    async def work():
        async with opened(url) as ledger:
            await ledger.put(key("a"), b"value")
            whole = log_of(path)
            await ledger.put(key("b"), b"value")
            return path.read_bytes(), log_of(path)[: len(whole) + 1000]

    database, log = asyncio.run(work())
    path.write_bytes(database)  # as a power cut may leave it
    Path(f"{path}-wal").write_bytes(log)
    assert get_all(url, "ab") == {"a": b"value", "b": None}


def test_prune_removes_by_age_and_gives_the_space_back(path, url, monkeypatch):
    monkeypatch.setattr(ledger_database, "_PRUNE_ROWS", 7)
    put_all(url, {n: bytes(5000) for n in range(200)})
    db = sqlite3.connect(path)
    db.execute("UPDATE answers SET created_at = created_at - 7200 WHERE id <= 90 OR id > 110")
    db.commit()
    db.close()
    before = path.stat().st_size
    assert prune_ledger(url, 3600) == Pruned(180, 180 * 5000)
    assert path.stat().st_size < before / 5
    assert list(get_all(url, range(200)).values()).count(bytes(5000)) == 20


def test_pruning_the_wrong_file_changes_nothing(path, url):
    another_programs(path)
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="another program's database"):
        prune_ledger(url, 0)
    assert path.read_bytes() == before
