"""Submitting to a job server that this process started, Prism or Flink's."""

from __future__ import annotations

from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.portable_runner import JobServiceHandle, PortableRunner

from runners.servers import Endpoint

# How long to wait for a connection to a server that has said it serves. Seconds.
_CONNECT_TIMEOUT = 20


class PatientRunner(PortableRunner):
    """A PortableRunner whose job may take longer than ``--job_server_timeout``.

    PortableRunner puts that timeout, 300 s if nothing is said, on the streams of job states too, and the job then
    fails with DEADLINE_EXCEEDED. Here it holds for the connection only.
    """

    def create_job_service_handle(self, job_service: Any, options: PipelineOptions) -> JobServiceHandle:
        """See PortableRunner."""
        handle = super().create_job_service_handle(job_service, options)
        handle.timeout = None
        return handle


def job_arguments(endpoint: Endpoint) -> list[str]:
    """Pipeline arguments that submit to this server."""
    return [
        f"--runner={__name__}.{PatientRunner.__name__}",
        f"--job_endpoint={endpoint.address}",
        f"--job_server_timeout={_CONNECT_TIMEOUT}",
        # Else Beam runs `pip freeze` at each start, a second of CPU, to list packages that are those of this process.
        "--experiments=disable_logging_submission_environment",
    ]
