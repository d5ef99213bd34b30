"""Merging: replaces error shards in a manifest by the shards of what became of their lines later."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import UTC, datetime

from llmdo.storage.errors import ObjectChanged
from llmdo.storage.objects.store import ObjectStore
from llmdo.storage.output.costs import total
from llmdo.storage.output.intervals import Intervals
from llmdo.storage.output.manifests import MANIFEST_NAME, Manifest, ManifestShard, ShardRecord, read_manifest
from llmdo.storage.output.receipts import receipt_of


class CannotMerge(Exception):
    """The new shards do not cover exactly the lines of the old ones."""


def merged(old: Manifest, replaced: Collection[str], new: Iterable[ShardRecord], run_id: str) -> Manifest:
    """The manifest with ``new`` in place of its error shards with the ``replaced`` names; other names are ignored.

    Raises CannotMerge if the tiles or the number of lines differ.
    """
    new = sorted(new, key=lambda shard: shard.first)
    out = [shard for shard in old.shards if shard.kind == "errors" and shard.name in replaced]
    if _tiles(out) != _tiles(new) or sum(s.lines for s in out) != sum(s.lines for s in new):
        raise CannotMerge("not every line that is being retried has an outcome: run llmdo retry again to resume")
    gone = {shard.name for shard in out}
    kept = [shard for shard in old.shards if shard.name not in gone]
    added = [ManifestShard(name=s.name, kind=s.kind, lines=s.lines, tiles=s.tiles) for s in new]
    shards = sorted([*kept, *added], key=lambda shard: shard.first)
    cost = total([old.cost, *(shard.cost for shard in new)])
    answered = sum(shard.lines for shard in shards if shard.kind == "answers")
    return old.model_copy(
        update={
            "run_id": run_id,
            "created_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "answered": answered,
            "failed": sum(shard.lines for shard in shards if shard.kind == "errors"),
            "input_tokens": old.input_tokens + sum(s.input_tokens for s in new),
            "output_tokens": old.output_tokens + sum(s.output_tokens for s in new),
            "cost_usd": cost.usd,
            "unpriced": cost.unpriced,
            "neurons": cost.neurons,
            "receipt": receipt_of(cost, answered),
            "shards": tuple(shards),
        }
    )


def switch(store: ObjectStore, folder: str, manifest: Manifest, etag: str) -> bool:
    """Replaces exactly this version of a file's manifest; False if it has changed by now."""
    try:
        store.put_if_match(folder + MANIFEST_NAME, manifest.model_dump_json(indent=1).encode(), etag)
    except ObjectChanged:
        # A PUT that was retried after a lost reply finds its own manifest.
        return read_manifest(store, folder) == manifest
    return True


def _tiles(shards: Iterable[ManifestShard | ShardRecord]) -> Intervals:
    try:
        return Intervals(span for shard in shards for span in Intervals.decode(shard.tiles).spans)
    except ValueError as error:
        raise CannotMerge(f"a line is in two shards: {error}") from error
