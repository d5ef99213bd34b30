from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmdo.local.server import serve
from llmdo.local.settings import CannotServe
from llmdo.settings.environment import cloudflare_account, default_queue, r2_access
from tests.local.clients import queue_id, rest, s3_client
from tests.local.cloudflare import Running, running


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    code = "import sys, pathlib, llmdo.local.server as s; s.serve(pathlib.Path(sys.argv[1]), 0, 'echo')"
    started = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    yield started
    started.kill()
    started.wait()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def sourced(env_file: Path) -> dict[str, str]:
    out = subprocess.run(
        ["bash", "-c", f"set -e; source '{env_file}'; env -0"],
        capture_output=True,
        check=True,
        env={"PATH": "/usr/bin:/bin"},
    ).stdout
    return dict(entry.split("=", 1) for entry in out.decode().split("\0") if entry)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_a_signal_and_env_leads_to_it(
    process: subprocess.Popen[str], tmp_path: Path, number: signal.Signals
) -> None:
    env_file = tmp_path / "env"
    wait_for(env_file)
    assert stat.S_IMODE(env_file.stat().st_mode) == 0o600
    env = sourced(env_file)
    account = f"{env['CLOUDFLARE_BASE_URL']}/accounts/{env['CLOUDFLARE_ACCOUNT_ID']}"
    headers = {"Authorization": f"Bearer {env['CLOUDFLARE_API_TOKEN']}"}
    assert httpx.get(f"{account}/queues", headers=headers, trust_env=False, timeout=60).status_code == 200
    process.send_signal(number)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0
    assert out.splitlines() == [
        f"Cloudflare on this machine at {env['R2_ENDPOINT_URL']} (model: echo); in another shell: source {env_file}",
        f"OpenAI on this machine at {env['LOCAL_OPENAI_BASE_URL']} (any key)",
        f"Anthropic on this machine at {env['LOCAL_ANTHROPIC_BASE_URL']} (any key)",
    ]
    assert err == ""
    assert not env_file.exists()


def test_a_call_in_flight_does_not_hold_up_the_end(process: subprocess.Popen[str], tmp_path: Path) -> None:
    wait_for(tmp_path / "env")
    env = sourced(tmp_path / "env")
    server = Running(env["R2_ENDPOINT_URL"], env)
    server.fault("ai", latency_s=60)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{env['OPENAI_BASE_URL']}/chat/completions",
            json={"model": "@cf/echo/chat", "messages": [{"role": "user", "content": "a"}]},
            headers={"Authorization": f"Bearer {env['OPENAI_API_KEY']}"},
            timeout=0.5,
            trust_env=False,
        )
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=240)
    assert process.returncode == 0


def test_the_environment_is_what_the_clients_read(cloudflare: Running) -> None:
    assert cloudflare_account().account_id == cloudflare.env["CLOUDFLARE_ACCOUNT_ID"]
    assert cloudflare_account().base_url == f"{cloudflare.url}/client/v4"
    assert r2_access().endpoint == cloudflare.url
    assert default_queue() == "llmdo-input"
    assert os.environ["OPENAI_BASE_URL"].startswith(cloudflare.url)
    assert len(cloudflare.env["CLOUDFLARE_ACCOUNT_ID"]) == 32


def test_no_secret_shows_in_the_repr(cloudflare: Running) -> None:
    assert cloudflare.env["CLOUDFLARE_API_TOKEN"] not in repr(cloudflare)
    assert cloudflare.env["R2_SECRET_ACCESS_KEY"] not in repr(cloudflare)


def shown(s3: Any) -> list[tuple[Any, ...]]:
    contents = s3.list_objects_v2(Bucket="llmdo")["Contents"]
    return [(entry["Key"], entry["ETag"], entry["Size"], entry["LastModified"]) for entry in contents]


def test_credentials_messages_and_objects_outlive_a_restart(tmp_path: Path) -> None:
    with running(tmp_path) as before:
        queue, s3 = queue_id(before), s3_client(before)
        rest(before, "POST", f"/queues/{queue}/messages", {"body": 1})
        etag = s3.put_object(Bucket="llmdo", Key="ä b", Body=b"1", Metadata={"m": "1"}, ContentType="text/x")["ETag"]
        s3.put_object(Bucket="llmdo", Key="gone", Body=b"2")
        s3.delete_object(Bucket="llmdo", Key="gone")
        s3.copy_object(Bucket="second", Key="copy", CopySource={"Bucket": "llmdo", "Key": "ä b"})
        s3.create_bucket(Bucket="third")
        s3.delete_bucket(Bucket="third")
        listed = shown(s3)
    with running(tmp_path, port=before.port) as after:
        assert after.env == before.env
        assert rest(after, "GET", f"/queues/{queue}/metrics").json()["result"]["backlog_count"] == 1
        s3 = s3_client(after)
        assert [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]] == ["llmdo", "second"]
        assert shown(s3) == listed
        got = s3.get_object(Bucket="llmdo", Key="ä b", IfMatch=etag)
        assert (got["Body"].read(), got["Metadata"], got["ContentType"]) == (b"1", {"m": "1"}, "text/x")
        assert s3.get_object(Bucket="second", Key="copy")["Body"].read() == b"1"


def test_it_listens_on_this_machine_only(cloudflare: Running) -> None:
    with socket.socket() as other, pytest.raises(OSError, match=r"refused|unreachable|timed out"):
        other.settimeout(5)
        other.connect(("127.0.0.2", cloudflare.port))


def test_a_taken_port_and_an_unknown_model_are_said(cloudflare: Running, tmp_path: Path) -> None:
    with pytest.raises(CannotServe, match=f"port {cloudflare.port} on 127.0.0.1 is not free"):
        serve(tmp_path, cloudflare.port, "echo")
    with (
        pytest.raises(CannotServe, match=r"--model local/nothing is not known here: choose local/smollm2"),
        running(tmp_path, "local/nothing"),
    ):
        pass


def test_broken_credentials_are_said_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "credentials.json").write_text("{")
    with pytest.raises(CannotServe, match=r"credentials\.json cannot be used"), running(tmp_path):
        pass
    assert (tmp_path / "credentials.json").read_text() == "{"
