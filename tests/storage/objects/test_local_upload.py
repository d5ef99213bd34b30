"""A file that is written piece by piece appears whole, or not at all."""

import signal
import subprocess
import sys

import pytest

from llmdo.storage.errors import AlreadyExists, InvalidLocation, ObjectNotFound, StorageError
from llmdo.storage.objects.local import LocalStore
from llmdo.storage.objects.opening import open_upload
from llmdo.storage.objects.store import locate


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def upload(path):
    return open_upload(locate(str(path)), "text/plain")


def test_it_replaces_what_was_there_when_it_is_finished(tmp_path):
    path = tmp_path / "new" / "a.txt"
    for content in (b"first", b"second", b""):
        before = path.read_bytes() if path.exists() else None
        one = upload(path)
        one.write(content[:3])
        one.write(memoryview(content)[3:])
        assert (path.read_bytes() if path.exists() else None) == before
        one.finish()
        one.abort()
        assert path.read_bytes() == content
    assert names(path.parent) == ["a.txt"]


def test_nothing_is_left_of_one_that_is_given_up(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    one = upload(path)
    one.write(b"new")
    one.abort()
    one.abort()
    assert names(tmp_path) == ["a.txt"]
    assert path.read_bytes() == b"old"


def test_a_link_stays_and_a_folder_is_refused(tmp_path):
    (tmp_path / "real.txt").write_bytes(b"old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    one = upload(tmp_path / "link.txt")
    one.write(b"new")
    one.finish()
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_bytes() == b"new"
    with pytest.raises(ObjectNotFound, match="this is a folder, not a file"):
        upload(tmp_path)
    with pytest.raises(StorageError, match=r"real\.txt"):
        upload(tmp_path / "real.txt" / "a.txt")


def test_two_at_a_time_are_refused_and_one_after_the_other_are_not(tmp_path):
    first = upload(tmp_path / "a.txt")
    other = upload(tmp_path / "b.txt")
    with pytest.raises(AlreadyExists, match="is being written by another"):
        upload(tmp_path / "a.txt")
    first.finish()
    other.finish()
    upload(tmp_path / "a.txt").finish()
    assert names(tmp_path) == ["a.txt", "b.txt"]


def test_what_a_killed_process_leaves_is_no_file_and_goes_with_the_next_upload(tmp_path):
    code = f"""
import os, signal
from llmdo.storage.objects.local_upload import LocalUpload
one = LocalUpload({str(tmp_path / "a.txt")!r})
one.write(b"half")
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False, timeout=240)
    assert killed.returncode == -signal.SIGKILL
    assert list(LocalStore(tmp_path).list("")) == []
    one = upload(tmp_path / "b.txt")
    one.finish()
    assert names(tmp_path) == ["b.txt"]


def test_what_goes_wrong_is_said_with_the_path(tmp_path, monkeypatch):
    one = upload(tmp_path / "a.txt")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.write", full)
    with pytest.raises(StorageError, match=r"a\.txt: the disk is full"):
        one.write(b"x")
    assert names(tmp_path) == []
    with pytest.raises(InvalidLocation, match="too long"):
        upload(tmp_path / ("n" * 300 + ".txt")).finish()
