"""The command that adds a package works with what llmdo was installed by."""

from __future__ import annotations

import re
import shlex
import sys
from importlib import metadata
from pathlib import Path

import pytest

from llmdo.settings import installing
from llmdo.settings.installing import install_command
from tests.shipped.packages import call, new_environment

OURS = """\
[build-system]
requires = ["setuptools>=64"]
build-backend = "setuptools.build_meta"
[project]
name = "llm.do"
version = "0.1"
optional-dependencies.ours = ["idna>=3,<99"]
[tool.setuptools]
packages = []
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "llm-do"
    folder.mkdir()
    monkeypatch.setattr(sys, "prefix", str(folder))
    monkeypatch.setattr(sys, "executable", f"{folder}/bin/python")
    return folder


def required(extra: str) -> list[str]:
    """What our extra requires, by pyproject.toml."""
    return [line.partition(";")[0] for line in metadata.requires("llm.do") or () if f'extra == "{extra}"' in line]


def test_pip_is_that_of_the_same_python(home: Path) -> None:
    (package,) = required("metrics")
    assert shlex.split(install_command("[metrics]")) == [f"{home}/bin/python", "-m", "pip", "install", package]
    assert install_command("w==1", alone=True) == f"{home}/bin/python -m pip install --no-deps w==1"


def test_an_environment_without_pip_has_uv(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert install_command("tzdata") == f"uv pip install --python {home}/bin/python tzdata"


def test_pipx_injects(home: Path) -> None:
    (home / "pipx_metadata.json").write_text("{}")
    assert shlex.split(install_command("[otel]")) == ["pipx", "inject", "--force", "llm-do", *required("otel")]
    assert install_command("w==1", alone=True) == "pipx inject --force --pip-args=--no-deps llm-do w==1"


@pytest.mark.parametrize(
    ("requirements", "command"),
    [
        ('{ name = "llm-do", directory = "/a b/llmdo" }', "--with tzdata '/a b/llmdo'"),
        ('{ name = "llm-do", extras = ["local", "gcp"], directory = "/d" }', "--with tzdata '/d[local,gcp]'"),
        ('{ name = "llm-do", editable = "/d" }', "--with tzdata --editable /d"),
        ('{ name = "llm-do" }, { name = "six", specifier = ">=1" }', "--with 'six>=1' --with tzdata llm-do"),
        ('{ name = "llm-do", git = "https://h/r?rev=m" }', "--with tzdata 'llm-do @ git+https://h/r?rev=m'"),
        ('{ name = "llm-do", url = "https://h/l.whl" }', "--with tzdata 'llm-do @ https://h/l.whl'"),
    ],
)
def test_uv_keeps_what_the_tool_was_installed_with(home: Path, requirements: str, command: str) -> None:
    receipt = home / "uv-receipt.toml"
    receipt.write_text(f"[tool]\nrequirements = [{requirements}]\n")
    assert install_command("tzdata") == f"uv tool install {command}"
    receipt.write_text(f'[tool]\nrequirements = [{requirements}]\npython = "3.12"\n')
    assert install_command("tzdata") == f"uv tool install --python 3.12 {command}"


@pytest.mark.parametrize("text", ["", "torn = ", '[tool]\nrequirements = [{ name = "llm-do", oci = "x" }]'])
def test_a_receipt_of_another_kind_leaves_a_command_that_works(home: Path, text: str) -> None:
    (home / "uv-receipt.toml").write_text(text)
    assert install_command("tzdata") == f"uv pip install --python {home}/bin/python tzdata"
    assert install_command("w==1", alone=True) == f"uv pip install --python {home}/bin/python --no-deps w==1"


def test_our_packages_come_with_our_bounds_and_unknown_extras_with_our_name(home: Path) -> None:
    assert re.fullmatch(r"xllamacpp[<>=.,\d]+", shlex.split(install_command("xllamacpp"))[-1])
    assert shlex.split(install_command("[none]"))[-1] == "llm.do[none]"


@pytest.mark.slow
@pytest.mark.parametrize(
    "install",
    ["uv tool install --with six ./ours", "uv tool install -e ./ours", "pipx install ./ours", "uv venv", "venv"],
)
def test_the_command_that_is_told_adds_the_packages(
    install: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = new_environment(tmp_path / "tools").parent
    call(tools / "python", "-m", "pip", "install", "-q", "uv", "pipx", cwd=tmp_path)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    for name in ("UV_TOOL_DIR", "UV_TOOL_BIN_DIR", "PIPX_HOME", "PIPX_BIN_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "pyproject.toml").write_text(OURS + '[project.scripts]\nours = "idna:main"\n')
    if install == "venv":
        python = new_environment(tmp_path / "venv")
        call(python, "-m", "pip", "install", "-q", "./ours", cwd=tmp_path)
    elif install == "uv venv":
        call(tools / "uv", "venv", "-q", "--python", sys.executable, "venv", cwd=tmp_path)
        python = tmp_path / "venv" / "bin" / "python"
        call(tools / "uv", "pip", "install", "-q", "--python", python, "./ours", cwd=tmp_path)
    else:
        call(*install.split(), "--python", sys.executable, cwd=tmp_path)
        python = next(tmp_path.glob("*/**/llm-do/bin/python"))
    kept = "import six" if "six" in install else ""

    module = Path(installing.__file__).read_text(encoding="utf-8")
    for wanted in ("'[ours]'", "'tomli-w==1.2.0', alone=True"):
        command = call(python, "-c", f"{module}\nprint(install_command({wanted}))", cwd=tmp_path)
        call("sh", "-c", command, cwd=tmp_path)
    call(python, "-c", f"import idna, tomli_w\n{kept}", cwd=tmp_path)
