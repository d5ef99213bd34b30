"""The product as it is installed: built from a copy of the checkout, into virtual environments of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("backends", "local", "pipelines", "runners", "storage", "transforms")
_FILES = ("setup.py", "pyproject.toml", "requirements.txt", "MANIFEST.in", "LICENSE")


def copy_of_the_checkout(place: Path) -> Path:
    """Setuptools writes into the folder that it builds from, so it gets another one."""
    place.mkdir()
    for name in (*ROOMS, "llmdo"):
        shutil.copytree(ROOT / name, place / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "docs", place / "docs")
    for name in (*_FILES, *(page.name for page in ROOT.glob("*.md"))):
        shutil.copy(ROOT / name, place / name)
    return place


def files_of_the_product() -> set[str]:
    """The names of all files that an installation must have."""
    places = {room: ROOT / room for room in ROOMS} | {"": ROOT / "llmdo"}
    found = set()
    for name, folder in places.items():
        for path in folder.rglob("*"):
            inside = path.relative_to(folder)
            if path.is_file() and "__pycache__" not in inside.parts and (name or inside.parts[0] not in ROOMS):
                found.add(str(Path("llmdo", name, inside)))
    return found


def call(*command: str | Path, cwd: Path, timeout: float = 600, **env: str) -> str:
    """What a command writes to standard output; fails with all that it wrote."""
    done = subprocess.run(
        command, cwd=cwd, env={**_environment(), **env}, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def new_environment(place: Path, python: str = sys.executable) -> Path:
    """A virtual environment with nothing in it; gives its python."""
    call(python, "-m", "venv", place, cwd=place.parent)
    return place / "bin" / "python"


def _environment() -> dict[str, str]:
    import os

    return {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
