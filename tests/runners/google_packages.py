"""Google's packages for tests of Dataflow jobs, from a cache, as a folder for PYTHONPATH."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp

import pytest

from llmdo.settings.environment import cache_folder

REQUIREMENTS = Path(__file__).parent / "dataflow_requirements.txt"


def google_packages() -> Path:
    """The folder; fetched the first time (22 MB). Raises CalledProcessError, with what pip says, where it cannot be."""
    pins = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    root = cache_folder() / "google-packages"
    folder = root / f"{pins}-py{sys.version_info[0]}.{sys.version_info[1]}"
    root.mkdir(parents=True, exist_ok=True)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            fresh = Path(mkdtemp(dir=root, prefix="making-"))
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(fresh)]
            subprocess.run([*pip, "-r", str(REQUIREMENTS)], check=True, capture_output=True, text=True)
            fresh.rename(folder)
    return folder


def google_packages_or_skip() -> Path:
    """The folder; without a registry the test is skipped, but in CI it fails."""
    try:
        return google_packages()
    except subprocess.CalledProcessError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"Google's packages cannot be had: {error.stderr}")
