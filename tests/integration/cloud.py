"""What the end-to-end tests share: upload as any S3 client would, run llmdo in this process or another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext

import boto3
import httpx
from botocore.config import Config

from llmdo.pipelines.options import check_options
from llmdo.runners.inspecting.verify import verify
from llmdo.runners.running.run import run
from llmdo.runners.showing.summary import Summary
from llmdo.storage.objects.opening import open_store
from llmdo.storage.output.manifests import read_manifest
from llmdo.storage.runs.histories import is_history

OUTPUT = "r2://llmdo/output/"
MODEL = "@cf/meta/llama-3.3-70b-instruct-fp8-fast"


class Cloud:
    """The stand-in for Cloudflare, seen from outside."""

    def __init__(self, server) -> None:
        self.env = server.env
        self.s3 = boto3.client(
            "s3",
            endpoint_url=self.env["R2_ENDPOINT_URL"],
            aws_access_key_id=self.env["R2_ACCESS_KEY_ID"],
            aws_secret_access_key=self.env["R2_SECRET_ACCESS_KEY"],
            region_name="auto",
            config=Config(request_checksum_calculation="when_required"),
        )
        root = self.env["CLOUDFLARE_BASE_URL"].removesuffix("/client/v4")
        token = {"Authorization": f"Bearer {self.env['CLOUDFLARE_API_TOKEN']}"}
        self.api = httpx.Client(base_url=root, headers=token, timeout=60.0)  # httpx would give up after 5 s
        self.store = open_store("r2://llmdo")

    def upload(self, name: str, body: bytes) -> None:
        """Puts input/NAME; the event reaches the queue by itself."""
        self.s3.put_object(Bucket="llmdo", Key=f"input/{name}", Body=body)

    def fault(self, **fault) -> None:
        self.api.post("/_faults", json=fault).raise_for_status()

    def no_faults(self) -> None:
        self.api.delete("/_faults").raise_for_status()

    def stats(self) -> dict:
        return self.api.get("/_stats").raise_for_status().json()

    def backlog(self) -> int:
        account = f"/client/v4/accounts/{self.env['CLOUDFLARE_ACCOUNT_ID']}"
        queues = self.api.get(f"{account}/queues").raise_for_status().json()["result"]
        (queue,) = [q["queue_id"] for q in queues if q["queue_name"] == "llmdo-input"]
        return self.api.get(f"{account}/queues/{queue}/metrics").raise_for_status().json()["result"]["backlog_count"]

    def keys(self, prefix: str = "output/") -> list[str]:
        return [info.key for info in self.store.list(prefix)]

    def alive(self, output: str = "output/") -> list[str]:
        """What runs have in the output while they are alive, what killed ones left, and what schedules keep."""
        keys = self.keys(f"{output}_runs/")
        return [key for key in keys if not is_history(key.rpartition("/")[2])]

    def run(self, **options) -> Summary:
        """Runs in this process; by default what the queue announced, on the direct runner."""
        given = {"output": OUTPUT, "model": MODEL, "concurrency": 16, **options}
        if not given.get("input"):
            given.setdefault("queue", "llmdo-input")
        return run(check_options(**given), lambda state: nullcontext())

    def command(
        self, *arguments: str, stdout: int = subprocess.PIPE, first: str = "", **env: str
    ) -> subprocess.Popen[bytes]:
        """Runs llmdo in a process of its own; ``first``: a statement that its Python runs before."""
        code = f"{first}from llmdo.runners.cli.main import main; main({[*arguments]!r})"
        return subprocess.Popen(
            [sys.executable, *(["-c", code] if first else ["-m", "llmdo", *arguments])],
            env=os.environ | self.env | env,
            stdout=stdout,
            stderr=subprocess.PIPE,
        )

    def rows(self, name: str) -> list[dict]:
        """The rows of a file's shards, in the order of its manifest."""
        found = []
        for key in self.keys(f"output/llmdo/input/{name}/"):
            if key.endswith("/_manifest.json"):
                folder = key.removesuffix("_manifest.json")
                for shard in read_manifest(self.store, folder).shards:
                    found += [json.loads(line) for line in self.store.read(folder + shard.name)[0].splitlines()]
        return sorted(found, key=lambda row: (row.get("source") or row["error"])["offset"])

    def check(self) -> None:
        """Every line of every input in exactly one shard, every manifest true, nothing left in work."""
        result = verify(OUTPUT, ["r2://llmdo/input/"])
        assert not result.differences, result.differences
        assert result.ok
        assert self.keys("output/_open/") == []


def prompts(count: int, word: str = "prompt") -> bytes:
    """``count`` lines with ids 0, 1, …"""
    return b"".join(json.dumps({"id": i, "prompt": f"{word} {i}"}).encode() + b"\n" for i in range(count))
