"""What a user may set about the machines that a run goes to: Flink's, or Google Cloud Dataflow's."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

EnvironmentType = Literal["LOOPBACK", "EXTERNAL", "PROCESS", "DOCKER"]


def _secret(value: str) -> str:
    if not re.fullmatch(r"[A-Z][A-Z0-9_]*=projects/[^/]+/secrets/[^/]+/versions/[^/]+", value):
        raise ValueError("write NAME=projects/PROJECT/secrets/SECRET/versions/latest: the secret's place, never itself")
    return value


def _beam_option(value: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]*(=.*)?", value):
        raise ValueError("write NAME or NAME=VALUE, without dashes")
    return value


class FlinkOptions(BaseModel):
    """How a graph runs on Flink. Times in seconds.

    Attributes:
        flink_master: ``[local]``, a small cluster inside the job server; or ``host:port`` of a JobManager's REST API.
        flink_job_server_jar: the path of a Beam job server; None builds one with Maven, once.
        flink_sdf: reads by splittable DoFns, as other runners do; needs a job server of Beam 2.77 or newer.
        parallelism: slots that work side by side. On LOOPBACK each has ``concurrency`` calls in flight at most; else
            each process of workers has, one for each TaskManager unless it is told otherwise.
        environment_type: how the cluster starts Python; None is LOOPBACK for ``[local]``, else EXTERNAL.
        environment_config: where: EXTERNAL's host:port, DOCKER's image, PROCESS's JSON.
        bundle_ranges: so many elements are one bundle, ranges of files or parcels of 4 lines; None chooses by
            ``concurrency`` (``llmdo.transforms.lines.planned.parcels_in_bundle``).
        bundle_seconds: after so long a bundle takes no more elements; each of some six steps waits for it.
        checkpoint_seconds: from one checkpoint to the next.
        checkpoint_dir: where checkpoints go: file:///…, s3://…; a cluster of several machines must all see it.
        flink_restarts: how often Flink begins a failed job again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    flink_master: str = "[local]"
    flink_job_server_jar: str | None = None
    flink_sdf: bool = False
    parallelism: int = Field(default=1, ge=1)
    environment_type: EnvironmentType | None = None
    environment_config: str | None = None
    bundle_ranges: int | None = Field(default=None, ge=1)
    bundle_seconds: float = Field(default=0.2, gt=0)
    checkpoint_seconds: float = Field(default=30.0, gt=0)
    checkpoint_dir: str | None = None
    flink_restarts: int = Field(default=10, ge=0)

    @property
    def environment(self) -> EnvironmentType:
        """How the cluster starts Python, also where it is not said."""
        return self.environment_type or ("LOOPBACK" if self.flink_master == "[local]" else "EXTERNAL")


class DataflowOptions(BaseModel):
    """How a graph runs on Dataflow.

    Attributes:
        temp_location, staging_location: gs://bucket/prefix; the second is the first where it is not said.
        container_image: with llmdo and its requirements, as ``Dockerfile`` makes it.
        max_num_workers: machines at most; each has ``concurrency`` calls in flight.
        env_from: ``NAME=projects/…/secrets/…/versions/…`` for each setting of the environment that workers take from
            Secret Manager; options hold no secret.
        beam_options: ``NAME`` or ``NAME=VALUE`` of Beam's own, such as no_use_public_ips.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    project: str | None = None
    region: str | None = None
    temp_location: str | None = None
    staging_location: str | None = None
    container_image: str | None = None
    service_account: str | None = None
    subnetwork: str | None = None
    machine_type: str | None = None
    max_num_workers: int = Field(default=4, ge=1)
    env_from: tuple[Annotated[str, AfterValidator(_secret)], ...] = ()
    beam_options: tuple[Annotated[str, AfterValidator(_beam_option)], ...] = ()
