from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmdo.runners import temporary
from llmdo.runners.temporary import KEPT_SECONDS, kept_folder, remove_abandoned, temporary_folder
from llmdo.settings.tools import one_at_a_time, workshop

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders go, here and in processes that are started."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


OWNER = """
    import time
    from llmdo.runners.temporary import temporary_folder

    with temporary_folder() as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "log").write_text("a log")
        print(folder, flush=True)
        time.sleep(60)
"""


@contextmanager
def owner() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that holds a folder, and the folder."""
    command = [sys.executable, "-c", textwrap.dedent(OWNER)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def test_a_folder_goes_with_its_context_also_after_an_error(place: Path) -> None:
    with pytest.raises(KeyError), temporary_folder() as folder:
        (folder / "file").write_text("text")
        assert folder.parent == place
        assert folder.stat().st_mode & 0o077 == 0
        raise KeyError
    assert list(place.iterdir()) == []


def test_what_a_kill_left_behind_is_removed_and_what_lives_is_not(place: Path) -> None:
    with owner() as (killed, abandoned), owner() as (_, held), temporary_folder() as own:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert (abandoned / "deep" / "log").read_text() == "a log"
        remove_abandoned()
        assert sorted(place.iterdir()) == sorted([held, own])
        assert (held / "deep" / "log").read_text() == "a log"


def test_folders_of_others_and_links_are_left_alone(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "file").write_text("text")
    (place / "llmdo-run-link").symlink_to(elsewhere)
    (place / "llmdo-run-file").write_text("text")
    (place / "llmdo-demo-x").mkdir()
    (place / "another").mkdir()
    remove_abandoned()
    assert (elsewhere / "file").exists()
    assert len(list(place.iterdir())) == 4
    (place / "llmdo-run-theirs").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    remove_abandoned()
    assert (place / "llmdo-run-theirs").is_dir()


def test_a_folder_that_is_kept_stays_for_a_day() -> None:
    folder = kept_folder()
    (folder / "job.json").write_text("{}")
    remove_abandoned()
    assert (folder / "job.json").exists()
    old = folder.stat().st_mtime - KEPT_SECONDS - 60
    os.utime(folder, (old, old))
    remove_abandoned()
    assert not folder.exists()


def test_a_folder_that_was_removed_before_it_was_locked_is_made_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, lock = [], temporary.fcntl.flock

    def locked_late(descriptor: int, how: int) -> None:
        if not made:
            made.extend(place.iterdir())
            made[0].rmdir()
        lock(descriptor, how)

    monkeypatch.setattr(temporary.fcntl, "flock", locked_late)
    with temporary_folder() as folder:
        assert folder.is_dir()
        assert folder != made[0]


def test_starts_side_by_side_never_take_each_others_folder() -> None:
    def work(_: int) -> bool:
        with temporary_folder() as folder:
            remove_abandoned()
            return folder.is_dir()

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(200)))


def test_a_workshop_of_a_process_that_was_killed_goes_with_the_next_one(place: Path) -> None:
    cache = place / "prism"
    with one_at_a_time(cache):
        (cache / "making-dead" / "toolchain").mkdir(parents=True)
        with workshop(cache) as folder:
            assert sorted(cache.iterdir()) == sorted([cache / "lock", folder])
    assert sorted(cache.iterdir()) == [cache / "lock"]
