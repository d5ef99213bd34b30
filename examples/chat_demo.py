"""Chats on this machine: events into one queue, a real model's answers out of another. Run it with `make chat-demo`.

Starts `llmdo local` with the embedded model and `llmdo chat` on Prism, sends the events of examples/chat/events.jsonl
(5 conversations, interleaved), and shows the answers as they arrive. It stops everything it started.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from demo import LLMDO, MODEL, say, wait_for_env

from llmdo.settings.environment import cloudflare_account
from llmdo.storage.queues.client import QueueClient

EVENTS = Path(__file__).parent / "chat" / "events.jsonl"
LOG = "r2://llmdo/chat/"
MESSAGE, RESPONSE = "v1.ChatMessageSent", "v1.LLMResponseReceived"
TIMEOUT = 300.0  # seconds for all answers; each takes the model about one, on two cores
WIDTH = 100


def main() -> int:
    """Returns the demo's exit code."""
    with tempfile.TemporaryDirectory(prefix="llmdo-chat-demo-") as folder:
        server = subprocess.Popen([*LLMDO, "local", "--data", folder, "--port", "0"])
        try:
            # The ledger of the demo's answers is removed with the demo.
            os.environ.update(wait_for_env(Path(folder) / "env", server) | {"XDG_STATE_HOME": folder})
            os.environ.pop("STORE_ID", None)
            events, answers = make_queue("chat-in"), make_queue("chat-out")
            words = ["--queue", "chat-in", "--reply-queue", "chat-out", "--log", LOG, "--model", MODEL]
            # A model as small as this one follows a short prompt better than the default one.
            words += ["--system", f"@{EVENTS.with_name('system.txt')}", "--max-tokens", "40", "--temperature", "0"]
            command = ["chat", *words, "--concurrency", "8"]
            say(f"llmdo {' '.join(command)}")
            chat = subprocess.Popen([*LLMDO, *command])
            try:
                complete = talk(events, answers, chat)
            finally:
                chat.terminate()
                code = chat.wait(timeout=90)
            if code or not complete:
                return code or 1
            last = list(questions_of(read_events()))[-1]
            say(f"llmdo chat explain {last} --log {LOG}")
            return subprocess.run([*LLMDO, "chat", "explain", last, "--log", LOG], check=False).returncode
        finally:
            server.terminate()
            server.wait(timeout=10)


def make_queue(name: str) -> QueueClient:
    """A queue with a pull consumer, as `wrangler queues create` and `wrangler queues consumer http add` make it."""
    account = cloudflare_account()
    with httpx.Client(headers={"Authorization": f"Bearer {account.token}"}, trust_env=False) as api:
        made = api.post(f"{account.url}/queues", json={"queue_name": name}).raise_for_status().json()["result"]
        consumer = {"type": "http_pull", "dead_letter_queue": f"{name}-dead"}
        api.post(f"{account.url}/queues/{made['queue_id']}/consumers", json=consumer).raise_for_status()
    return QueueClient(account, made["queue_id"])


def talk(queue: QueueClient, answers: QueueClient, chat: subprocess.Popen[bytes]) -> bool:
    """Sends the events and shows the answers; returns whether every user's message was answered."""
    asked = questions_of(read_events())
    waiting = set(asked)
    queue.push_many(read_events())
    print(f"sent the events of {EVENTS.name}, with {len(waiting)} messages of users\n", flush=True)
    deadline = time.monotonic() + TIMEOUT
    while waiting and chat.poll() is None and time.monotonic() < deadline:
        pulled = answers.pull().messages
        for message in pulled:
            args = message.body["args"]
            if message.body["name"] == RESPONSE and args["responseToMessageId"] in waiting:
                waiting.discard(args["responseToMessageId"])
                show(asked[args["responseToMessageId"]], args)
        answers.settle([message.lease_id for message in pulled])
        time.sleep(0.2)
    return not waiting


def read_events() -> list[dict[str, Any]]:
    """The example's events, in order."""
    return [json.loads(line) for line in EVENTS.read_text(encoding="utf-8").splitlines()]


def questions_of(events: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The messages of users, by their ids."""
    messages = (event["args"] for event in events if event["name"] == MESSAGE)
    return {args["id"]: args for args in messages if args["role"] == "user"}


def show(question: dict[str, Any], answer: dict[str, Any]) -> None:
    """A question and its answer, shortened."""
    print(f"[{question['conversationId'][:8]}] {short(question['message'])}")
    print(f"           {short(answer['message'])}", flush=True)


def short(text: str) -> str:
    """A text on one line."""
    text = " ".join(text.split())
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"


if __name__ == "__main__":
    sys.exit(main())
