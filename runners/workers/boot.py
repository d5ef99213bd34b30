"""Starts Python workers where the cluster has ``--environment_type=PROCESS``: what the container's boot does.

``llmdo-worker`` is this module's command: ``--environment_config='{"command": "/…/.venv/bin/llmdo-worker"}'``. The
program and its requirements must be installed there: a job brings no packages.

Contract: https://s.apache.org/beam-fn-api-container-contract, and sdks/python/container/boot.go of Beam.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from typing import Any, NoReturn

import grpc  # type: ignore[import-untyped]  # it has no types
from apache_beam.portability.api import beam_provision_api_pb2 as provision
from apache_beam.portability.api import beam_provision_api_pb2_grpc, beam_runner_api_pb2, endpoints_pb2
from apache_beam.portability.common_urns import artifact_roles
from google.protobuf import json_format, text_format  # type: ignore[import-untyped]  # no stubs are installed

_CONNECT_TIMEOUT = 60.0  # seconds
# A list of the submitter's packages, which Beam stages for its own messages.
_IGNORED = "submission_environment_dependencies.txt"


class BootError(RuntimeError):
    """No worker can be started; the message has the reason and the remedy."""


def main(argv: list[str] | None = None) -> NoReturn:
    """Becomes the worker that a runner asks for; exits with 1 if it cannot."""
    parser = argparse.ArgumentParser(prog="llmdo-worker", description="Started by a Beam runner, not by hand.")
    parser.add_argument("--id", required=True)
    parser.add_argument("--provision_endpoint", required=True)
    for name in ("control", "logging", "artifact"):
        parser.add_argument(f"--{name}_endpoint", default="")
    given = parser.parse_args(argv)
    worker = given.id.strip("'")  # Prism 2.77 quotes it for a shell that it does not use
    try:
        info = _provision_info(given.provision_endpoint, worker)
        environment = {**os.environ, **worker_environment(info, given)}
    except BootError as error:
        print(f"llmdo-worker: {error}", file=sys.stderr)  # noqa: T201  the runner's log takes it
        sys.exit(1)
    command = [sys.executable, "-m", "llmdo.runners.workers.worker"]
    for sibling in info.sibling_worker_ids:  # these end when the runner hangs up
        subprocess.Popen(command, env={**environment, "WORKER_ID": sibling})  # noqa: S603  as below
    # In this process's place: runners kill the process that they started, and no other.
    os.execve(command[0], command, {**environment, "WORKER_ID": worker})  # noqa: S606  this very interpreter


def _provision_info(endpoint: str, worker: str) -> Any:
    with grpc.insecure_channel(endpoint) as channel:
        stub = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        try:
            return stub.GetProvisionInfo(
                provision.GetProvisionInfoRequest(),
                metadata=(("worker_id", worker),),
                timeout=_CONNECT_TIMEOUT,
                wait_for_ready=True,
            ).info
        except grpc.RpcError as error:
            raise BootError(f"the runner at {endpoint} does not describe the job ({error.code().name})") from None


def worker_environment(info: Any, given: argparse.Namespace) -> dict[str, str]:
    """What ``sdk_worker_main`` reads, apart from WORKER_ID.

    Raises BootError for a job that brings packages, or a runner that does not say where it is.
    """
    staged = [name for name in map(_staged_name, info.dependencies) if name != _IGNORED]
    if staged:
        raise BootError(
            f"the job brings {', '.join(staged)}: install what it needs where llmdo-worker is, and stage none"
        )
    control = info.control_endpoint.url or given.control_endpoint
    logging = info.logging_endpoint.url or given.logging_endpoint
    if not control or not logging:
        raise BootError("the runner names no control or logging endpoint: use a runner of Beam 2.25 or newer")
    environment = {
        "PIPELINE_OPTIONS": json_format.MessageToJson(info.pipeline_options, indent=None),
        "CONTROL_API_SERVICE_DESCRIPTOR": _descriptor(control),
        "LOGGING_API_SERVICE_DESCRIPTOR": _descriptor(logging),
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
    }
    if info.status_endpoint.url:
        environment["STATUS_API_SERVICE_DESCRIPTOR"] = str(text_format.MessageToString(info.status_endpoint))
    return environment


def _staged_name(artifact: Any) -> str:
    if artifact.role_urn != artifact_roles.STAGING_TO.urn:
        return str(artifact.role_urn)
    return str(beam_runner_api_pb2.ArtifactStagingToRolePayload.FromString(artifact.role_payload).staged_name)


def _descriptor(url: str) -> str:
    return str(text_format.MessageToString(endpoints_pb2.ApiServiceDescriptor(url=url)))


if __name__ == "__main__":
    main()
