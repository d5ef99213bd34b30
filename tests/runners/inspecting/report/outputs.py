"""Outputs to report on: a file's lines, and the rows that answer them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from llmdo.storage.objects.content import content_hash
from llmdo.storage.objects.opening import open_store
from llmdo.storage.output.costs import Cost
from llmdo.storage.output.manifests import Manifest, ManifestShard, file_folder, put_shard, write_manifest


def answer(content, *, model="openai/m", tokens=(10, 5), usd=0.25, latency_ms=100, attempts=1, **more):
    """A row without its place; ``content`` may be a whole body."""
    choices = [{"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}]
    body = content if isinstance(content, dict) else {"object": "chat.completion", "choices": choices}
    return {
        "response": {"status_code": 200, "request_id": "q", "body": body},
        "error": None,
        "model": model,
        "usage": {"input_tokens": tokens[0], "output_tokens": tokens[1], "cost_usd": usd},
        "attempts": attempts,
        "latency_ms": latency_ms,
        **more,
    }


def failure(kind="BadLine", code=None, message="no", *, retryable=False, **line):
    """An error line without its place."""
    about = {"class": kind, "code": code, "status": None, "message": message, "retryable": retryable, "attempts": 1}
    return {**line, "error": about}


@dataclass
class Output:
    """An output folder, and the folder with its sources."""

    root: Path
    configuration: dict = field(default_factory=dict)

    def __post_init__(self):
        self.store = open_store(str(self.root / "out"))
        (self.root / "in").mkdir()
        self.store.put("_configuration.json", json.dumps({"fingerprint": "c", **self.configuration}).encode())

    def file(self, key, outcomes, *, shard=100, pack=bytes):
        """A file that is done: each outcome is (line, row)."""
        path, at, body, rows = self.root / "in" / key, 0, b"", {"answers": [], "errors": []}
        lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line, _ in outcomes]
        path.write_bytes(pack(b"".join(line + b"\n" for line in lines)))
        etag = content_hash(str(path))
        for number, (line, (_, row)) in enumerate(zip(lines, outcomes, strict=True)):
            length = len(line) + 1
            if row["error"] is None:
                place = {"key": key, "etag": etag, "offset": at, "length": length}
                rows["answers"].append((at, at + length, {"id": f"{key}-{number}", **row, "source": place}))
            else:
                about = {**row["error"], "offset": at, "length": length}
                rows["errors"].append((at, at + length, {**row, "error": about}))
            at, body = at + length, body + line
        folder = file_folder("", "", key, etag)
        shards = [
            put_shard(
                *(self.store, folder, kind, [(a, b, json.dumps(row).encode()) for a, b, row in some[i : i + shard]]),
                configuration="c",
            )
            for kind, some in rows.items()
            for i in range(0, len(some), shard)
        ]
        self._settle(key, etag, path, at, folder, [row for *_, row in rows["answers"]], len(rows["errors"]), shards)

    def _settle(self, key, etag, path, length, folder, answers, failed, shards):
        used = [row["usage"] for row in answers if not row.get("shared")]
        costs = [one["cost_usd"] for one in used]
        cost = Cost(sum(one for one in costs if one is not None), costs.count(None))
        manifest = Manifest(
            **{"bucket": "", "folder": str(path.parent), "key": key, "etag": etag, "size": path.stat().st_size},
            **{"length": length, "configuration": "c", "run_id": "r", "created_at": "2026-11-30T10:00:00Z"},
            **{"answered": len(answers), "failed": failed, "blank": 0, "cost_usd": cost.usd, "unpriced": cost.unpriced},
            input_tokens=sum(one["input_tokens"] for one in used),
            output_tokens=sum(one["output_tokens"] for one in used),
            shards=tuple(
                ManifestShard(name=one.name, kind=one.kind, lines=one.lines, tiles=one.tiles)
                for one in sorted(shards, key=lambda one: one.first)
            ),
        )
        write_manifest(self.store, folder, manifest)

    @property
    def place(self):
        return str(self.root / "out")
