"""A real browser without a window, driven by its own protocol (chromedevtools.github.io/devtools-protocol)."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_WAIT_S = 60.0


def find_browser() -> str:
    """The browser's program. Where there is none its tests are skipped; not so where all must run."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        missing = "there is no Chromium: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)
    return found


class Tab:
    """A page in a browser.

    Attributes:
        complaints: what the console, the page's errors and the browser's log said.
        asked: the URLs of all requests.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._number = socket, 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loaded = asyncio.Event()
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                self._waiting.pop(said["id"]).set_result(said)
            elif said["method"] in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                self.complaints.append(json.dumps(said["params"]))
            elif said["method"] == "Network.requestWillBeSent":
                self.asked.append(said["params"]["request"]["url"])
            elif said["method"] == "Page.loadEventFired":
                self._loaded.set()

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        """A command's result."""
        self._number += 1
        self._waiting[self._number] = reply = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        said = await asyncio.wait_for(reply, _WAIT_S)
        assert "result" in said, said
        return said["result"]

    async def open(self, path: Path) -> None:
        """Loads a file of this machine."""
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            await self.send(f"{domain}.enable")
        await self.send("Page.navigate", url=path.as_uri())
        await asyncio.wait_for(self._loaded.wait(), _WAIT_S)

    async def value(self, expression: str) -> Any:
        """What an expression is in the page."""
        found = await self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def complains(self, *words: str) -> None:
        """Waits until all of these were among the complaints."""
        end = time.monotonic() + _WAIT_S
        while not all(any(word in one for one in self.complaints) for word in words):
            assert time.monotonic() < end, self.complaints
            await asyncio.sleep(0.05)

    async def press(self, key: str, text: str = "") -> None:
        """A key, as the keyboard sends it."""
        codes = {"Tab": 9, "Enter": 13, "ArrowDown": 40, " ": 32}
        code = {"windowsVirtualKeyCode": codes[key]} if key in codes else {}
        how = {"key": key, "code": key, **code}
        await self.send("Input.dispatchKeyEvent", type="keyDown", **how, **({"text": text} if text else {}))
        await self.send("Input.dispatchKeyEvent", type="keyUp", **how)

    async def write(self, text: str) -> None:
        """Keys, one by one."""
        for key in text:
            await self.press(key, key)

    async def prefer(self, scheme: str, media: str = "") -> None:
        """Light or dark; ``media`` may be ``print``."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.send("Emulation.setEmulatedMedia", media=media, features=features)

    async def picture(self, path: Path) -> None:
        """Writes the whole page as a PNG."""
        shot = await self.send("Page.captureScreenshot", captureBeyondViewport=True)
        await asyncio.to_thread(path.write_bytes, base64.b64decode(shot["data"]))


@asynccontextmanager
async def browsing(folder: Path) -> AsyncIterator[Tab]:
    """A new browser with an empty page."""
    command = [find_browser(), "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    command += [f"--user-data-dir={folder / 'profile'}", "--no-first-run", "--window-size=1200,900", "about:blank"]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL, start_new_session=True
    )
    try:
        port = await asyncio.to_thread(_port, folder / "profile" / "DevToolsActivePort")
        async with aiohttp.ClientSession(trust_env=False) as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as reply:
                page = next(one for one in await reply.json() if one["type"] == "page")
            async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                yield Tab(socket)
    finally:
        os.killpg(process.pid, 9)
        await process.wait()


def _port(file: Path) -> int:
    for _ in range(int(_WAIT_S / 0.05)):
        if file.exists() and (lines := file.read_text().split("\n")) and len(lines) > 1:
            return int(lines[0])
        time.sleep(0.05)
    raise AssertionError("the browser does not start")
