"""Where a graph runs on Prism, Beam's runner for continuous work on one machine: starts it, submits to it, stops it.

``python -m runners.prism`` finds, fetches or builds the binary and prints its path.
"""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.portability.portable_runner import JobServiceHandle, PortableRunner
from apache_beam.runners.worker.sdk_worker import SdkWorker

from runners.prism_binary import PrismError, find_prism
from runners.run_options import RunOptions

_log = logging.getLogger(__name__)

# Prism answers within 0.1 s on an idle machine. Seconds.
_START_TIMEOUT = 30.0
# How long to wait for a connection to a Prism that has said it serves. Seconds.
_CONNECT_TIMEOUT = 20
# From SIGTERM to SIGKILL. Seconds.
_STOP_TIMEOUT = 5.0
# Becomes Prism, and leaves a watcher behind: when this process is gone, however it ended, nobody holds the other end of
# standard input any more, and Prism is killed. By itself it may wait for its worker for ever.
_UNTIL_WE_END = 'exec 3<&0 </dev/null; (cat <&3; kill -KILL $$) >/dev/null 2>&1 & exec "$@" 3<&-'
_LOG_TAIL_LINES = 8
_SERVING = re.compile(rb'"msg":"Serving JobManagement","endpoint":"([^"]+)"')


class PrismDied(PrismError):
    """Prism ended while it was needed; the message has the end of its log."""


class PrismJobRunner(PortableRunner):
    """A PortableRunner whose job may take longer than ``--job_server_timeout``.

    PortableRunner puts that timeout, 300 s if nothing is said, on the streams of job states too, and Prism's job then
    fails with DEADLINE_EXCEEDED. Here it holds for the connection only.
    """

    def create_job_service_handle(self, job_service: Any, options: PipelineOptions) -> JobServiceHandle:
        """See PortableRunner."""
        handle = super().create_job_service_handle(job_service, options)
        handle.timeout = None
        return handle


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A running Prism.

    Attributes:
        address: host and port of its job service.
        log: its log so far, JSON lines; gone once it is stopped.
        pid: its process.
    """

    address: str
    log: Path
    pid: int


# Those that this process started and has not stopped.
_running: set[subprocess.Popen[bytes]] = set()


def kill_prisms() -> None:
    """Kills what running_prism started, for a process that ends at once."""
    for process in list(_running):
        process.kill()


@contextmanager
def launch(options: RunOptions) -> Iterator[list[str]]:
    """Gives the arguments of a pipeline that runs on a Prism of its own, which is stopped afterwards.

    Raises PrismError when no Prism can be had or started, and PrismDied for one that ended in the middle.
    """
    with running_prism(find_prism(options.prism_location)) as endpoint, _no_progress_reports():
        yield prism_arguments(endpoint)


@contextmanager
def _no_progress_reports() -> Iterator[None]:
    """Answers Prism's questions about a bundle's progress with nothing, for as long as it lasts.

    It asks every bundle ten times a second, to split it or to show it on its page. Both are off, and collecting each
    report takes some 1 ms of the interpreter: up to a quarter of what the calls, which share it, could use.
    """
    collected = SdkWorker.process_bundle_progress
    SdkWorker.process_bundle_progress = _empty_report
    try:
        yield
    finally:
        SdkWorker.process_bundle_progress = collected


def _empty_report(_: SdkWorker, request: Any, instruction_id: str) -> Any:  # noqa: ARG001  of Beam's SdkWorker
    report = beam_fn_api_pb2.ProcessBundleProgressResponse()
    return beam_fn_api_pb2.InstructionResponse(instruction_id=instruction_id, process_bundle_progress=report)


def prism_arguments(endpoint: Endpoint) -> list[str]:
    """Pipeline arguments that submit to this Prism and run the steps in this process."""
    return [
        f"--runner={__name__}.{PrismJobRunner.__name__}",
        f"--job_endpoint={endpoint.address}",
        f"--job_server_timeout={_CONNECT_TIMEOUT}",
        "--environment_type=LOOPBACK",
        # Prism 2.77 splits every bundle that is silent for 0.2 s, those of keyed steps too, and forgets then that the
        # keys of the part that goes on are in work: another bundle of the same key starts from old state, and what one
        # of the two writes is lost. Ranges are split beforehand, and lanes share the work.
        "--experiments=prism_disable_sdf_split",
        # Else Beam runs `pip freeze` at each start, a second of CPU, to list packages that are those of this process.
        "--experiments=disable_logging_submission_environment",
    ]


@contextmanager
def running_prism(binary: Path) -> Iterator[Endpoint]:
    """Starts Prism on a free port and stops it at the end, whatever happens.

    It has its own session: Ctrl-C reaches the pipeline, which drains, and not Prism, which would end the job at once.
    Raises PrismError when it does not start, PrismDied when it ended before the context did.
    """
    with tempfile.TemporaryDirectory(prefix="llmdo-prism-") as folder:
        log = Path(folder) / "prism.log"
        with log.open("wb") as file:
            process = subprocess.Popen(  # noqa: S603  the binary that find_prism verified
                [
                    *("/bin/sh", "-c", _UNTIL_WE_END, "sh", binary),
                    "--job_port=0",  # a free one, told in the log: no race for it
                    "--serve_http=false",
                    "--log_kind=json",
                ],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        _running.add(process)
        try:
            endpoint = Endpoint(_wait_for_address(process, log), log, process.pid)
            _log.info("Prism serves at %s", endpoint.address)
            try:
                yield endpoint
            except Exception as error:
                # A connection that broke is noticed a moment before the process is seen to be gone.
                if _ended(process, within=1.0):
                    raise _died(process, log) from error
                raise
        finally:
            _stop(process)
            _running.discard(process)


def _wait_for_address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline:
        ended = _ended(process)
        found = _SERVING.search(log.read_bytes())
        if found:
            return found[1].decode()
        if ended:
            raise _died(process, log)
        time.sleep(0.02)
    raise PrismError(f"Prism did not serve within {_START_TIMEOUT:.0f} s; run again. Its log ends:{_tail(log)}")


def _ended(process: subprocess.Popen[bytes], within: float = 0.0) -> bool:
    try:
        process.wait(within)
    except subprocess.TimeoutExpired:
        return False
    return True


def _died(process: subprocess.Popen[bytes], log: Path) -> PrismDied:
    code = process.returncode
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return PrismDied(
        f"Prism {how} while the pipeline needed it; run the same command again to go on. Its log ends:{_tail(log)}"
    )


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
    return "".join(f"\n  {line}" for line in lines) or " (empty)"


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    if not _ended(process, _STOP_TIMEOUT):
        process.kill()
        process.wait()
    if process.stdin:
        process.stdin.close()  # the watcher ends


def main() -> int:
    """Prints where the binary is; one that is nowhere is fetched or built."""
    try:
        print(find_prism(None))  # noqa: T201  this is the command's output
    except PrismError as error:
        print(error, file=sys.stderr)  # noqa: T201  the command's complaint
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
