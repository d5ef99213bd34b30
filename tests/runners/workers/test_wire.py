"""The socket between a run and its workers: in order, however large, and never waiting for each other."""

from __future__ import annotations

import pickle
import socket
import struct
import threading
import time
from multiprocessing.connection import Connection

import pytest

from llmdo.runners.workers.wire import Begun, Channel, Leave

LARGE = "x" * (10 << 20)


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        for size in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, size, 64 << 10)
    return ours, theirs


def test_messages_come_in_their_order_and_a_closed_end_is_noticed(ends):
    one, other = (Channel(end.detach()) for end in ends)
    for number in range(1_000):
        one.send(Begun(number))
    assert [other.receive() for _ in range(1_000)] == [Begun(number) for number in range(1_000)]
    one.close()
    with pytest.raises(EOFError):
        other.receive()
    other.send(Leave("nobody hears it"))
    other.close()


def test_both_sides_send_more_than_a_socket_holds_and_none_waits_for_the_other(ends):
    one, other = (Channel(end.detach()) for end in ends)
    got = []

    def hear(channel):
        got.extend(channel.receive() for _ in range(3))

    for channel in (one, other):
        for _ in range(3):
            channel.send(Leave(LARGE))  # before anybody receives
    threads = [threading.Thread(target=hear, args=(channel,), daemon=True) for channel in (one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert got == [Leave(LARGE)] * 6


def test_a_message_waited_for_has_left_this_process(ends, monkeypatch):
    one, other = (Channel(end.detach()) for end in ends)
    send = Connection.send

    def slow_send(connection, message):
        time.sleep(0.2)
        send(connection, message)

    monkeypatch.setattr(Connection, "send", slow_send)
    one.send(Begun(1))
    one.send_and_wait(Begun(2))
    assert [other._connection.poll(0) and other.receive() for _ in range(2)] == [Begun(1), Begun(2)]
    other.close()
    one.send_and_wait(Begun(3))  # nobody hears it, and nobody waits
    one.close()


def test_half_a_message_is_the_end(ends):
    ours, theirs = ends
    message = pickle.dumps(Leave("never whole"))
    ours.sendall(struct.pack("!i", len(message)) + message[:-3])
    ours.close()
    with pytest.raises(EOFError):
        Channel(theirs.detach()).receive()


@pytest.mark.parametrize("body", [b"", b"no pickle", b"cllmdo.no_such_module\nX\n.", b"\x80\x05."])
def test_rubbish_is_the_end(ends, body):
    ours, theirs = ends
    ours.sendall(struct.pack("!i", len(body)) + body)
    with pytest.raises(EOFError):
        Channel(theirs.detach()).receive()
