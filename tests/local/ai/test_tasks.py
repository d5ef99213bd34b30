from __future__ import annotations

from typing import Any

import pytest

from tests.local.clients import rest
from tests.local.cloudflare import Running

RERANKER = "@cf/baai/bge-reranker-base"


@pytest.mark.parametrize(
    ("model", "body", "code"),
    [
        ("@cf/huggingface/distilbert-sst-2-int8", {"prompt": "a"}, 5006),
        ("@cf/meta/m2m100-1.2b", {"text": "a"}, 5006),
        ("@cf/facebook/bart-large-cnn", {"input_text": ""}, 5006),
        (RERANKER, {"query": "a", "contexts": []}, 5006),
        (RERANKER, {"query": "a", "contexts": ["b"]}, 5006),
        (RERANKER, {"query": "a", "contexts": [{"text": 1}]}, 5006),
        ("@cf/llava-hf/llava-1.5-7b-hf", {"image": "AAAA", "prompt": "a"}, 5006),
        ("@cf/microsoft/resnet-50", {"image": [256]}, 5006),
        ("@cf/openai/whisper", {"audio": "AAAA"}, 5006),
        ("@cf/openai/whisper-large-v3-turbo", {"audio": [1]}, 5006),
        ("@cf/openai/whisper-large-v3-turbo", {"audio": "no base64"}, 5004),
        ("@cf/black-forest-labs/flux-1-schnell", {"text": "a"}, 5006),
    ],
)
def test_an_input_that_is_not_the_tasks_own_is_refused(
    cloudflare: Running, model: str, body: dict[str, Any], code: int
) -> None:
    reply = rest(cloudflare, "POST", f"/ai/run/{model}", body)
    assert (reply.status_code, reply.json()["errors"][0]["code"]) == (400, code)
    assert cloudflare.stats()["paid"]["calls"] == 0


def test_a_picture_is_the_body_itself_or_base64_in_the_envelope(cloudflare: Running) -> None:
    older = rest(cloudflare, "POST", "/ai/run/@cf/stabilityai/stable-diffusion-xl-base-1.0", {"prompt": "a"})
    assert (older.headers["content-type"], older.content[:4]) == ("image/png", b"\x89PNG")
    newer = rest(cloudflare, "POST", "/ai/run/@cf/black-forest-labs/flux-1-schnell", {"prompt": "a"}).json()
    assert (newer["success"], list(newer["result"])) == (True, ["image"])
    assert cloudflare.stats()["paid"]["calls"] == 2


def test_a_transcript_has_its_words_with_their_times(cloudflare: Running) -> None:
    result = rest(cloudflare, "POST", "/ai/run/@cf/openai/whisper", {"audio": [1, 2]}).json()["result"]
    assert result["text"] == "a recording of 2 bytes"
    assert result["words"][1] == {"word": "recording", "start": 1.0, "end": 2.0}
    assert result["vtt"].startswith("WEBVTT")
