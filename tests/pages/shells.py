"""Runs what stands on a page in a shell of its own, as a reader would: nothing of this machine's settings is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# What a shell needs, and what this machine reaches its package index by.
_KEPT = ("PATH", "LANG", "TMPDIR", "LLMDO_PRISM", "XDG_CACHE_HOME")
_LONGEST_S = 240.0


def environment(home: Path, **more: str) -> dict[str, str]:
    """That of a new user of this machine, with llmdo on the PATH."""
    home.mkdir(parents=True, exist_ok=True)
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.pop('PATH', os.defpath)}"
    return kept | {"PATH": path, "HOME": str(home), "XDG_STATE_HOME": str(home / "state")} | more


def typed(
    text: str, folder: Path, env: dict[str, str], seconds: float = _LONGEST_S
) -> subprocess.CompletedProcess[str]:
    """Types it into a shell that ends with the first command that fails."""
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def rows(text: str) -> list[dict[str, Any]]:
    """The rows among what was printed."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def answer(row: dict[str, Any]) -> str:
    """A row's text."""
    text: str = row["response"]["body"]["choices"][0]["message"]["content"]
    return text
