"""A worker, the process of its run, or both are killed right before or after any single write: nothing is lost."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.processes.test_workers import ended, paid, wait_until
from tests.integration.cloud import MODEL, OUTPUT, prompts

WINDOW, FILES, LINES = 16, 3, 150

# Runs in a worker before it begins. Each file in the folder DEATHS is named KIND-MOMENT-NUMBER: the first worker that
# comes to this write of its own removes it, and dies there.
DEADLY = """
import os, signal
from collections import Counter
from llmdo.runners.workers import wire
from llmdo.storage.ledger import sqlite
from llmdo.transforms.elements import Written
from llmdo.transforms.files import write_shards

counts = Counter()

def before(kind):
    counts[kind] += 1
    die(kind, "before", counts[kind])
    return counts[kind]

def die(kind, moment, number):
    try:
        os.unlink(os.path.join(os.environ["DEATHS"], f"{kind}-{moment}-{number}"))
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)

put, put_shard = sqlite.SqliteLedger.put, write_shards.put_shard
send, send_and_wait = wire.Channel.send, wire.Channel.send_and_wait

async def deadly_put(self, *rest, **how):
    number = before("keep")
    await put(self, *rest, **how)
    die("keep", "after", number)  # others have begun meanwhile

def deadly_put_shard(*rest, **how):
    number = before("shard")
    shard = put_shard(*rest, **how)
    die("shard", "after", number)
    return shard

def deadly_send(self, message):
    kind = type(message).__name__
    if kind == "Written":
        kind = "end" if message.stretch_length is not None else "written"
    number = before(kind)
    send(self, message)
    die(kind, "after", number)

def deadly_send_and_wait(self, message):
    number = before(type(message).__name__)
    send_and_wait(self, message)
    die(type(message).__name__, "after", number)

sqlite.SqliteLedger.put, write_shards.put_shard = deadly_put, deadly_put_shard
wire.Channel.send, wire.Channel.send_and_wait = deadly_send, deadly_send_and_wait
"""
# Runs in the run's process: its workers run DEADLY, and it dies at a write of R2 itself, with its workers or alone.
STARTER = """
import os, signal, sys
sys.path.insert(0, {folder!r})
from llmdo.runners import servers
from llmdo.runners.workers import worker_process as module
from llmdo.storage.objects.r2 import R2Store

start_tied = module.start_tied
RUN = 'import runpy, sys, deadly; runpy.run_module("llmdo.runners.workers.child", run_name="__main__")'
module.start_tied = lambda command, *rest, **how: start_tied([command[0], "-P", "-c", RUN, command[-1]], *rest, **how)

def deadly(name):
    write = getattr(R2Store, name)
    def writes(self, keys, *rest, **how):
        mine = {kind!r} in str(keys) and name.startswith({name!r})
        if mine and {moment!r} == "before":
            die()
        found = write(self, keys, *rest, **how)
        if mine:
            die()
        return found
    setattr(R2Store, name, writes)

def die():
    if {both!r}:
        servers.kill_all()
    os.kill(os.getpid(), signal.SIGKILL)

if {kind!r}:
    for name in ("put", "put_if_absent", "put_if_match", "delete_many"):
        deadly(name)
"""


@pytest.fixture
def deaths(tmp_path):
    """The folder of those that are to come."""
    folder = tmp_path / "deaths"
    folder.mkdir()
    (tmp_path / "deadly.py").write_text(DEADLY)
    return folder


def start(cloud, deaths, kind="", name="", moment="", both=False):
    where = ["--input", "r2://llmdo/input/", "--output", OUTPUT, "--model", MODEL, "--json"]
    how = ["--concurrency", str(WINDOW), "--processes", "2", "--batch-size", "20"]
    first = STARTER.format(folder=str(deaths.parent), kind=kind, name=name, moment=moment, both=both)
    return cloud.command("run", *where, *how, first=f"exec({first!r}); ", DEATHS=str(deaths))


def upload(cloud):
    for file in range(FILES):
        cloud.upload(f"{file}.jsonl", prompts(LINES, f"file {file}"))
    return FILES * LINES


def processes_with(deaths):
    """Those of all runs and workers that were started with this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"DEATHS={deaths}".encode() in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
    return found


def check(cloud, deaths, lines):
    """Each line has one row, and no process is left."""
    cloud.check()
    assert sum(len(cloud.rows(f"{file}.jsonl")) for file in range(FILES)) == lines
    wait_until(lambda: processes_with(deaths) == [])


@pytest.mark.fast("after-shard-1")
@pytest.mark.parametrize(
    ("kind", "number"),
    [
        *(("keep", 1), ("keep", 40), ("shard", 1), ("shard", 3), ("written", 1), ("written", 4), ("end", 1)),
        *(("Begun", 1), ("Begun", 2), ("WorkerReport", 2), ("WorkerEnded", 1)),
    ],
)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_worker_that_dies_at_any_write_is_replaced_and_its_answers_are_paid_once(cloud, deaths, kind, moment, number):
    lines = upload(cloud)
    death = deaths / f"{kind}-{moment}-{number}"
    death.touch()
    summary, err = ended(start(cloud, deaths))
    assert not death.exists(), "no worker came to this write"
    assert (summary["exit_code"], summary["answered"]) == (0, lines), err
    assert kind == "WorkerEnded" or "killed by signal 9" in err
    check(cloud, deaths, lines)
    assert lines <= paid(cloud) <= lines + WINDOW


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_workers_that_die_again_and_again_cost_no_more_than_their_calls_in_flight(cloud, deaths, seed):
    lines, rng = upload(cloud), random.Random(seed)
    for _ in range(6):
        kind = rng.choice(("keep", "shard", "written"))
        number = rng.randrange(5, 80) if kind == "keep" else rng.randrange(1, 6)
        (deaths / f"{kind}-{rng.choice(('before', 'after'))}-{number}").touch()
    planned = left = len(list(deaths.iterdir()))
    summary, err = ended(start(cloud, deaths))
    while summary["exit_code"]:  # lines that three workers died of are left to another run
        assert summary["left"] and all("worker processes died" in why for why in summary["left"].values()), err
        assert len(list(deaths.iterdir())) < left, "it gave up though no worker died"
        left = len(list(deaths.iterdir()))
        summary, err = ended(start(cloud, deaths))
    died = planned - len(list(deaths.iterdir()))
    assert died >= 2
    check(cloud, deaths, lines)
    assert lines <= paid(cloud) <= lines + died * WINDOW


@pytest.mark.fast("both-before-_manifest.json")
@pytest.mark.parametrize(
    ("kind", "name"),
    [("_open/", "put"), ("_manifest.json", "put"), ("_open/", "delete"), ("_runs/", "put"), ("_configuration", "put")],
    ids=["_open/", "_manifest.json", "_open/ removed", "_runs/", "_configuration"],
)
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("both", [False, True], ids=["alone", "both"])
def test_a_run_that_dies_at_any_write_leaves_no_worker_and_another_run_goes_on(cloud, deaths, kind, name, moment, both):
    lines = upload(cloud)
    process = start(cloud, deaths, kind, name, moment, both)
    process.communicate(timeout=120)
    assert process.returncode == -9, "it did not come to this write"
    wait_until(lambda: processes_with(deaths) == [])
    summary, err = ended(start(cloud, deaths))
    assert summary["exit_code"] == 0, err
    check(cloud, deaths, lines)
    # Alone, its workers keep the answers to their calls in flight before they end.
    assert lines <= paid(cloud) <= lines + WINDOW * both
