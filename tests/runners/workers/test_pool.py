"""The pool of workers that a Flink TaskManager asks for Python processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc, endpoints_pb2

from llmdo.runners.listening import _descendants, can_look, listening, shown
from tests.fakes.ports import free_port

COMMAND = [sys.executable, "-m", "llmdo.runners.workers.pool"]
needs_proc = pytest.mark.skipif(not can_look(), reason="this system has no /proc")


@contextmanager
def pool(port: int) -> Iterator[subprocess.Popen[str]]:
    # A PATH without Python.
    process = subprocess.Popen(
        [*COMMAND, f"--service_port={port}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PATH": "/nowhere"},
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == f"workers are started by 127.0.0.1:{port}\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@needs_proc
def test_it_listens_on_loopback_only() -> None:
    port = free_port()
    with pool(port) as process:
        assert [shown(endpoint) for endpoint in listening(process.pid)] == [f"127.0.0.1:{port}"]


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_starts_workers_by_this_python_and_they_end_with_it(number: signal.Signals) -> None:
    port = free_port()
    # A runner that never answers: the worker stays.
    with socket.create_server(("127.0.0.1", 0)) as runner, pool(port) as process:
        control = endpoints_pb2.ApiServiceDescriptor(url=f"127.0.0.1:{runner.getsockname()[1]}")
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(channel)
            request = beam_fn_api_pb2.StartWorkerRequest(worker_id="1", control_endpoint=control)
            reply = stub.StartWorker(request, timeout=60, wait_for_ready=True)
        assert reply.error == ""
        (worker,) = _descendants(process.pid)
        process.send_signal(number)
        assert process.wait(60) == 0
        end = time.monotonic() + 60
        while Path(f"/proc/{worker}").exists():
            assert time.monotonic() < end
            time.sleep(0.05)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run([*COMMAND, f"--service_port={port}"], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"port {port} is taken: give another --service_port\n" in done.stderr
    assert "Traceback" not in done.stderr
