"""Hashes of local files' content, each file read once in a process while nothing changes it."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import OrderedDict

_PIECE = 1 << 20  # bytes read at once
_REMEMBERED = 1 << 16  # files
# Two changes within a tick of the kernel's clock leave a file with equal times. ns
_TICK_NS = 20_000_000

# A path, and what changes whenever anybody writes to the file: nobody can set its ctime.
_Seen = tuple[str, int, int, int, int, int]
_hashes: OrderedDict[_Seen, str] = OrderedDict()
_lock = threading.Lock()


def content_hash(path: str, status: os.stat_result | None = None) -> str:
    """32 hexadecimal digits of the SHA-256 of a file's content; ``status`` is what ``stat`` says of it now.

    Raises OSError.
    """
    seen = _seen(path, status or os.stat(path))  # noqa: PTH116 - as in llmdo.storage.objects.local
    with _lock:
        if seen in _hashes:
            _hashes.move_to_end(seen)
            return _hashes[seen]
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - likewise
        seen = _seen(path, os.fstat(file.fileno()))
        while piece := file.read(_PIECE):
            digest.update(piece)
        unchanged = seen == _seen(path, os.fstat(file.fileno()))
    found = digest.hexdigest()[:32]
    if unchanged and time.time_ns() - max(seen[-2:]) > _TICK_NS:
        with _lock:
            _hashes[seen] = found
            if len(_hashes) > _REMEMBERED:
                _hashes.popitem(last=False)
    return found


def _seen(path: str, status: os.stat_result) -> _Seen:
    return path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
