"""Names of pictures, sounds and files in every shape of line, for other providers, and in places by --media-from."""

from __future__ import annotations

import base64
import json
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from llmdo.backends.requests import Request
from llmdo.backends.workers_ai.backend import WorkersAI
from llmdo.runners.cli.main import main
from tests.company_network import listening
from tests.fakes.media import pdf, png, wav
from tests.integration.services.seeing import Seeing, answer, data_url, lines, picture, put
from tests.storage.media.test_objects import Web


def body_of(seeing: Seeing) -> Any:
    (body,) = seeing.asked
    return body


def test_a_line_for_responses_gets_its_bytes_as_that_route_takes_them(cloud, seeing):
    put(cloud, "media/a.png", png())
    put(cloud, "media/bill.pdf", pdf())
    content = [
        {"type": "input_text", "text": "?"},
        {"type": "input_image", "image_url": "r2://llmdo/media/a.png", "detail": "low"},
        {"type": "input_file", "file_url": "r2://llmdo/media/bill.pdf"},
    ]
    body = {"input": [{"role": "user", "content": content}]}
    cloud.upload("a.jsonl", lines({"custom_id": "1", "method": "POST", "url": "/v1/responses", "body": body}))
    summary = answer(cloud)
    assert (summary.problem, summary.counts.answered) == (None, 1)
    assert body_of(seeing)["input"][0]["content"] == [
        content[0],
        {"type": "input_image", "image_url": data_url("image/png", png()), "detail": "low"},
        {"type": "input_file", "filename": "bill.pdf", "file_data": data_url("application/pdf", pdf())},
    ]


ANTHROPIC = {
    "custom_id": "1",
    "params": {
        "max_tokens": 9,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image", "source": {"type": "url", "url": "r2://llmdo/media/a.png"}},
                    {"type": "text", "text": "?"},
                ],
            }
        ],
    },
}
GEMINI = {
    "key": "1",
    "request": {
        "contents": [
            {
                "role": "user",
                "parts": [
                    {"fileData": {"fileUri": "r2://llmdo/media/a.png", "mimeType": "image/png"}},
                    {"text": "?"},
                ],
            }
        ]
    },
}


@pytest.mark.parametrize("line", [ANTHROPIC, GEMINI], ids=["anthropic", "gemini"])
def test_lines_of_other_services_name_pictures_too(cloud, seeing, line):
    put(cloud, "media/a.png", png())
    cloud.upload("a.jsonl", lines(line))
    summary = answer(cloud)
    assert (summary.problem, summary.counts.answered) == (None, 1)
    parts = body_of(seeing)["messages"][-1]["content"]
    assert {"type": "image_url", "image_url": {"url": data_url("image/png", png())}} in parts


def test_workers_ai_gets_what_each_of_its_models_takes(cloud):
    put(cloud, "media/a.png", png())
    put(cloud, "media/a.wav", wav())
    named = [
        {"model": "@cf/openai/whisper", "audio": "r2://llmdo/media/a.wav"},
        {"model": "@cf/openai/whisper-large-v3-turbo", "audio": "r2://llmdo/media/a.wav"},
        {"model": "@cf/llava-hf/llava-1.5-7b-hf", "image": "r2://llmdo/media/a.png", "prompt": "?"},
        {"model": "@cf/llava-hf/llava-1.5-7b-hf", **picture("r2://llmdo/media/a.png")},
        {"model": "@cf/google/gemma-4-26b-a4b-it", **picture("r2://llmdo/media/a.png", 7)},
    ]
    cloud.upload("a.jsonl", lines(*named))
    summary = cloud.run(line_models="any")
    assert (summary.problem, summary.counts.failed) == (None, 0)
    said = [json.dumps(row["response"]["body"]) for row in cloud.rows("a.jsonl")]
    for text, size in zip(said[:4], (len(wav()), len(wav()), len(png()), len(png())), strict=True):
        assert f"of {size} bytes" in text
    assert "what is it? 7" in said[4]


