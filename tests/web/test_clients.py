"""Real workerd, LiveStore's own client, and three instances of ours: every message that reaches the log is answered
once, whatever is cut or killed.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from contextlib import suppress

import pytest

from llmdo.storage.livestore.frames import NewEvent
from llmdo.storage.livestore.places import StorePlace
from llmdo.storage.livestore.stores import LiveStores
from tests.integration.cloud import MODEL
from tests.signals import drain
from tests.web.world import OwnClient, Workerd, build, older_worker, until

pytestmark = [pytest.mark.slow, pytest.mark.prism, pytest.mark.timeout(1200)]
SENT, STARTED = "v1.ChatMessageSent", "v1.LLMResponseStarted"
RECEIVED, COMPLETED = "v1.LLMResponseReceived", "v1.LLMResponseCompleted"
MESSAGES, BY_CLIENT, KILLS = 200, 20, 6
INSTANCES = 3


class CuttingProxy:
    """Passes a port on, and ends all connections every half second while it ``cuts``."""

    def __init__(self, port: int) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._target, self._open, self.cuts, self.count = port, [], False, 0
        for work in (self._accept, self._cut):
            threading.Thread(target=work, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                one, _ = self._server.accept()
                try:
                    other = socket.create_connection(("127.0.0.1", self._target), 5)
                except OSError:
                    one.close()
                    continue
                other.settimeout(None)
                self._open += [one, other]
                for source, sink in ((one, other), (other, one)):
                    threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _cut(self) -> None:
        while self._server.fileno() >= 0:
            time.sleep(0.5)
            if self.cuts:
                held, self._open = self._open, []
                self.count += len(held)
                for end in held:
                    with suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)


class Reader:
    """Everything that is in the log, by our own client without any cut; it also writes as a page does."""

    def __init__(self, backend: Workerd) -> None:
        self.events = []
        place = StorePlace(backend.url, "s", json.loads(backend.payload))
        self._stores = LiveStores([place], {"s": "reader"}, {}, lambda store, event: self.events.append(event), print)

    def say(self, identity: str, conversation: str) -> None:
        args = {"id": identity, "conversationId": conversation, "message": f"text of {identity}", "role": "user"}
        at = time.strftime("%Y-%m-%dT%H:%M:%S.999Z", time.gmtime())
        event = NewEvent(SENT, {**args, "createdAt": at})
        self._stores.push("s", lambda: [] if identity in self.asked() else [event])

    def of(self, name: str) -> list[dict]:
        self._stores.take(10_000, 0.0)  # as they are read, more are asked for
        return [dict(event.args) for event in list(self.events) if event.name == name]

    def asked(self) -> set[str]:
        return {event.args["id"] for event in list(self.events) if event.name == SENT}

    def answered(self) -> Counter[str]:
        return Counter(args["responseToMessageId"] for args in self.of(RECEIVED))

    def contiguous(self) -> bool:
        return [(event.parent, event.number) for event in self.events] == [
            (at, at + 1) for at in range(len(self.events))
        ]

    def close(self) -> None:
        self._stores.close()


@pytest.fixture(params=["0.4.0", "0.4.0-dev.22"])
def backend(request, tmp_path):
    build()
    config = () if request.param == "0.4.0" else (older_worker(),)
    backend = Workerd(tmp_path / "backend", *config)
    yield backend
    backend.kill()


def start(cloud, backend, url, log, **env):
    where = ["--livestore", url, "--store", "s", "--log", str(log), "--since", "0"]
    env = {"LIVESTORE_PAYLOAD": backend.payload, **env}
    return cloud.command("chat", *where, "--model", MODEL, "--json", **env)


def end(processes):
    for process in processes:
        assert process.poll() is None, process.communicate()[1].decode()[-3000:]
        drain(process)
    for process in processes:
        out, err = process.communicate(timeout=110)
        assert process.returncode == 0, err.decode()[-3000:]
        assert b"Traceback" not in err, err.decode()[-3000:]
        yield json.loads(out)


@pytest.mark.parametrize("backend", ["0.4.0"], indirect=True)
def test_three_instances_answer_each_message_once_though_connections_are_cut_and_the_backend_is_killed(
    cloud, backend, tmp_path
):
    cloud.fault(target="ai", probability=1.0, latency_s=0.1)
    proxies = [CuttingProxy(backend.port) for _ in range(INSTANCES)]
    ours = [
        start(cloud, backend, f"ws://127.0.0.1:{proxy.port}", tmp_path / f"log{at}") for at, proxy in enumerate(proxies)
    ]
    reader, theirs, kills = Reader(backend), None, 0
    try:
        theirs = OwnClient(backend.url, backend.token, tmp_path / "client")
        for proxy in proxies:
            proxy.cuts = True
        for number in range(BY_CLIENT):
            theirs.talk("say", f"n{number}", f"c{number % 5}", f"hello {number}")
            theirs.until(lambda: f"n{number}" in reader.asked())  # noqa: B023
        for number in range(MESSAGES - BY_CLIENT):
            reader.say(f"m{number}", f"c{number % 10}")
            if number % 30 == 15:
                backend.kill()
                time.sleep(0.3)
                backend.start()
                kills += 1
            time.sleep(0.02)
        assert kills == KILLS
        until(lambda: len(reader.asked()) == MESSAGES)
        # On a busy machine hardly a push is done in half a second, so cuts end after a minute more.
        longest = time.monotonic() + 60.0
        until(lambda: set(reader.answered()) == reader.asked() or time.monotonic() > longest)
        until(lambda: all(proxy.count > 10 for proxy in proxies))  # also of one that was the last to start
        for proxy in proxies:
            proxy.cuts = False
        until(lambda: set(reader.answered()) == reader.asked())
        summaries = list(end(ours))
        assert reader.answered() == dict.fromkeys(reader.asked(), 1)
        # A backend that is killed may have told of a claim that it had not kept yet.
        assert MESSAGES <= cloud.stats()["paid"]["calls"] <= MESSAGES + INSTANCES * KILLS
        assert sum(one["answered"] for one in summaries) >= MESSAGES
        assert reader.contiguous()
        fresh = Reader(backend)  # nothing was told that the backend then did not keep
        try:
            until(lambda: len(fresh.events) >= len(reader.events))
            assert [event.args for event in fresh.events] == [event.args for event in reader.events]
        finally:
            fresh.close()
        theirs.until(lambda: theirs.answers() == dict.fromkeys(reader.asked(), 1))
    finally:
        for process in ours:
            process.kill()
        reader.close()
        for proxy in proxies:
            proxy.close()
        if theirs:
            theirs.talk.close()


def test_messages_are_answered_by_both_versions_of_the_backend_across_a_kill(cloud, backend, tmp_path):
    ours = [start(cloud, backend, backend.url, tmp_path / f"log{at}") for at in range(2)]
    reader = Reader(backend)
    try:
        for number in range(10):
            reader.say(f"m{number}", f"c{number % 3}")
            if number == 5:
                until(lambda: len(reader.answered()) > 2)
                backend.kill()
                backend.start()
        until(lambda: reader.answered() == {f"m{number}": 1 for number in range(10)})
        list(end(ours))
        assert len(reader.of(COMPLETED)) == 10 and reader.contiguous()
        # A backend that is killed may have told of a claim that it had not kept yet.
        assert 10 <= cloud.stats()["paid"]["calls"] <= 10 + len(ours)
    finally:
        for process in ours:
            process.kill()
        reader.close()


def test_a_payload_that_the_backend_refuses_ends_the_run_with_one_sentence(cloud, backend, tmp_path):
    wrong = json.dumps({"authToken": "an outdated secret"})
    out, err = start(cloud, backend, backend.url, tmp_path / "log", LIVESTORE_PAYLOAD=wrong).communicate(timeout=110)
    assert json.loads(out)["exit_code"] == 1
    assert "LIVESTORE_PAYLOAD" in json.loads(out)["problem"] and "HTTP 400" in json.loads(out)["problem"]
    assert b"an outdated secret" not in out + err and b"Traceback" not in err
