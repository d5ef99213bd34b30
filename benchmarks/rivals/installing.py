"""A virtual environment for each rival, in the user's cache: their requirements conflict with ours."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmdo.settings.environment import cache_folder
from llmdo.settings.private import make_folder

_INSTALLED = "installed.txt"


class CannotInstall(Exception):
    """pip could not install a rival; the message is the last of pip's output."""


def python_with(name: str, requirements: Sequence[str], variables: Mapping[str, str]) -> Path:
    """The Python of a rival's environment with exactly these requirements, made if necessary. Raises CannotInstall.

    ``variables``: for building packages that have no wheel for this machine.
    """
    folder = cache_folder() / "rivals"
    home = folder / name
    python, installed, wanted = home / "bin" / "python", home / _INSTALLED, "\n".join(requirements)
    make_folder(folder)
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another benchmark may be compiling it
        if installed.exists() and installed.read_text() == wanted:
            return python
        _call([sys.executable, "-m", "venv", "--clear", str(home)], {})
        print(f"Installing {' '.join(requirements)} into {home} …", file=sys.stderr, flush=True)
        _call([str(python), "-m", "pip", "install", "--disable-pip-version-check", *requirements], variables)
        installed.write_text(wanted)
        return python


def _call(command: Sequence[str], variables: Mapping[str, str]) -> None:
    ended = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    if ended.returncode:
        lines = [line for line in ended.stderr.splitlines() if line.strip() and not line.startswith("hint:")]
        raise CannotInstall(
            next((line for line in reversed(lines) if "rror" in line), lines[-1] if lines else "pip failed")
        )
