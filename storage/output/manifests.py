"""Shards and manifests in the output: their names, the tiles that a shard covers, and when a file is done."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer
from pydantic_core import from_json

from llmdo.storage.errors import AlreadyExists, ObjectNotFound
from llmdo.storage.field_problems import first_problem
from llmdo.storage.objects.store import ObjectInfo, ObjectStore
from llmdo.storage.output.costs import NOTHING, Cost, total, unknown
from llmdo.storage.output.intervals import Intervals
from llmdo.storage.output.receipts import FileReceipt, lanes_text, read_lanes, row_lanes

MANIFEST_NAME = "_manifest.json"
MAX_KEY_BYTES = 1024  # R2: developers.cloudflare.com/r2/platform/limits
MAX_LOCAL_NAME_BYTES = 255  # ext4, APFS, NTFS
MAX_METADATA_BYTES = 8192  # R2: same page
ShardKind = Literal["answers", "errors"]
# What a source may be, and what its positions count.
FormatName = Literal["jsonl", "csv", "tsv", "json", "parquet"]
Unit = Literal["byte", "row"]
_PREFIXES: dict[ShardKind, str] = {"answers": "shard", "errors": "errors"}
_SHARD_NAME = re.compile(r"(shard|errors)-\d{12,}-[0-9a-f]{16}\.jsonl")


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """One object of answers or errors, and the bytes of the source that it covers.

    Attributes:
        name: the last part of its key.
        tiles: delta-coded ranges of the source (``Intervals.encode``).
        lines: how many lines it holds.
        cost: of its answers; unknown for shards of versions that did not record costs.
    """

    name: str
    kind: ShardKind
    tiles: str
    lines: int
    input_tokens: int = 0
    output_tokens: int = 0
    cost: Cost = NOTHING

    @property
    def first(self) -> int:
        """Offset of its first line, in bytes."""
        return int(self.name.split("-")[1])


class ManifestShard(BaseModel):
    """One shard as a manifest lists it."""

    model_config = ConfigDict(frozen=True)

    name: str
    kind: ShardKind
    lines: int
    tiles: str

    @property
    def first(self) -> int:
        """Offset of its first line, in bytes."""
        return int(self.name.split("-")[1])


class Manifest(BaseModel):
    """Says that a file is done. Its shards hold every line of the source exactly once.

    ``size`` is in bytes as stored; ``length`` counts the positions of its ``format``, uncompressed bytes or rows,
    as ``unit`` says; a JSONL file's manifest names neither. ``created_at`` is ISO 8601 in UTC; shards are in the order
    of their first line. ``folder`` is where a local file was, "" for R2's. ``cost_usd``, ``unpriced`` and ``neurons``
    are those of ``Cost``; manifests of versions that did not record costs have none of them. ``receipt`` is there where
    not all was paid at list price from the start.
    """

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    bucket: str
    folder: str = ""
    key: str
    etag: str
    size: int
    length: int
    format: FormatName = "jsonl"
    unit: Unit = "byte"
    configuration: str
    run_id: str
    created_at: str
    answered: int
    failed: int
    blank: int
    input_tokens: int
    output_tokens: int
    cost_usd: float | None = None
    unpriced: int | None = None
    neurons: float | None = None
    receipt: FileReceipt | None = None
    shards: tuple[ManifestShard, ...]

    @model_serializer(mode="wrap")
    def _written(self, as_it_is: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what all files had before there were formats and lanes."""
        usual = {"format": "jsonl", "unit": "byte", "receipt": None}
        return {name: value for name, value in as_it_is(self).items() if name not in usual or value != usual[name]}

    @property
    def cost(self) -> Cost:
        """What its answers cost."""
        if self.unpriced is None:
            return unknown(self.answered)
        return Cost(self.cost_usd, self.unpriced, self.neurons, self.receipt.lane_costs if self.receipt else ())


