"""A page to chat with, on this machine: a browser, LiveStore's sync backend, and llmdo. Run it with `make chat-page`.

Builds the page (web/) and the sync worker (worker/) with npm, starts workerd, serves the page, and answers with the
embedded model. What was said is kept in data/chat-page/. Ctrl-C ends everything.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from demo import LLMDO, say

from llmdo.runners.servers import has_ended, start_tied, stop_tied
from llmdo.settings.private import own_folder

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "worker" / "config.capnp"
DATA = ROOT / "data" / "chat-page"
OLDEST_NODE = 20, 19  # Vite's
STORE = "demo"
MODEL = "local/smollm2-135m-instruct"
START_S = 60.0
# Below the ports that systems give to outgoing connections: while a backend is away, none of them can take its port.
FREE_PORTS = range(20_000, 32_000)
# A call that takes longer is made again at the next start. Seconds.
DRAIN_S = 5
END_S = 30.0


class Missing(Exception):
    """Something that the page needs is not there; the text says what, and how to get it."""


class Page(SimpleHTTPRequestHandler):
    """Serves the built page, and where its backend is, to this machine's browsers."""

    def __init__(self, config: bytes, *args: object, **kwargs: object) -> None:
        self._config = config
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """One file, or config.json, which has the backend's token: no other site's page may read it by a name."""
        if self.headers.get("Host", "").partition(":")[0] not in {"localhost", "127.0.0.1"}:
            self.send_error(403)
            return
        if self.path.partition("?")[0] != "/config.json":
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(self._config)))
        self.end_headers()
        self.wfile.write(self._config)

    def end_headers(self) -> None:
        """A page that was built again is not taken from the browser's cache."""
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: the terminal is for the chat."""


class PageServer(ThreadingHTTPServer):
    """At a port of 127.0.0.1."""

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing: a browser that goes away while it loads is not an error."""


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8790, help="where the page is; 0 takes a free one")
    parser.add_argument("--sync-port", type=int, default=8791, help="where the sync backend is; 0 takes a free one")
    parser.add_argument("--model", default=MODEL, help="PROVIDER/MODEL that answers")
    parser.add_argument("--data", type=Path, default=DATA, help="where everything is kept")
    given = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, signal.default_int_handler)
    try:
        with alone(given.data):
            port, sync_port = (chosen or free_port() for chosen in (given.port, given.sync_port))
            check_port(port, "--port")
            check_port(sync_port, "--sync-port")
            build()
            return run(port, sync_port, given.model, given.data)
    except Missing as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


