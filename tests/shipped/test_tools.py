"""README's first minute: pipx and uv install llmdo from a clone, and its quick starts are typed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.integration.openai_service import serving
from tests.pages.blocks import README
from tests.pages.shells import answer, environment, rows, typed
from tests.pages.test_quick_starts import LOCAL, OPENAI, start
from tests.shipped.packages import call, copy_of_the_checkout, new_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
# What was downloaded once is taken from the user's caches.
CACHES = {"PIP_CACHE_DIR": "~/.cache/pip", "UV_CACHE_DIR": "~/.cache/uv"}
NETWORK = ("PIP_", "UV_", "SSL_CERT_FILE")


@pytest.fixture
def install(tmp_path: Path):
    """Installs llmdo for a new user by the words that README has; gives the folder of its commands, and that of uv."""

    def by(tool: str, command: str) -> tuple[Path, Path]:
        assert f"`{command}`" in " ".join(README.read_text(encoding="utf-8").split())
        tools = new_environment(tmp_path / "tools").parent
        call(tools / "python", "-m", "pip", "install", "-q", tool, cwd=tmp_path)
        checkout = copy_of_the_checkout(tmp_path / "checkout")
        home = tmp_path / "home"
        home.mkdir()
        env = {name: value for name, value in os.environ.items() if name.startswith(NETWORK)}
        env |= {name: str(Path(path).expanduser()) for name, path in CACHES.items()}
        env |= {"HOME": str(home), "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
        env |= {"PIPX_DEFAULT_PYTHON": sys.executable, "UV_PYTHON": sys.executable}
        text = f"unset XDG_CACHE_HOME XDG_STATE_HOME XDG_DATA_HOME PYTHONPATH\n{command}"
        done = typed(text, checkout, {**environment(home), **env}, seconds=900)
        assert done.returncode == 0, done.stderr
        return home / ".local" / "bin", tools

    return by


def new_users(tmp_path: Path, *folders: Path, **more: str) -> dict[str, str]:
    network = {name: value for name, value in os.environ.items() if name.startswith(NETWORK)}
    path = os.pathsep.join([*map(str, folders), "/usr/bin", "/bin"])
    return {**environment(tmp_path / "home"), **network, "PATH": path, **more}


def test_pipx_installs_it_and_the_first_quick_start_answers(install, tmp_path):
    commands, _ = install("pipx", "pipx install .")
    with serving() as service:
        text = start(OPENAI).replace("sk-…", "sk-loopback-only")
        done = typed(text, tmp_path, new_users(tmp_path, commands, OPENAI_BASE_URL=service.url))
    assert done.returncode == 0, done.stderr
    assert [answer(row)[:2] for row in rows(done.stdout)] == ["1:"]


@pytest.mark.model
def test_uv_installs_it_and_the_weights_of_the_embedded_model(install, tmp_path):
    commands, tools = install("uv", "uv tool install --reinstall '.[local]'")
    env = new_users(tmp_path, commands, tools, XDG_CACHE_HOME=str(tmp_path / "home" / ".cache"))
    done = typed(start(LOCAL), tmp_path, env)
    assert done.returncode == 0, done.stderr
    assert "fetching the weights of the embedded model" in done.stderr
    assert [len(answer(row)) > 10 for row in rows(done.stdout)] == [True]
