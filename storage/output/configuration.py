"""One output, one configuration: the first run records what determines the answers, and the others must agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic_core import from_json, to_json

from llmdo.storage.errors import AlreadyExists, ObjectChanged, ObjectNotFound
from llmdo.storage.objects.store import ObjectStore
from llmdo.storage.output import jobs, manifests
from llmdo.storage.runs import runs

NAME = "_configuration.json"


def agree(
    store: ObjectStore,
    prefix: str,
    fingerprint: str,
    decisive: Mapping[str, Any],
    is_alive: Callable[[str], bool],
) -> Mapping[str, Any] | None:
    """Writes this run's configuration, or compares it with the one that is there.

    One without answers and without a run that ``is_alive`` was a mistake, and is replaced. A run writes its heartbeat,
    with its configuration, before it calls this: of two that start together, one is refused. Returns None if they
    agree, else the other configuration: model, parameters and so on. Raises StorageError, and ValueError for an object
    that is not a configuration.
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
                    raise ValueError(f"{store.url}/{key} is not a configuration: remove it, or use another --output")
                if there["fingerprint"] == fingerprint:
                    return None
                if _in_use(store, prefix, there["fingerprint"], is_alive):
                    return there
                etag = store.put_if_match(key, ours, etag)
                # A run that agreed with the old one a moment ago has its heartbeat by now.
                if _in_use(store, prefix, there["fingerprint"], is_alive):
                    store.put_if_match(key, body, etag)
                    return there
            except (ObjectChanged, ObjectNotFound):
                continue
        return None


def read(store: ObjectStore, prefix: str) -> Mapping[str, Any] | None:
    """What determines the answers of an output, and its fingerprint; None if no run has started.

    Raises StorageError, and ValueError for an object that is not a configuration.
    """
    try:
        body, _ = store.read(prefix + NAME)
    except ObjectNotFound:
        return None
    there = _read(body)
    if there is None:
        raise ValueError(f"{store.url}/{prefix}{NAME} does not say how this output was answered")
    return there


def _read(body: bytes) -> dict[str, Any] | None:
    try:
        there = from_json(body)
    except ValueError:
        return None
    return there if isinstance(there, dict) and isinstance(there.get("fingerprint"), str) else None


def _in_use(store: ObjectStore, prefix: str, fingerprint: str, is_alive: Callable[[str], bool]) -> bool:
    """Whether a configuration has answers, or a living run."""
    # A heartbeat names the run's configuration, before there is a job record; one of an earlier version does not.
    if any(beat.configuration == fingerprint and is_alive(beat.run_id) for beat in runs.heartbeats(store, prefix)):
        return True
    working = any(
        isinstance(record, jobs.JobRecord) and record.configuration == fingerprint and is_alive(record.run_id)
        for record in jobs.Jobs(store, prefix).sweep()
    )
    return working or any(manifests.counts_as_output(info.key) for info in store.list(prefix))
