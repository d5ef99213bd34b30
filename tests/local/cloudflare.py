"""A local Cloudflare in a thread of the test's process, with its faults and counts."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from llmdo.local.ai import catalogue
from llmdo.local.app import ECHO, check_model
from llmdo.local.server import serve_until
from llmdo.local.service_errors import FaultTarget
from tests.local.ai.tasks import MODELS

catalogue.ECHO_MODELS = MODELS  # for all servers in this process


@dataclass(frozen=True, slots=True)
class Running:
    """A server in this process, from ``running``."""

    url: str
    env: dict[str, str] = field(repr=False)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.url.rpartition(":")[2])

    def fault(self, target: FaultTarget, **effect: Any) -> None:
        """Adds a fault: see ``faults.Fault``."""
        self._control("POST", "/_faults", {"target": target, **effect})

    def clear_faults(self) -> None:
        """Removes all faults."""
        self._control("DELETE", "/_faults")

    def stats(self) -> dict[str, Any]:
        """Calls and paid answers: see ``stats.Stats``."""
        return self._control("GET", "/_stats")

    def reset_stats(self) -> None:
        """Resets all counts."""
        self._control("DELETE", "/_stats")

    def _control(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.env['CLOUDFLARE_API_TOKEN']}"}
        response = httpx.request(method, self.url + path, json=body, headers=headers, trust_env=False, timeout=60)
        answer: dict[str, Any] = response.json()
        if response.is_error:
            raise ValueError(answer)
        return answer


@contextmanager
def running(data: Path, model: str = ECHO, port: int = 0, clock: Callable[[], float] = time.time) -> Iterator[Running]:
    """Serves from a thread of this process. ``clock`` returns the queues' seconds since 1970.

    Raises CannotServe.
    """
    check_model(model)
    started: Future[Running] = Future()
    ended: Future[None] = Future()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    def announce(url: str, variables: Mapping[str, str]) -> None:
        started.set_result(Running(url, dict(variables)))

    def run() -> None:
        try:
            with closing(loop):
                loop.run_until_complete(serve_until(stop, data, port, model, clock, announce))
            ended.set_result(None)
        except BaseException as error:  # noqa: BLE001  raised in the caller's thread
            ended.set_exception(error)

    threading.Thread(target=run, name="local-cloudflare", daemon=True).start()
    wait((started, ended), return_when=FIRST_COMPLETED)  # type: ignore[misc]  # of two kinds
    if ended.done():
        ended.result()
    try:
        yield started.result()
    finally:
        loop.call_soon_threadsafe(stop.set)
        ended.result()
