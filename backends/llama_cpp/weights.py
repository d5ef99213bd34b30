"""The embedded model's weights, loaded once for a process and freed with their last user, and threads to run them."""

from __future__ import annotations

import asyncio
import atexit
import os
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar, cast

from llmdo.backends.errors import StopRun
from llmdo.backends.llama_cpp.files import PROVIDER, library, prepare_model, weights

# Tokens a second with 1, 4 and 8 slots: 49, 63 and 68 on one thread, 42, 90 and 125 on two threads of two idle cores.
# Eight slots take about 0.5 GB.
SLOTS = 8
CONTEXT_TOKENS = 2048  # of each slot: what the model was trained for
LONGEST_GOODBYE_S = 5.0  # how long the end of the process waits for running answers to notice it

T = TypeVar("T")


class Server(Protocol):
    """The part of llama.cpp's server that is used here. Thread-safe."""

    def handle_chat_completions(self, body: dict[str, Any], callback: Callable[[dict[str, Any]], Any]) -> Any:
        """Answers in chunks; ends early when the callback returns True."""

    def handle_embeddings(self, body: dict[str, Any]) -> dict[str, Any]:
        """Embeds ``input``."""


_lock = threading.Lock()
_servers: dict[bool, Server] = {}  # embedding or not → server
_users: set[Weights] = set()
_threads: set[threading.Thread] = set()
_ending = threading.Event()


class Weights:
    """One user's hold on the process's weights."""

    def __init__(self) -> None:
        with _lock:
            _users.add(self)

    def server(self, *, embedding: bool) -> Server:
        """The server that chats, or the one that embeds; the first call loads it (0.4 s) and may fetch the weights.

        Raises StopRun with the remedy.
        """
        if embedding not in _servers:
            prepare_model()  # without the lock: opening and closing Weights must not wait for a download
        with _lock:
            if embedding not in _servers:
                _servers[embedding] = _load(embedding)
            return _servers[embedding]

    def close(self) -> None:
        """Lets go. Running calls keep their server until they end."""
        with _lock:
            _users.discard(self)
            if not _users:
                _servers.clear()


async def in_thread(work: Callable[[Callable[[], bool]], T]) -> T:
    """Runs ``work(cancelled)`` in a thread; ``cancelled()`` becomes true when the awaiting task or the process ends.

    The threads are daemons, joined for a moment at exit: those of a ThreadPoolExecutor would keep the process alive
    until the longest answer is complete.
    """
    inside: Future[T] = Future()
    inside.set_running_or_notify_cancel()  # cancelling the awaiting task must not cancel it: it gets a result anyway
    outcome = asyncio.wrap_future(inside)

    def run() -> None:
        try:
            inside.set_result(work(lambda: outcome.cancelled() or _ending.is_set()))
        except Exception as error:  # noqa: BLE001 - raised in the task that awaits
            inside.set_exception(error)
        _threads.discard(threading.current_thread())

    thread = threading.Thread(target=run, name="llmdo-llama", daemon=True)
    _threads.add(thread)
    thread.start()
    return await outcome


def _load(embedding: bool) -> Server:
    module, path = library(), weights()
    params = module.CommonParams()
    params.model.path = str(path)
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * CONTEXT_TOKENS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = _threads_to_use()
    params.verbosity = -1  # silent
    params.warmup = False
    params.cache_ram_mib = 0  # else it keeps old prompts in up to 8 GB
    params.fit_params = False
    # It also listens on a port of 127.0.0.1, which is not used here and must not be used by others.
    params.api_keys = [secrets.token_hex(16)]
    params.ui = False
    if embedding:
        params.embedding = True
        params.pooling_type = module.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        params.n_ubatch = CONTEXT_TOKENS  # a text must fit one batch
    try:
        return cast(Server, module.Server(params))
    except RuntimeError as error:
        raise StopRun(
            f"{path} could not be loaded ({error}): remove it, and install or fetch it again", provider=PROVIDER
        ) from error


def _threads_to_use() -> int:
    """Half of the cores: llama.cpp's threads spin while they wait for each other. With other work on two cores, two
    threads made 5 to 14 tokens a second, and one made 40.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // 2)


@atexit.register
def _say_goodbye() -> None:
    _ending.set()
    for thread in tuple(_threads):
        thread.join(LONGEST_GOODBYE_S)