def test_a_folder_and_a_web_server_are_read_where_they_are_named(cloud, seeing, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(png(1))
    (tmp_path / "secret.png").write_bytes(png(9))
    (tmp_path / "photos" / "link.png").symlink_to(tmp_path / "secret.png")
    objects = {"/p/b.png": (200, {"etag": '"b"'}, png(2)), "/p/away.png": (302, {"location": "/s.png"}, b"")}
    objects["/s.png"] = (200, {}, png(9))
    with listening(Web, objects=objects, heads=True) as (url, server):
        names = [
            f"{tmp_path}/photos/a.png",
            f"{url}/p/b.png",
            f"file://{tmp_path}/secret.png",
            f"{tmp_path}/photos/link.png",
            f"{url}/p/away.png",
            f"{url}/s.png",
        ]
        cloud.upload("a.jsonl", lines(*(picture(name, number) for number, name in enumerate(names))))
        monkeypatch.chdir(tmp_path)
        summary = answer(cloud, media_from=("photos", f"{url}/p/"))
    assert (summary.problem, summary.counts.answered, summary.counts.failed) == (None, 3, 3)
    sent = [part["image_url"]["url"] for part in seeing.parts()]
    assert sorted(sent) == sorted([data_url("image/png", png(1)), data_url("image/png", png(2)), f"{url}/s.png"])
    assert not any(path == "/s.png" for _, path in server.seen)
    errors = {row["id"]: row["error"]["class"] for row in cloud.rows("a.jsonl") if row["error"]}
    assert errors == {2: "MediaNotAllowed", 3: "MediaUnusable", 4: "MediaUnusable"}


@pytest.mark.parametrize("more", [(), ("--processes", "2")], ids=["one process", "two processes"])
def test_after_a_kill_only_calls_in_flight_are_paid_again(cloud, seeing, more):
    """And what was answered is not even read again: the ledger knows it by its etag."""
    count, window = 30, 4
    put(cloud, "media/a.png", png())
    cloud.upload("a.jsonl", lines(*(picture("r2://llmdo/media/a.png", number) for number in range(count))))
    answered, enough = threading.Semaphore(10), threading.Event()

    def hold(_: dict[str, Any]) -> None:
        if not answered.acquire(blocking=False) and not enough.is_set():
            enough.wait(55)

    seeing.before = hold
    arguments = ("run", "r2://llmdo/input/", "-o", "r2://llmdo/output/", "-m", "openai/small", "-c", f"{window}", *more)
    first = cloud.command(*arguments, OPENAI_BASE_URL=seeing.url, OPENAI_API_KEY="sk-loopback-only")
    wait_until(lambda: len(seeing.asked) >= 10)
    time.sleep(0.5)  # what was answered reaches the ledger
    first.send_signal(signal.SIGKILL)
    first.wait(55)
    enough.set()
    second = cloud.command(*arguments, OPENAI_BASE_URL=seeing.url, OPENAI_API_KEY="sk-loopback-only")
    _, said = second.communicate(timeout=240)
    assert second.returncode == 0, said.decode()
    assert count <= len(seeing.asked) <= count + 2 * window
    assert [row["id"] for row in cloud.rows("a.jsonl")] == list(range(count))
    cloud.check()


def wait_until(done, seconds=120):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_command_says_what_a_place_has_to_be(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"prompt": "x"}\n')
    with pytest.raises(SystemExit) as ended:
        main(["run", "a.jsonl", "-o", "out", "-m", "openai/m", "--media-from", "s3://bucket/"])
    assert ended.value.code == 2
    assert "s3:// is not known here" in " ".join(capsys.readouterr().err.split())


def test_a_picture_in_a_large_line_is_smaller_than_the_line_would_be(cloud, seeing):
    """A line with the bytes themselves would be over --max-line-bytes."""
    large = png() + b"\0" * 2_000_000
    put(cloud, "media/large.png", large)
    cloud.upload("a.jsonl", lines(picture("r2://llmdo/media/large.png")))
    assert answer(cloud).counts.answered == 1
    assert seeing.parts()[0]["image_url"]["url"] == f"data:image/png;base64,{base64.b64encode(large).decode()}"


def test_a_line_that_names_a_picture_is_called_by_itself_where_others_go_in_batches(cloud, monkeypatch):
    handed, plain = list[Request](), WorkersAI.submit_batch

    async def submit(self: WorkersAI, model: str, requests: Sequence[Request], nonce: str) -> str:
        handed.extend(requests)
        return await plain(self, model, requests, nonce)

    monkeypatch.setattr(WorkersAI, "submit_batch", submit)
    put(cloud, "media/a.png", png())
    model = "@cf/google/gemma-4-26b-a4b-it"
    cloud.upload("a.jsonl", lines(*({"id": number, "prompt": f"plain {number}"} for number in range(3))))
    cloud.upload("b.jsonl", lines(*(picture("r2://llmdo/media/a.png", number) for number in range(3))))
    summary = cloud.run(mode="batch", model=model)
    assert (summary.problem, summary.counts.answered, summary.counts.failed) == (None, 6, 0)
    assert cloud.stats()["paid"]["calls"] == 6
    assert sorted(request.messages[0].content for request in handed) == ["plain 0", "plain 1", "plain 2"]
