"""The command that adds packages to the Python that llmdo runs in, by what llmdo was installed with."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

_OURS = "llm.do"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def install_command(*wanted: str, alone: bool = False) -> str:
    """A command to paste, which installs packages where this process would find them.

    After ``pipx install`` and ``uv tool install`` there is no pip on PATH that would do that. What had been added to
    llmdo before stays.

    Args:
        wanted: packages, or extras of ours as in ``[otel]``. Packages that we require have our bounds.
        alone: without the requirements of the packages.
    """
    packages = [one for name in wanted for one in _requirements(name)]
    home, python = Path(sys.prefix), shlex.quote(sys.executable)
    if (home / "pipx_metadata.json").exists():
        only = ["--pip-args=--no-deps"] if alone else []
        return shlex.join(["pipx", "inject", "--force", *only, home.name, *packages])
    receipt = home / "uv-receipt.toml"
    if receipt.exists() and not alone and (tool := _with_uv(receipt, packages)):
        return shlex.join(tool)
    only = ["--no-deps"] if alone else []
    if receipt.exists() or importlib.util.find_spec("pip") is None:
        return f"uv pip install --python {python} {shlex.join([*only, *packages])}"
    return f"{python} -m pip install {shlex.join([*only, *packages])}"


def _requirements(wanted: str) -> Iterator[str]:
    """What an extra requires, or a package with the bounds that we have for it."""
    try:
        ours = [line.partition(";") for line in metadata.requires(_OURS) or ()]
    except metadata.PackageNotFoundError:
        ours = []
    extra = wanted.strip("[]") if wanted.startswith("[") else ""
    found = False
    for spec, _, marker in ours:
        name = _NAME.match(spec)
        of_extra = re.search(rf"extra\s*==\s*['\"]{re.escape(extra)}['\"]", marker) if extra else None
        if of_extra or (name is not None and name[0] == wanted):
            found = True
            yield spec.strip()
            if not extra:
                return
    if not found:
        yield f"{_OURS}{wanted}" if extra else wanted


def _with_uv(receipt: Path, packages: Sequence[str]) -> list[str] | None:
    """Installs the tool as it is, with more; None if it cannot be seen how it is."""
    try:
        tool: dict[str, Any] = tomllib.loads(receipt.read_text(encoding="utf-8"))["tool"]
        main, *others = tool["requirements"]
        editable = ["--editable"] if "editable" in main else []
        python = ["--python", str(tool["python"])] if "python" in tool else []
        kept = [word for other in others for word in ("--with", _spec(other))]
        added = [word for package in packages for word in ("--with", package)]
        return ["uv", "tool", "install", *python, *kept, *added, *editable, _spec(main)]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _spec(requirement: dict[str, Any]) -> str:
    """A requirement of a receipt, as uv's command line takes it. Raises KeyError for one of an unknown kind."""
    extras = requirement.get("extras") or []
    name = requirement["name"] + (f"[{','.join(extras)}]" if extras else "")
    known = requirement.keys() - {"name", "extras", "specifier"}
    if not known:
        return name + requirement.get("specifier", "")
    (kind,) = known
    if kind in ("directory", "editable", "path"):
        return requirement[kind] + name.removeprefix(requirement["name"])
    if kind in ("git", "url"):
        return f"{name} @ {'git+' if kind == 'git' else ''}{requirement[kind]}"
    raise KeyError(kind)
