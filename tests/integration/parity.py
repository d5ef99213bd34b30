"""Twelve inputs of every kind, and what must come of each line of them, said without any of the graph's steps."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import zstandard

from llmdo.local.ai.catalogue import ECHO_MODELS, LocalModel
from llmdo.local.ai.echo import vector
from llmdo.storage.output.intervals import Intervals
from llmdo.transforms.elements import Blank, FileVersion, Line, TooLong
from tests.integration.cloud import MODEL, prompts
from tests.plain_reading import BOM, plain_reading

LONGEST = 4096  # --max-line-bytes
OTHER, EMBED = "@cf/google/gemma-4-26b-a4b-it", "@cf/echo/embed"
# --model-for: key's pattern → model
RULES = {"input/other/*": OTHER, "input/embed*": EMBED}
OPTIONS = (
    *("--model", MODEL, "--max-line-bytes", str(LONGEST), "--range-bytes", "40000"),
    *(word for pattern, model in RULES.items() for word in ("--model-for", f"{pattern}={model}")),
)
# Lines that get no answer: class, code and status of the error.
WRONG: dict[bytes, tuple[str, int | None, int | None]] = {
    b"{broken": ("BadLine", None, None),
    b"[1, 2]": ("BadLine", None, None),
    b'"a text"': ("BadLine", None, None),
    b'{"id": 4}': ("BadLine", None, None),
    b'{"id": 5, "prompt": 5}': ("BadLine", None, None),
    b'{"id": 6, "prompt": " "}': ("BadLine", None, None),
    b'{"id": 7, "prompt": "\xff\xfe"}': ("BadLine", None, None),
    b'{"id": 8, "prompt": "x", "model": "@cf/none/such", "more": 1}': ("ModelNotFound", 5007, 400),
}


def _lines(*documents: Any) -> bytes:
    return b"".join(json.dumps(document, ensure_ascii=False).encode() + b"\n" for document in documents)


def _texts(count: int) -> list[str]:
    """Of the same length, so that each has the same part in what a call with several of them has used."""
    return [f"text {i:03}" for i in range(count)]


@dataclass(frozen=True, slots=True)
class Input:
    """One file: its ``content`` as the lines stand in it, and its ``body`` as it is stored."""

    content: bytes
    body: bytes


def _plain(content: bytes) -> Input:
    return Input(content, content)


def _gzip(*members: bytes) -> Input:
    return Input(b"".join(members), b"".join(gzip.compress(member, mtime=0) for member in members))


def _zstd(*frames: bytes) -> Input:
    return Input(b"".join(frames), b"".join(zstandard.compress(frame) for frame in frames))


# One row an input; names are keys below input/.
INPUTS = {
    "small.jsonl": _plain(
        _lines(
            {"id": 1, "prompt": "first"},
            {"custom_id": "two", "prompt": "zweite Zeile: äöü 日本 🙂", "tag": ["kept", {"as": "it is"}]},
            {"prompt": "of another model", "model": OTHER},
            {"id": "four", "prompt": "  spaces  kept "},
        )
    ),
    "unfinished.jsonl": _plain(_lines(*({"id": i, "prompt": f"line {i}"} for i in range(3)))[:-1]),
    "windows.jsonl": _plain(BOM + b'\r\n{"prompt": "after a blank line"}\r\n \t\r\n\r\n{"prompt": "last"}\r\n\r\n \n'),
    "empty.jsonl": _plain(b""),
    "other/one.jsonl": _plain(b'{"prompt": "only"}'),
    "packed.jsonl.gz": _gzip(prompts(150, "packed"), b"\n\n", prompts(70, "second member"), b'{"prompt": "end"}'),
    "packed.jsonl.zst": _zstd(prompts(150, "packed"), b'{broken\n\n{"prompt": "begins in one ', b'frame"}\n'),
    "broken.jsonl": _plain(b'{"prompt": "good"}\n' + b"\n".join(WRONG) + b'\n{"prompt": "good still"}\n'),
    "long.jsonl": _plain(
        _lines({"prompt": "before"}, {"prompt": "x" * LONGEST}, {"prompt": "y" * (LONGEST - 14)}, {"prompt": "after"})
    ),
    "twice.jsonl": _plain(_lines(*[{"id": "same", "prompt": "the same line"}] * 5, {"prompt": "another"}) * 2),
    "embed.jsonl": _plain(
        _lines(*({"id": i, "text": text} for i, text in enumerate(_texts(130))), {"text": _texts(100)})
    ),
    "many.jsonl": _plain(prompts(1_000, "many")),
}
# What takes longer, answered apart.
LARGE = {"very-many.jsonl": _plain(prompts(10_000, "many"))}
_ALL = INPUTS | LARGE


def etag_of(name: str) -> str:
    """As R2 makes it."""
    return hashlib.md5(_ALL[name].body, usedforsecurity=False).hexdigest()


def plain_tiles(name: str) -> list[Line | TooLong | Blank]:
    """The lines of an input."""
    file = FileVersion("r2://llmdo", f"input/{name}", etag_of(name), len(_ALL[name].body))
    return plain_reading(file, _ALL[name].content, LONGEST)


def plain_rows(name: str) -> list[dict[str, Any]]:
    """The rows of an input's answers and errors by offset, as ``comparable`` leaves them; errors without message."""
    return [row for tile in plain_tiles(name) if (row := _plain_row(tile)) is not None]


