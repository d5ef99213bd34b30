"""Which files with prompts, answers and keys other users of the machine can read: none but an output's own objects."""

from __future__ import annotations

import os
import stat
from contextlib import nullcontext

import pytest

from llmdo.pipelines.chat_options import check_chat_options
from llmdo.runners.running.chat import chat
from tests.integration.cloud import MODEL, Cloud, prompts
from tests.local.cloudflare import running

EVENT = (
    '{"name": "v1.ChatMessageSent", "args": {"id": "m", "conversationId": "c", "message": "hi", "role": "user", '
    '"createdAt": 1000}}\n'
)


def readable_by_others(folder):
    """Files below that another user can read: their own modes allow it, and those of all folders on the way."""
    found = set()
    for path in folder.rglob("*"):
        way = [parent for parent in path.parents if parent.is_relative_to(folder)]
        open_way = all(stat.S_IMODE(parent.stat().st_mode) & 0o011 for parent in way)
        if path.is_file() and open_way and stat.S_IMODE(path.stat().st_mode) & 0o044:
            found.add(path.relative_to(folder).as_posix())
    return found


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    for name in ("data", "out", "chat", "log"):  # folders that the user made
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o755)
    before = os.umask(0)
    with running(tmp_path / "data") as server:
        more = {"XDG_STATE_HOME": str(tmp_path / "state"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
        for name, value in (server.env | more).items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("STORE_ID", raising=False)
        monkeypatch.setattr("llmdo.backends.listing.is_loopback", lambda url: False)  # the lists of others are kept
        yield Cloud(server)
    os.umask(before)


def test_ledgers_local_data_caches_and_chat_logs_are_for_this_user_alone(cloud, tmp_path):
    lines = tmp_path / "in.jsonl"
    lines.write_bytes(prompts(3))
    cloud.upload("a.jsonl", prompts(3))
    assert cloud.run().exit_code == 0  # its ledger is in the state folder
    assert cloud.run(files=(str(lines),), queue=None, output=str(tmp_path / "out")).exit_code == 0
    assert cloud.run(files=(str(lines),), queue=None, output="r2://llmdo/b/", ledger=str(tmp_path / "l")).exit_code == 0
    events = tmp_path / "events.jsonl"
    events.write_text(EVENT)
    options = check_chat_options(events=(str(events),), output=str(tmp_path / "chat"), model=MODEL)
    assert chat(options, lambda state: nullcontext()).exit_code == 0
    for name, made in (("data", "objects.sqlite"), ("state", "*.sqlite"), ("l", "*/*.json"), ("cache", "*.json")):
        assert list((tmp_path / name).rglob(made))
        assert readable_by_others(tmp_path / name) == set()
    shards = readable_by_others(tmp_path / "out")
    assert shards and not [name for name in shards if "_ledger" in name]  # answers, with the modes that the umask gives
    assert (tmp_path / "out" / "_ledger.sqlite").exists()
    conversation = [path for path in (tmp_path / "chat" / "c").rglob("*") if path.is_file()]
    assert len(conversation) > 1
    assert {name for name in readable_by_others(tmp_path / "chat") if name.startswith("c/")} == set()
