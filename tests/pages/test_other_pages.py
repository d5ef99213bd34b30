"""What the pages on inputs, chats and money tell readers to type, typed as it stands."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tests.company_network import clean
from tests.local.clients import s3_client
from tests.pages.blocks import ROOT, block, commands
from tests.pages.shells import environment, rows, typed

GUIDE = ROOT / "docs" / "guide"
EVENTS = ROOT / "examples" / "chat" / "events.jsonl"
pytestmark = pytest.mark.slow


@pytest.fixture
def typing(cloudflare, monkeypatch, tmp_path):
    clean(monkeypatch)
    env = {name: value for name, value in cloudflare.env.items() if not name.startswith("OPENAI_")}

    def type_it(text: str) -> str:
        done = typed(text, tmp_path, environment(tmp_path / "home", **env))
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    return type_it


def test_inputs(typing, cloudflare, tmp_path: Path):
    line = '{"prompt": "hi"}\n'
    for name in ("more", "old/deep"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "prompts.jsonl").write_text(line)
    (tmp_path / "prompts.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    (tmp_path / "more" / "a.jsonl").write_text(line)
    (tmp_path / "old" / "deep" / "b.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    (tmp_path / "reviews.jsonl").write_text('{"text": "good"}\n')
    (tmp_path / "praise.json").write_text('{"type": "object"}')
    bucket = s3_client(cloudflare)
    bucket.create_bucket(Bucket="bucket")
    bucket.put_object(Bucket="bucket", Key="input/a.jsonl", Body=line.encode())

    typing(block(GUIDE / "inputs.md", "What goes in"))
    assert len(rows(typing("llmdo cat out/"))) == 4  # prompts.jsonl, more/, old/ and standard input
    bucket.put_object(Bucket="bucket", Key="input/embed/b.jsonl", Body=b'{"text": "to embed"}\n')
    mixed = block(GUIDE / "inputs.md", "Templates").splitlines()[1]
    typing(mixed)
    assert {row["model"] for row in rows(typing("llmdo cat r2://bucket/mixed/"))} == {
        "workers-ai/@cf/meta/llama-3.3-70b-instruct-fp8-fast",
        "workers-ai/@cf/baai/bge-m3",
    }
    typing(block(GUIDE / "money.md", "The ledger"))


@pytest.mark.model
def test_chats(typing, tmp_path: Path):
    asked = next(line for line in EVENTS.read_text().splitlines() if _asks(json.loads(line)))
    (tmp_path / "events.jsonl").write_text(f"{asked}\n")
    answering, *_, explaining = commands(block(ROOT / "docs" / "chat.md", "Chat"))
    typing("llmdo " + " ".join([*answering, "--max-tokens", "20"]))  # a small model on a busy machine
    events = map(json.loads, (tmp_path / "out" / "events.jsonl").read_text().splitlines())
    (response,) = (event for event in events if event["name"] == "v1.LLMResponseReceived")
    message = json.loads(asked)["args"]["id"]
    assert response["args"]["responseToMessageId"] == message
    told = typing("llmdo " + " ".join(explaining).replace("MESSAGE_ID", message).replace("r2://bucket/chat/", "out/"))
    assert "answered" in told


def _asks(event: dict) -> bool:
    return event["name"] == "v1.ChatMessageSent" and event["args"]["role"] == "user"
