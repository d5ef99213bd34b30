"""The commands of README's section "Use", typed in their order as they stand: to the stand-in for Cloudflare."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import boto3
import pytest
from botocore.config import Config

from tests.company_network import clean
from tests.integration.openai_service import serving
from tests.local.clients import queue_id, rest
from tests.pages.blocks import README, block, commands
from tests.pages.shells import environment

# A LiveStore backend is elsewhere: integration/test_livestore.py has one.
LINES = [words for words in commands(block(README, "Use")) if "--livestore" not in words]
# Those that go on until they are stopped, and what they write once they are at work.
LASTING = {"stream": "waiting", "schedule": "The next run is at", "chat": "waiting"}
UNTIL_S, QUARTER_S = 110.0, 900.0
pytestmark = [pytest.mark.slow, pytest.mark.prism, pytest.mark.timeout(900)]


class Reader:
    """Somebody who types the commands of README."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self._folder, self._env = folder, env

    def types(self, words: list[str]) -> str:
        """What a command that ends prints; it must not fail."""
        done = subprocess.run(
            ["llmdo", *words],
            cwd=self._folder,
            env=self._env,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, (words, done.returncode, done.stdout, done.stderr)
        return done.stdout

    @contextmanager
    def lets_run(self, words: list[str]) -> Iterator[None]:
        """A command that is at work until the context ends; stopped by SIGTERM, it must end well."""
        log = self._folder / f"{words[0]}.log"
        with log.open("w") as out:
            process = subprocess.Popen(
                ["llmdo", *words], cwd=self._folder, env=self._env, stdout=out, stderr=subprocess.STDOUT
            )
        try:
            until(lambda: LASTING[words[0]] in log.read_text() or process.poll() is not None, words)
            assert process.poll() is None, (words, log.read_text())
            yield
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=UNTIL_S) == 0, (words, log.read_text())
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()


def until(condition: Callable[[], object], what: object) -> None:
    end = time.monotonic() + UNTIL_S
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.2)


@pytest.fixture
def bucket(cloudflare):
    """The bucket of README, as any S3 client sees it."""
    s3 = boto3.client(
        "s3",
        endpoint_url=cloudflare.env["R2_ENDPOINT_URL"],
        aws_access_key_id=cloudflare.env["R2_ACCESS_KEY_ID"],
        aws_secret_access_key=cloudflare.env["R2_SECRET_ACCESS_KEY"],
        region_name="auto",
        config=Config(request_checksum_calculation="when_required"),
    )
    return lambda name, text: s3.put_object(Bucket="bucket", Key=f"input/{name}", Body=text.encode())


@pytest.fixture
def reader(cloudflare, monkeypatch, tmp_path):
    clean(monkeypatch)
    for name in ("chat-in", "chat-out"):
        rest(cloudflare, "POST", "/queues", {"queue_name": name})
        rest(cloudflare, "POST", f"/queues/{queue_id(cloudflare, name)}/consumers", {"type": "http_pull"})
    (tmp_path / "reviews").mkdir()
    (tmp_path / "reviews" / "one.jsonl").write_text('{"text": "I like it"}\n')
    with serving() as service:
        other = {"OPENAI_BASE_URL": service.url, "BRAINTRUST_API_KEY": "bt-test", "BRAINTRUST_PROJECT_ID": "p"}
        # Braintrust is elsewhere: it is never asked, since no message comes.
        elsewhere = {"HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}
        yield Reader(tmp_path, environment(tmp_path / "home", **{**cloudflare.env, **other, **elsewhere}))


def test_the_commands_of_readme_do_what_it_says(reader, bucket, cloudflare):
    prompts = "".join(json.dumps({"id": n, "prompt": f"p {n}"}) + "\n" for n in range(5))
    bucket("a.jsonl", prompts)
    told: dict[str, str] = {}
    with ExitStack() as lasting:
        for words in LINES:
            if words[0] == "local":
                continue  # it is what all of this is typed to
            if words[0] == "schedule":
                _far_from_a_tick()
            if words[0] in LASTING:
                lasting.enter_context(reader.lets_run(words))
                if words[0] == "stream":
                    bucket("b.jsonl", prompts)
                    until(lambda: _done(reader) == 2, "b.jsonl")
            else:
                told[words[0]] = reader.types(words)
            if words[:3] == ["ctl", "r2://bucket/output/", "pause"]:
                lasting.close()  # what comes after is about an output at rest
    assert len(reader.types(["cat", "r2://bucket/output/"]).splitlines()) == 10
    assert told["ask"].strip().startswith("1: Why is the sky blue?")
    assert "obeys" in told["ctl"]
    assert told["cat"] == ""  # there are no errors
    assert "@cf/baai/bge-m3" in told["models"]
    assert {words[0] for words in LINES} == {*told, *LASTING, "local"}


def _far_from_a_tick() -> None:
    """README's schedule begins a run each quarter of an hour, whose middle is no time to be stopped at."""
    if (left := QUARTER_S - time.time() % QUARTER_S) < 180.0:
        time.sleep(left + 1.0)


def _done(reader: Reader) -> int:
    return json.loads(reader.types(["status", "r2://bucket/output/", "--json"]))["files"]["done"]
