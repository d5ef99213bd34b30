"""Lists of models, kept for an hour on this machine: a list costs a request, and some take many pages.

$XDG_CACHE_HOME/llmdo/models-*.json, one file for each provider and account. When the provider cannot be asked, an older
list is better than none, and is marked as old. Lists that were not renewed for a month are removed when another one
is written. The list of a server on this machine is not kept: asking it costs nothing, and its port changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from llmdo.backends.backend import Backend
from llmdo.backends.errors import ModelError
from llmdo.backends.providers import PROVIDERS
from llmdo.backends.responses import ModelInfo, Models
from llmdo.settings.environment import MissingSettings, cache_folder
from llmdo.settings.network import is_loopback
from llmdo.settings.private import own_folder, write

FRESH_S = 3600.0  # models, prices and dates change some times a month
_OLDEST_S = 30 * 24 * 3600.0  # a list that is older is removed

_FORM = 1  # of the file; another form is ignored


@dataclass(frozen=True, slots=True)
class _Kept:
    form: int
    written_at: float
    models: tuple[ModelInfo, ...]


_KEPT = TypeAdapter(_Kept)


async def list_models(backend: Backend, now: Callable[[], float] = time.time) -> Models:
    """The provider's models: from the cache while it is fresh, else from the provider, else from an older cache.

    ``now``: Unix time in seconds. Raises ModelError where the provider fails and there is no cache, and
    MissingSettings.
    """
    path = _path(backend.name)
    kept = _read(path)
    age_s = max(0.0, now() - kept.written_at) if kept else 0.0
    if kept and age_s < FRESH_S:
        return Models(kept.models, age_s)
    try:
        models = tuple(await backend.list_models())
    except ModelError as error:
        if kept is None:
            raise
        return Models(kept.models, age_s, error.message)
    _write(path, _Kept(_FORM, now(), models))
    return Models(models)


def kept_models(provider: str) -> tuple[ModelInfo, ...]:
    """What the cache holds of a provider, however old; () where there is none. Raises MissingSettings."""
    kept = _read(_path(provider))
    return kept.models if kept else ()


def deprecation(info: ModelInfo | None, now: float) -> str | None:
    """The warning that a model's entry calls for at a time (Unix, seconds), or None."""
    if info is None or not info.deprecated:
        return None
    name = info.name.partition("/")[2]
    if info.deprecated <= datetime.fromtimestamp(now, UTC).date().isoformat():
        return f"{name} is deprecated since {info.deprecated}: name another model"
    return f"{name} will be switched off on {info.deprecated}: name another model before"


def _path(provider: str) -> Path | None:
    """None for a provider without a service, or whose service is on this machine: its list costs nothing."""
    row = PROVIDERS.get(provider)
    if row is None or row.access is None:
        return None
    access = row.access()
    url = getattr(access, "base_url", "")
    if is_loopback(url):
        return None
    # A repr shows neither a key nor a base URL, which may hold one; of a hash nothing can be read.
    place = f"{access!r} {url}"
    account = hashlib.sha256(place.encode()).hexdigest()[:16]
    with contextlib.suppress(MissingSettings):  # no home folder, no cache
        return cache_folder() / f"models-{provider}-{account}.json"
    return None


def _read(path: Path | None) -> _Kept | None:
    try:
        kept = _KEPT.validate_json(path.read_bytes()) if path else None
    except (OSError, ValidationError):
        return None
    return kept if kept and kept.form == _FORM else None


def _write(path: Path | None, kept: _Kept) -> None:
    if path is None:
        return
    with contextlib.suppress(OSError):  # without a cache the list is asked for again
        own_folder(path.parent)
        write(path, _KEPT.dump_json(kept))
        for other in path.parent.glob("models-*.json"):
            if other.stat().st_mtime < time.time() - _OLDEST_S:
                other.unlink()