def file_folder(prefix: str, bucket: str, key: str, etag: str, *, hashed: bool = False) -> str:
    """Where a file version's shards go: ``PREFIX/<bucket>/<key>/<etag>/``.

    The key's SHA-256 replaces a key that R2 or a local disk could not hold there, because it is too long or a part of
    it is too long or not a file name, and one that is to be ``hashed``. Both stores have the same rule, so that an
    output can be moved from one to the other.
    """
    longest = f"{_PREFIXES['errors']}-{0:015d}-{'0' * 16}.jsonl"
    folder = "/".join(part for part in (prefix.strip("/"), bucket, key, etag) if part)
    names = key.split("/")
    usable = all(name not in {"", ".", ".."} and len(name.encode()) <= MAX_LOCAL_NAME_BYTES for name in names)
    if hashed or not usable or "\0" in key or len(f"{folder}/{longest}".encode()) > MAX_KEY_BYTES:
        key = hashlib.sha256(key.encode()).hexdigest()
    return "/".join(part for part in (prefix.strip("/"), bucket, key, etag) if part) + "/"


def shard_name(kind: ShardKind, first: int, body: bytes) -> str:
    """``shard-<first offset>-<hash>.jsonl``, or ``errors-…`` for lines without an answer."""
    return f"{_PREFIXES[kind]}-{first:012d}-{hashlib.sha256(body).hexdigest()[:16]}.jsonl"


def is_shard_name(name: str) -> bool:
    """Whether ``shard_name`` makes names like this one."""
    return _SHARD_NAME.fullmatch(name) is not None


def counts_as_output(key: str) -> bool:
    """Whether an object is a shard or a manifest, by its name: not a job record, a heartbeat or a ledger."""
    name = key.rpartition("/")[2]
    return name == MANIFEST_NAME or name.startswith(tuple(f"{prefix}-" for prefix in _PREFIXES.values()))


def put_shard(
    store: ObjectStore,
    folder: str,
    kind: ShardKind,
    rows: Iterable[tuple[int, int, bytes]],
    *,
    configuration: str,
    input_tokens: int = 0,
    output_tokens: int = 0,
    cost: Cost | None = None,
) -> ShardRecord:
    """Writes rows (start, stop, JSON line), sorted by offset, as one object; a repeated call writes the same one."""
    ordered = sorted(rows)
    cost = cost or unknown(len(ordered) if kind == "answers" else 0)
    tiles = Intervals((start, stop) for start, stop, _ in ordered).encode()
    body = b"".join(row + b"\n" for _, _, row in ordered)
    name = shard_name(kind, ordered[0][0], body)
    shard = ShardRecord(name, kind, tiles, len(ordered), input_tokens, output_tokens, cost)
    metadata = {
        "tiles": tiles,
        "lines": str(shard.lines),
        "input-tokens": str(input_tokens),
        "output-tokens": str(output_tokens),
        "configuration": configuration,
        **_cost_metadata(cost),
    }
    if sum(len("x-amz-meta-" + name) + len(value) for name, value in metadata.items()) > MAX_METADATA_BYTES:
        del metadata["tiles"]  # read_shard takes them from the rows then
    store.put(folder + shard.name, body, metadata)
    return shard


