"""The set-up of docs/guide/cloudflare.md, typed to Cloudflare's own wrangler, which calls the stand-in's REST API."""

from __future__ import annotations

import subprocess

import pytest

from tests.company_network import clean
from tests.local.clients import queue_id, rest, s3_client
from tests.pages.blocks import ROOT, blocks, commands
from tests.pages.shells import environment
from tests.servers.installing import wrangler

PAGE = ROOT / "docs" / "guide" / "cloudflare.md"
TYPED = [words for one in blocks(PAGE) for program in ("npx", "llmdo") for words in commands(one.text, program)]
# The stand-in has no login, and its buckets and objects are made by S3's API.
NOT_HERE = ("wrangler login", "wrangler r2 bucket create", "wrangler r2 object put")
pytestmark = [pytest.mark.slow, pytest.mark.servers, pytest.mark.timeout(3600)]


@pytest.fixture
def run(cloudflare, monkeypatch, tmp_path):
    clean(monkeypatch)
    program = wrangler()
    env = environment(tmp_path / "home", **cloudflare.env)
    env |= {"CLOUDFLARE_API_BASE_URL": cloudflare.env["CLOUDFLARE_BASE_URL"], "WRANGLER_SEND_METRICS": "false"}
    env |= {"CI": "true", "NO_COLOR": "1"}

    def run(words: list[str]) -> str:
        command = [program, *words[1:]] if words[0] == "wrangler" else ["llmdo", *words]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    return run


def test_the_commands_of_the_page_make_what_doctor_asks_for(run, cloudflare):
    rest(cloudflare, "DELETE", f"/queues/{queue_id(cloudflare)}")  # which the stand-in begins with
    s3_client(cloudflare).create_bucket(Bucket="my-bucket")
    told, ran = {}, []
    for words in TYPED:
        text = " ".join(words)
        if not text.startswith(NOT_HERE) and words[0] in ("wrangler", "doctor"):
            told[words[0]] = run(words)
            ran.append(text)
    assert sum(text.startswith("wrangler") for text in ran) == 4
    for found in ("llmdo-input can be pulled", "llmdo-input is told of new objects in r2://my-bucket/input/"):
        assert found in " ".join(told["doctor"].split())
    assert "warning" not in told["doctor"].partition("queue")[2].partition("prism")[0]


def test_the_page_is_all_typed_or_known_to_be_elsewhere():
    texts = [" ".join(words) for words in TYPED]
    assert all(any(text.startswith(name) for text in texts) for name in NOT_HERE)
    assert [text for text in texts if text.startswith("stream")]
