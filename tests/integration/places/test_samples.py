"""Answers are the user's data: what a command prints may be kept by a log, so it has none unless somebody asks."""

from __future__ import annotations

import json
import os
import pty

import pytest

from tests.integration.cloud import MODEL, OUTPUT

SECRET = "lilac"


@pytest.fixture
def answered(cloud, tmp_path, monkeypatch):
    """Four files of prompts with a word that nobody else may read; what a command prints about them."""
    monkeypatch.delenv("STORE_ID", raising=False)
    for n in range(4):
        cloud.upload(f"{n}.jsonl", json.dumps({"prompt": f"{SECRET} {n}"}).encode() + b"\n")

    def printed(*arguments, terminal=False, **env):
        if not terminal:
            process = cloud.command(*arguments, **env)
            out, err = process.communicate(timeout=240)
        else:
            ours, theirs = pty.openpty()
            process = cloud.command(*arguments, stdout=theirs)
            os.close(theirs)
            _, err = process.communicate(timeout=240)
            out = os.read(ours, 1 << 16)
            os.close(ours)
        assert process.returncode in (0, 3), err
        assert SECRET not in err.decode()
        return out.decode()

    return printed


RUN = ("run", "--input", "r2://llmdo/input/", "--model", MODEL, "--output")


def test_a_run_prints_answers_on_a_terminal_only_or_as_many_as_it_is_told(answered):
    piped = answered(*RUN, OUTPUT, FORCE_COLOR="1")
    assert "0.jsonl" in piped and SECRET not in piped
    assert answered(*RUN, OUTPUT, "--samples", "2").count(f"echo: {SECRET}") == 2
    assert SECRET not in answered(*RUN, OUTPUT, "--samples", "2", "--json")
    assert answered(*RUN, OUTPUT, terminal=True).count(f"echo: {SECRET}") == 3
    assert SECRET not in answered(*RUN, OUTPUT, "--samples", "0", terminal=True)


def test_retries_and_chats_print_no_answer_even_on_a_terminal(answered, cloud, tmp_path):
    cloud.fault(target="ai", status=400, code=5024, match=SECRET)
    answered(*RUN, OUTPUT)
    cloud.no_faults()
    said = answered("retry", OUTPUT, terminal=True)
    assert "answered now" in said and SECRET not in said
    args = {"id": "m", "conversationId": "c", "message": f"a {SECRET}", "role": "user", "createdAt": 1000}
    events = tmp_path / "events.jsonl"
    events.write_text(json.dumps({"name": "v1.ChatMessageSent", "args": args}) + "\n")
    said = answered("chat", "--events", str(events), "--output", str(tmp_path / "out"), "--model", MODEL, terminal=True)
    assert "messages answered" in said and SECRET not in said
    assert SECRET in (tmp_path / "out" / "events.jsonl").read_text()