def read_shard(store: ObjectStore, info: ObjectInfo) -> ShardRecord | None:
    """What a shard holds, by its metadata or else by its rows; None for a torn or foreign object."""
    name = info.key.rpartition("/")[2]
    prefix, _, rest = name.partition("-")
    kinds: dict[str, ShardKind] = {value: key for key, value in _PREFIXES.items()}
    offset = rest.partition("-")[0]
    if prefix not in kinds or not name.endswith(".jsonl") or not offset.isdigit():
        return None
    kind = kinds[prefix]
    try:
        metadata = store.stat(info.key).metadata if store.keeps_metadata else {}
        if "tiles" in metadata:
            Intervals.decode(metadata["tiles"])
            return ShardRecord(
                name,
                kind,
                metadata["tiles"],
                int(metadata["lines"]),
                int(metadata["input-tokens"]),
                int(metadata["output-tokens"]),
                _cost_of(metadata, kind, int(metadata["lines"])),
            )
        body, _ = store.read(info.key)
        lines = [from_json(line) for line in body.splitlines()]
        rows = [_tile(line["source" if kind == "answers" else "error"]) for line in lines]
        answers = lines if kind == "answers" else []
        usage = [used for line in answers if (used := paid_usage(line)) is not None]
        record = ShardRecord(
            name,
            kind,
            Intervals((start, stop) for start, stop in rows).encode(),
            len(rows),
            sum(int(u.get("input_tokens") or 0) for u in usage),
            sum(int(u.get("output_tokens") or 0) for u in usage),
            total(map(_line_cost, answers)),
        )
    except (ObjectNotFound, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if name == shard_name(kind, rows[0][0] if rows else 0, body) else None


def paid_usage(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The usage that an answer's row counts for; None if another row counts it (``shared``)."""
    return None if row.get("shared") else row.get("usage") or {}


def _cost_metadata(cost: Cost) -> dict[str, str]:
    known = {"cost-usd": cost.usd, "neurons": cost.neurons}
    said = {"unpriced": str(cost.unpriced)} | {k: repr(v) for k, v in known.items() if v is not None}
    return said | ({"lanes": lanes_text(cost.lanes)} if cost.lanes else {})


def _cost_of(metadata: Mapping[str, str], kind: ShardKind, lines: int) -> Cost:
    if "unpriced" not in metadata:  # from before costs were written
        return unknown(lines if kind == "answers" else 0)
    usd, neurons = (float(metadata[name]) if name in metadata else None for name in ("cost-usd", "neurons"))
    return Cost(usd, int(metadata["unpriced"]), neurons, read_lanes(metadata.get("lanes", "[]")))


def _line_cost(row: Mapping[str, Any]) -> Cost:
    usage = paid_usage(row)
    if usage is None:
        return Cost(lanes=row_lanes(row, {}))
    usd, neurons = usage.get("cost_usd"), usage.get("neurons")
    return Cost(usd, int(usd is None), neurons, row_lanes(row, usage))


def _tile(place: Mapping[str, Any]) -> tuple[int, int]:
    start = int(place["offset"])
    return start, start + int(place["length"])


def counted_shards(store: ObjectStore, shards: Iterable[ObjectInfo]) -> tuple[list[ShardRecord], list[str]]:
    """Those of a folder's shards that may count, by first line: they are readable and do not overlap.

    Of two that overlap, answers win over errors, then the one that begins first. The second list has the names of the
    others: torn or foreign objects with a shard's name, and those that overlap.
    """
    found, left = [], []
    for info in shards:
        shard = read_shard(store, info)
        if shard is None:
            left.append(info.key.rpartition("/")[2])
        else:
            found.append(shard)
    covered, kept = Intervals(), []
    for shard in sorted(found, key=lambda shard: (shard.kind, shard.first, shard.name)):
        spans = Intervals.decode(shard.tiles).spans
        if any(covered.overlaps(*span) for span in spans):
            left.append(shard.name)
            continue
        for span in spans:
            covered.add(*span)
        kept.append(shard)
    return sorted(kept, key=lambda shard: shard.first), left


def manifest_folders(store: ObjectStore, prefix: str) -> Iterator[str]:
    """The folder of each manifest below an output, with '/' at its end."""
    for info in store.list(prefix):
        folder, _, name = info.key.rpartition("/")
        if name == MANIFEST_NAME:
            yield folder + "/"


def read_manifest(store: ObjectStore, folder: str) -> Manifest | None:
    """The manifest of a file's folder, or None. Raises ValueError for one that cannot be read."""
    found = read_manifest_version(store, folder)
    return None if found is None else found[0]


def read_manifest_version(store: ObjectStore, folder: str) -> tuple[Manifest, str] | None:
    """Like ``read_manifest``, with the manifest's etag."""
    try:
        body, etag = store.read(folder + MANIFEST_NAME)
    except ObjectNotFound:
        return None
    try:
        return Manifest.model_validate_json(body), etag
    except ValidationError as error:
        where = f"{store.url}/{folder}{MANIFEST_NAME}"
        raise ValueError(f"{where} is not a manifest that this version can read: {first_problem(error)}") from error


def write_manifest(store: ObjectStore, folder: str, manifest: Manifest) -> Manifest:
    """Writes the manifest unless there is one; returns the one that counts, which may be another run's."""
    try:
        store.put_if_absent(folder + MANIFEST_NAME, manifest.model_dump_json(indent=1).encode())
    except AlreadyExists:
        winner = read_manifest(store, folder)
        if winner is not None:
            return winner
        raise
    return manifest
