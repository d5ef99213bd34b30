"""One output, one configuration: what decides its answers is written down by the first run and kept by the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic_core import from_json, to_json

from storage import jobs, manifests
from storage.errors import AlreadyExists, ObjectChanged, ObjectNotFound
from storage.objects import ObjectStore

NAME = "_configuration.json"


def agree(
    store: ObjectStore,
    prefix: str,
    fingerprint: str,
    decisive: Mapping[str, Any],
    is_alive: Callable[[str], bool],
) -> Mapping[str, Any] | None:
    """Writes this run's configuration, or compares it with the one that is there.

    One that has no answers yet, and no run that ``is_alive``, was a mistake, and is replaced. Returns None when they
    agree, else what the other one says: model, parameters and so on. Raises StorageError, and ValueError for an object
    that is no configuration.
    """
    key, ours = prefix + NAME, to_json({"fingerprint": fingerprint, **decisive}, indent=1)
    while True:
        try:
            store.put_if_absent(key, ours)
        except AlreadyExists:
            try:
                body, etag = store.read(key)
                there = _read(body)
                if there is None:
                    raise ValueError(f"{store.url}/{key} is no configuration: remove it, or use another --output")
                if there["fingerprint"] == fingerprint:
                    return None
                if _in_use(store, prefix, there["fingerprint"], is_alive):
                    return there
                store.put_if_match(key, ours, etag)
            except (ObjectChanged, ObjectNotFound):
                continue
        return None


def _read(body: bytes) -> dict[str, Any] | None:
    try:
        there = from_json(body)
    except ValueError:
        return None
    return there if isinstance(there, dict) and isinstance(there.get("fingerprint"), str) else None


def _in_use(store: ObjectStore, prefix: str, fingerprint: str, is_alive: Callable[[str], bool]) -> bool:
    """Whether a configuration has answers, or a living run that works by it."""
    working = any(
        isinstance(record, jobs.JobRecord) and record.configuration == fingerprint and is_alive(record.run_id)
        for record in jobs.Jobs(store, prefix).sweep()
    )
    return working or any(manifests.counts_as_output(info.key) for info in store.list(prefix))