def plain_manifest(name: str) -> dict[str, Any]:
    """What a manifest must say of an input, as ``comparable_manifest`` leaves it; without the configuration."""
    rows = plain_rows(name)
    answers = [row for row in rows if row["error"] is None]
    usages = [row["usage"] for row in answers]
    spans: dict[str, list[tuple[int, int]]] = {"answers": [], "errors": []}
    for row in rows:
        place = row["error"] or row["source"]
        spans["errors" if row["error"] else "answers"].append((place["offset"], place["offset"] + place["length"]))
    blank = sum(isinstance(tile, Blank) for tile in plain_tiles(name))
    neurons = [usage["neurons"] for usage in usages if "neurons" in usage]
    return {
        "version": 1,
        "bucket": "llmdo",
        "folder": "",
        "key": f"input/{name}",
        "etag": etag_of(name),
        "size": len(_ALL[name].body),
        "length": len(_ALL[name].content),
        "answered": len(answers),
        "failed": len(rows) - len(answers),
        "blank": blank,
        "input_tokens": sum(usage["input_tokens"] for usage in usages),
        "output_tokens": sum(usage["output_tokens"] for usage in usages),
        "cost_usd": round(math.fsum(usage["cost_usd"] or 0 for usage in usages), 12),
        "unpriced": sum(usage["cost_usd"] is None for usage in usages),
        "neurons": round(math.fsum(neurons), 12) if neurons else None,
        "lines": {kind: len(found) for kind, found in spans.items()},
        "tiles": {kind: Intervals(found).spans for kind, found in spans.items()},
    }


def comparable(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what differs from call to call: latency, attempts, and the ids and times that the service gives."""
    row = {key: value for key, value in row.items() if key not in ("latency_ms", "attempts")}
    if row["error"] is not None:
        return row | {"error": {key: value for key, value in row["error"].items() if key != "attempts"}}
    response = {key: value for key, value in row["response"].items() if key != "request_id"}
    response["body"] = {key: value for key, value in response["body"].items() if key not in ("id", "created")}
    return row | {"response": response}


def comparable_manifest(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest without run and time; of its shards, whose names and cuts differ, the lines and tiles of each kind."""
    left = {key: value for key, value in manifest.items() if key not in ("run_id", "created_at", "shards")}
    lines, tiles = {"answers": 0, "errors": 0}, {"answers": Intervals(), "errors": Intervals()}
    for shard in manifest["shards"]:
        lines[shard["kind"]] += shard["lines"]
        for span in Intervals.decode(shard["tiles"]).spans:
            tiles[shard["kind"]].add(*span)
    return left | {"lines": lines, "tiles": {kind: covered.spans for kind, covered in tiles.items()}}


def without_messages(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows as ``plain_rows`` has them."""
    for row in rows:
        error = row["error"]
        yield row if error is None else row | {"error": {k: v for k, v in error.items() if k != "message"}}


def _plain_row(tile: Line | TooLong | Blank) -> dict[str, Any] | None:
    if isinstance(tile, Blank):
        return None
    place = {"offset": tile.start, "length": tile.stop - tile.start}
    if isinstance(tile, TooLong):
        return {
            "raw": None,
            "error": {"class": "LineTooLong", "code": None, "status": None, "retryable": False} | place,
        }
    if tile.data in WRONG:
        name, code, status = WRONG[tile.data]
        error = {"class": name, "code": code, "status": status, "retryable": False, **place}
        return {**_as_given(tile.data), "error": error}
    document = json.loads(tile.data)
    by_key = [model for pattern, model in RULES.items() if tile.file.key.startswith(pattern.removesuffix("*"))]
    model = document.get("model", by_key[0] if by_key else MODEL)
    body, usage = _plain_answer(document, next(row for row in ECHO_MODELS if row.name == model))
    identity = document.get("id", document.get("custom_id", f"{tile.file.key}:{tile.start}"))
    more = {k: v for k, v in document.items() if k not in ("id", "custom_id", "model", "prompt", "text")}
    return {
        "id": identity,
        "custom_id": str(document.get("custom_id", identity)),
        "response": {"status_code": 200, "body": body},
        "error": None,
        "model": f"workers-ai/{model}",
        "usage": usage,
        "source": {"key": tile.file.key, "etag": tile.file.etag, **place},
        **({"metadata": more} if more else {}),
    }


def _as_given(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except UnicodeDecodeError:
        return {"raw_base64": base64.b64encode(data).decode()}
    except ValueError:
        return {"raw": data.decode()}
    return document if isinstance(document, dict) else {"raw": data.decode()}


def _plain_answer(document: dict[str, Any], model: LocalModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """The body and the usage."""
    if "text" in document:
        texts = document["text"] if isinstance(document["text"], list) else [document["text"]]
        vectors = [list(vector(text, model.dimensions)) for text in texts]
        data = [{"object": "embedding", "index": at, "embedding": one} for at, one in enumerate(vectors)]
        tokens = {"prompt_tokens": 0, "total_tokens": 0}  # an embedding's answer tells none
        return {"object": "list", "data": data, "model": model.name, "usage": tokens}, _usage(model, 0, 0)
    text = f"echo: {document['prompt']}"
    read, said = len(document["prompt"].split()), len(text.split())
    message = {"role": "assistant", "content": text}
    more = {"logprobs": None} if model.openai_shape else {}
    body = {
        "object": "chat.completion",
        "model": model.name,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", **more}],
        "usage": {
            "prompt_tokens": read,
            "completion_tokens": said,
            "total_tokens": read + said,
            "neurons": model.neurons(read, said),
        },
    }
    return body, _usage(model, read, said)


def _usage(model: LocalModel, read: int, said: int) -> dict[str, Any]:
    dollars = (read * model.price[0] + said * model.price[1]) / 1e6
    return {
        "input_tokens": read,
        "output_tokens": said,
        "total_tokens": read + said,
        "neurons": model.neurons(read, said),
        "cost_usd": round(dollars, 12),
    }
