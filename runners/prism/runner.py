"""Where a graph runs on Prism, Beam's runner for continuous work on one machine: starts it, submits to it, stops it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.worker.sdk_worker import SdkWorker

from llmdo.pipelines.run_options import RunOptions
from llmdo.pipelines.usage import UsageError
from llmdo.runners.listening import ALLOW, can_look, refuse_strangers
from llmdo.runners.portable import job_arguments
from llmdo.runners.prism.binary import PRISM_VARIABLE, find_prism, is_closed
from llmdo.runners.servers import Endpoint, running_server

_SERVING = re.compile(rb'"msg":"Serving JobManagement","endpoint":"([^"]+)"')
_REMEDY = (
    f"omit --prism-location and {PRISM_VARIABLE}, so that llmdo builds a Prism that listens on 127.0.0.1 only "
    "(with Go 1.26 or newer, or one from PyPI)"
)


@contextmanager
def launch(options: RunOptions) -> Iterator[list[str]]:
    """Yields the arguments of a pipeline that runs on a Prism of its own, which is stopped afterwards.

    Raises PrismError if no Prism can be found, built or started, UsageError for one that other machines may reach,
    unless the options allow it, and ServerDied for one that ended in the middle.
    """
    binary = find_prism(options.prism_location, allow_open=options.allow_open_ports)
    with running_prism(binary, allow_open=options.allow_open_ports) as endpoint, _no_progress_reports():
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
        *job_arguments(endpoint),
        "--environment_type=LOOPBACK",
        # Prism 2.77 splits every bundle that is silent for 0.2 s, those of keyed steps too, and forgets then that the
        # keys of the remaining part are in use: another bundle of the same key starts from old state, and what one of
        # the two writes is lost. Ranges are split beforehand, and lanes share the work.
        "--experiments=prism_disable_sdf_split",
    ]


def running_prism(binary: Path, *, allow_open: bool = False) -> AbstractContextManager[Endpoint]:
    """Starts Prism on a free port and stops it at the end; see ``running_server``.

    Raises UsageError for one that listens on more than loopback, unless ``allow_open``.
    """
    if not (allow_open or can_look() or is_closed(binary)):
        raise UsageError(
            [f"where {binary} would listen cannot be seen on this system; {_REMEDY}, or accept any with {ALLOW}"]
        )
    # Port 0 is a free one, which the log names: no race for it.
    command: list[str | Path] = [binary, "--job_port=0", "--serve_http=false", "--log_kind=json"]
    check = partial(refuse_strangers, f"Prism ({binary})", remedy=_REMEDY, allowed=allow_open)
    return running_server("Prism", lambda _: command, _SERVING, check)
