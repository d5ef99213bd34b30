"""Hashes of local files' content; a process reads a file once for as long as it does not change."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import OrderedDict

_PIECE = 1 << 20  # bytes read at once
_REMEMBERED = 1 << 16  # files
_TICK_NS = 20_000_000  # two changes within a tick of the kernel's clock leave a file with equal times

# A path with everything in its stat that a write changes; a ctime cannot be set.
_State = tuple[str, int, int, int, int, int]
_hashes: OrderedDict[_State, str] = OrderedDict()
_lock = threading.Lock()


def content_hash(path: str, status: os.stat_result | None = None) -> str:
    """32 hexadecimal digits of the SHA-256 of a file's content; ``status`` is its current ``stat``, if known.

    Raises OSError.
    """
    state = _state(path, status or os.stat(path))  # noqa: PTH116 - as in llmdo.storage.objects.local
    with _lock:
        if state in _hashes:
            _hashes.move_to_end(state)
            return _hashes[state]
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - likewise
        state = _state(path, os.fstat(file.fileno()))
        while piece := file.read(_PIECE):
            digest.update(piece)
        unchanged = state == _state(path, os.fstat(file.fileno()))
    content = digest.hexdigest()[:32]
    if unchanged and time.time_ns() - max(state[-2:]) > _TICK_NS:
        with _lock:
            _hashes[state] = content
            if len(_hashes) > _REMEMBERED:
                _hashes.popitem(last=False)
    return content


def _state(path: str, status: os.stat_result) -> _State:
    return path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