@contextmanager
def alone(data: Path) -> Iterator[None]:
    """Only one process may write the stores. Raises Missing."""
    own_folder(data)
    with (data / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Missing(
                f"another chat page uses {data}: stop it, or name another folder, as in make chat-page ARGS='--data …'"
            ) from None
        yield


def check_port(port: int, option: str) -> None:
    """Raises Missing if a port cannot be had."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise Missing(
                f"port {port} cannot be used ({why}): name another one, as in make chat-page ARGS='{option} 8800'"
            ) from None


def free_port() -> int:
    """A port that is free at this moment."""
    for port in random.sample(FREE_PORTS, 100):
        with suppress(Missing):
            check_port(port, "--port")
            return port
    raise Missing("no port of this machine is free")


def build() -> None:
    """Installs and builds what is not built yet. Raises Missing."""
    npm = find_npm()
    for folder, built in ((ROOT / "worker", "dist/index.js"), (ROOT / "web", "dist/index.html")):
        install(npm, folder)
        if not is_newer(folder / built, [*folder.glob("*.js*"), *folder.glob("src/*"), *folder.glob("*.html")]):
            call_npm(npm, folder, "run", "build")


def install(npm: str, folder: Path) -> None:
    """The packages of a folder's lock, once. Raises Missing."""
    # npm writes the hidden one when all of them are there.
    if not is_newer(folder / "node_modules/.package-lock.json", [*folder.glob("package*.json")]):
        call_npm(npm, folder, "ci", "--no-audit", "--no-fund", "--loglevel=error")


def find_npm() -> str:
    """Where npm is, with a Node.js that is new enough. Raises Missing."""
    node, npm = shutil.which("node"), shutil.which("npm")
    oldest = ".".join(map(str, OLDEST_NODE))
    if not node or not npm:
        raise Missing(f"the page is built with npm, which is not here: install Node.js {oldest} or later")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    found = re.match(r"v(\d+)\.(\d+)", version)
    if not found or tuple(map(int, found.groups())) < OLDEST_NODE:
        raise Missing(f"the page needs Node.js {oldest} or later, and {node} is {version or 'something else'}")
    return npm


def is_newer(built: Path, sources: list[Path]) -> bool:
    """Whether a file was built from these as they are now."""
    return built.exists() and built.stat().st_mtime >= max(path.stat().st_mtime for path in sources)


def call_npm(npm: str, folder: Path, *words: str) -> None:
    """Runs npm in a folder, and shows what it does. Raises Missing."""
    say(f"npm {' '.join(words)}   (in {folder.name}/, once, up to a minute)")
    done = subprocess.run([npm, *words], cwd=folder, check=False)
    if done.returncode:
        raise Missing(f"npm {words[0]} failed in {folder} with exit code {done.returncode}: see its output above")


def run(port: int, sync_port: int, model: str, data: Path) -> int:
    """Starts all three parts, and waits for the first that ends, or Ctrl-C. Raises Missing."""
    token, url = kept_token(data), f"ws://localhost:{sync_port}"
    with serve_page(port, url, token) as page:
        backend = start_backend(sync_port, token, data)
        try:
            chat = start_chat(url, token, model, data)
            try:
                print(f"\nThe page: http://localhost:{port}/   (Ctrl-C ends everything)\n", flush=True)
                while chat.poll() is None and backend.poll() is None:
                    time.sleep(0.2)
                if backend.poll() is not None:
                    raise Missing(f"workerd has ended; {data / 'workerd.log'} says why")
                return chat.returncode or 1
            finally:
                page.shutdown()
                end_chat(chat)
        finally:
            stop_tied(backend)


def kept_token(data: Path) -> str:
    """What page and llmdo show to the backend; the same at each start, so that a page that is still open goes on."""
    path = data / "token"
    if not path.exists():
        path.touch(0o600)
        path.write_text(secrets.token_urlsafe(24))
    return path.read_text()


def serve_page(port: int, url: str, token: str) -> PageServer:
    """Serves the built page until it is closed. Raises Missing."""
    config = json.dumps({"syncUrl": url, "store": STORE, "payload": {"authToken": token}}).encode()
    try:
        server = PageServer(("127.0.0.1", port), partial(Page, config, directory=str(ROOT / "web" / "dist")))
    except OSError as error:
        raise Missing(f"port {port} cannot be used ({error.strerror})") from None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def start_backend(port: int, token: str, data: Path, config: Path = CONFIG) -> subprocess.Popen[bytes]:
    """Starts workerd with the sync worker, whose stores are in ``data``. Raises Missing."""
    (data / "store").mkdir(parents=True, exist_ok=True)
    places = [f"--directory-path=disk={data / 'store'}", f"--socket-addr=http=127.0.0.1:{port}"]
    log = data / "workerd.log"
    with log.open("wb") as file:
        process = start_tied([find_workerd(), "serve", config, *places], file, file, {"AUTH_TOKEN": token})
    try:
        wait_for_port(port, process, log)
    except BaseException:
        stop_tied(process)
        raise
    return process


def find_workerd() -> Path:
    """The program itself: npm's link may be a script that starts it. Raises Missing."""
    found = next((ROOT / "worker/node_modules/@cloudflare").glob("workerd-*/bin/workerd"), None)
    if found is None:
        raise Missing("npm has no workerd for this machine: it runs on Linux and macOS, on x64 and arm64")
    return found


def start_chat(url: str, token: str, model: str, data: Path) -> subprocess.Popen[bytes]:
    """Starts ``llmdo chat``, which ends when this process does."""
    # --since 0: what is written before it is ready is answered, too.
    words = ["chat", "--livestore", url, "--store", STORE, "--log", str(data / "log"), "--since", "0"]
    words += ["--model", model, "--system", f"@{ROOT / 'examples/chat/system.txt'}", "--max-tokens", "200"]
    words += ["--drain-seconds", str(DRAIN_S)]
    say(f"llmdo {' '.join(words)}")
    return start_tied([*LLMDO, *words], 1, None, {"LIVESTORE_PAYLOAD": json.dumps({"authToken": token})})


def end_chat(chat: subprocess.Popen[bytes]) -> None:
    """Lets it drain; its messages stay in the log."""
    if chat.poll() is None:
        chat.terminate()
        has_ended(chat, END_S)
    stop_tied(chat)


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Returns once a server accepts connections. Raises Missing if it ends, or does not."""
    end = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end:
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise Missing(f"workerd does not serve at port {port}: {log.read_text(errors='replace')[-500:] or log}")


if __name__ == "__main__":
    sys.exit(main())
