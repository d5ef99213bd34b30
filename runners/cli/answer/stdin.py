"""``llmdo run -``: what is piped in becomes a file, named by its content, so that a stopped run can resume."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from llmdo.pipelines.usage import UsageError
from llmdo.settings.environment import state_folder
from llmdo.settings.private import make_folder
from llmdo.storage.errors import InvalidLocation
from llmdo.storage.objects.store import locate
from llmdo.storage.output.manifests import FormatName
from llmdo.transforms.files.listing import STDIN_FOLDER
from llmdo.transforms.formats import FORMATS

STDIN_NAME = "stdin"
# What compressed data begins with, and the ending of its file's name.
_PACKED = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
# Likewise for a format that has such bytes.
_MAGIC: dict[bytes, FormatName] = {b"PAR1": "parquet"}
_PIECE = 1 << 20  # bytes read at once


def with_stdin(
    files: Sequence[str],
    output: str,
    source: BinaryIO | None = None,
    *,
    keep: bool = True,
    form: FormatName | None = None,
) -> list[str]:
    """The files, with the path of what standard input holds in the place of each ``-``.

    It is kept in ``OUTPUT/_stdin/<hash of the content>/``, or for an output in R2 in the user's state folder, for this
    user alone; without ``keep`` in a temporary folder. Its name ends as ``form`` does.
    Raises UsageError and MissingSettings.
    """
    if "-" not in files:
        return list(files)
    source = sys.stdin.buffer if source is None else source
    if source.isatty():
        raise UsageError(["- reads standard input, which is a terminal here: pipe a file into it, or name the file"])
    try:
        spool = _spool(source, _folder(output) if keep else Path(tempfile.mkdtemp(prefix="llmdo-stdin-")), form)
    except OSError as error:
        raise UsageError([f"-: standard input cannot be kept: {error.strerror or error}; write it to a file"]) from None
    return [str(spool) if name == "-" else name for name in files]


def _folder(output: str) -> Path:
    try:
        where = locate(output)
    except InvalidLocation as error:
        raise UsageError([str(error)]) from None
    return state_folder() / STDIN_FOLDER if where.bucket else Path(where.store_url) / STDIN_FOLDER


def _spool(source: BinaryIO, folder: Path, form: FormatName | None) -> Path:
    make_folder(folder)
    digest, ending = hashlib.sha256(), FORMATS[form or "jsonl"].endings[0]
    handle, draft = tempfile.mkstemp(prefix=".draft-", dir=folder)  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            while piece := source.read(_PIECE):
                if not file.tell():
                    told: list[FormatName] = [name for magic, name in _MAGIC.items() if piece.startswith(magic)]
                    packed = next((ending for magic, ending in _PACKED.items() if piece.startswith(magic)), "")
                    ending = FORMATS[form or (told or ["jsonl"])[0]].endings[0] + packed
                digest.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        spool = folder / digest.hexdigest()[:32] / (STDIN_NAME + ending)
        make_folder(spool.parent)
        Path(draft).replace(spool)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
    return spool
