"""Imports Beam without the optional packages that a run on this machine does not use: they take 40 % of its import."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType
from typing import cast

# Beam imports each of these if it can: clients of Google Cloud, S3 and MongoDB, Parquet and data frames, which do not
# work without Parquet's package where it is installed.
OPTIONAL = ("apache_beam.io.gcp", "boto3", "bson", "pandas", "pyarrow", "pymongo")
# Beam always imports this, and uses it only to download what it stages: it is executed when it is first used.
LATER = "httplib2"
# Runners whose pipelines stay on this machine. Dataflow's need Google's clients; for Flink a user may name places in
# any of Beam's file systems.
LOCAL_RUNNERS = frozenset({"direct", "prism"})


def import_beam(runner: str) -> None:
    """Imports Beam for a runner; for one on this machine as if OPTIONAL were not installed, and with LATER unexecuted.

    OPTIONAL can be imported as ever afterwards, but Beam's own use of them is off in this process: it is for a
    command's process, before its threads start. Does nothing where Beam is imported already.
    """
    if runner not in LOCAL_RUNNERS or "apache_beam" in sys.modules:
        return
    hidden = [name for name in OPTIONAL if name not in sys.modules]
    modules = cast(dict[str, object], sys.modules)
    # It would warn that MongoDB's package is absent.
    logging.getLogger("apache_beam.io.mongodbio").setLevel(logging.ERROR)
    modules.update(dict.fromkeys(hidden))  # None makes an import raise ModuleNotFoundError
    later = _Later()
    sys.meta_path.insert(0, later)
    try:
        import_module("apache_beam")
    finally:
        sys.meta_path.remove(later)
        for name in hidden:
            del modules[name]


class _Later(PathFinder):
    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = super().find_spec(name, path, target) if name == LATER else None
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec
