"""Submitting to a job server that this process started, Prism or Flink's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import grpc  # type: ignore[import-untyped]  # it has no types
from apache_beam.options.pipeline_options import DebugOptions, PipelineOptions
from apache_beam.portability import common_urns, python_urns
from apache_beam.portability.api import beam_fn_api_pb2_grpc, beam_runner_api_pb2, endpoints_pb2
from apache_beam.runners.portability.portable_runner import JobServiceHandle, PortableRunner
from apache_beam.runners.worker import sdk_worker_main
from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer
from apache_beam.utils.thread_pool_executor import shared_unbounded_instance

from llmdo.runners.servers import Endpoint

# For a connection to a server that has reported that it serves. Seconds.
_CONNECT_TIMEOUT = 20
_LOOPBACK = "127.0.0.1"


class PatientRunner(PortableRunner):
    """A PortableRunner whose job may take longer than ``--job_server_timeout``.

    PortableRunner puts that timeout, 300 s if nothing is said, on the streams of job states too, and the job then
    fails with DEADLINE_EXCEEDED. Here it holds for the connection only. And its LOOPBACK workers, which run whatever
    program they are sent, listen on loopback only; PortableRunner's listen on all interfaces.
    """

    def create_job_service_handle(self, job_service: Any, options: PipelineOptions) -> JobServiceHandle:
        """See PortableRunner."""
        handle = super().create_job_service_handle(job_service, options)
        handle.timeout = None
        return handle

    @staticmethod
    def start_and_replace_loopback_environments(pipeline: Any, options: PipelineOptions) -> list[Callable[[], object]]:
        """See PortableRunner: lets LOOPBACK environments run in this process, and returns what ends that."""
        loopback = [
            environment
            for environment in pipeline.components.environments.values()
            if environment.urn == python_urns.EMBEDDED_PYTHON_LOOPBACK
        ]
        if not loopback:
            return []
        address, server = serve_pool(
            BeamFnExternalWorkerPoolServicer(
                state_cache_size=sdk_worker_main._get_state_cache_size_bytes(options=options),
                data_buffer_time_limit_ms=sdk_worker_main._get_data_buffer_time_limit_ms(
                    options.view_as(DebugOptions).experiments or []
                ),
            )
        )
        for environment in loopback:
            environment.urn = common_urns.environments.EXTERNAL.urn
            environment.payload = beam_runner_api_pb2.ExternalPayload(
                endpoint=endpoints_pb2.ApiServiceDescriptor(url=address)
            ).SerializeToString()
        return [partial(server.stop, 1)]


def serve_pool(pool: BeamFnExternalWorkerPoolServicer, port: int = 0) -> tuple[str, Any]:
    """Serves as Beam's ``BeamFnExternalWorkerPoolServicer.start`` does, but on loopback only.

    Returns the address, and the gRPC server. ``port`` 0 is a free one. Raises RuntimeError for one that is taken.
    """
    # Runners may be silent for long, and Beam keeps pinging.
    server = grpc.server(
        shared_unbounded_instance(),
        options=[
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.http2.max_ping_strikes", 0),
            ("grpc.so_reuseport", 0),
        ],
    )
    port = server.add_insecure_port(f"{_LOOPBACK}:{port}")
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    server.start()
    return f"{_LOOPBACK}:{port}", server


def job_arguments(endpoint: Endpoint) -> list[str]:
    """Pipeline arguments that submit to this server."""
    return [
        f"--runner={__name__}.{PatientRunner.__name__}",
        f"--job_endpoint={endpoint.address}",
        f"--job_server_timeout={_CONNECT_TIMEOUT}",
        # Else Beam runs `pip freeze` at each start, a second of CPU, to list packages that are those of this process.
        "--experiments=disable_logging_submission_environment",
    ]
