"""Options of the machines that run the steps: Flink's, or Google Cloud Dataflow's."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from llmdo.pipelines.shown import DATAFLOW, FLINK, Shown

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

    On LOOPBACK each of the ``parallelism`` slots has ``concurrency`` calls in flight at most. Elsewhere each process of
    workers has; there is one for each TaskManager by default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    flink_master: Annotated[
        str,
        Field(description="[local] for a small cluster in the job server, or HOST:PORT of a JobManager's REST API."),
        FLINK,
    ] = "[local]"
    flink_job_server_jar: Annotated[
        str | None, Field(description="Path of Beam's job server; by default Maven builds one, once."), FLINK
    ] = None
    flink_sdf: Annotated[
        bool,
        Field(description="Experimental: splittable reading, as on other runners; needs a job server of Beam 2.77."),
        FLINK,
    ] = False
    parallelism: Annotated[
        int, Field(ge=1, description="Slots; those of a TaskManager share --concurrency."), FLINK
    ] = 1
    environment_type: Annotated[
        EnvironmentType | None,
        Field(
            description="How the cluster starts Python: LOOPBACK (default with [local]), EXTERNAL (default otherwise), "
            "PROCESS, DOCKER."
        ),
        FLINK,
    ] = None
    environment_config: Annotated[
        str | None,
        Field(description="HOST:PORT of the pool (EXTERNAL), the image (DOCKER), or JSON (PROCESS)."),
        FLINK,
    ] = None
    # None: see llmdo.transforms.lines.planned.parcels_in_bundle
    bundle_ranges: Annotated[
        int | None,
        Field(ge=1, description="Ranges, or parcels of 4 lines, in a bundle; by default chosen by --concurrency."),
        FLINK,
    ] = None
    bundle_seconds: Annotated[
        float,
        Field(gt=0, description="Seconds after which a bundle takes nothing more; each of some six steps waits."),
        FLINK,
    ] = 0.2
    checkpoint_seconds: Annotated[float, Field(gt=0, description="Seconds from one checkpoint to the next."), FLINK] = (
        30.0
    )
    checkpoint_dir: Annotated[
        str | None,
        Field(description="Where checkpoints go, file:///… or s3://…; all machines of the cluster must see it."),
        FLINK,
    ] = None
    flink_restarts: Annotated[int, Field(ge=0, description="How often Flink restarts a failed job."), FLINK] = 10

    @property
    def environment(self) -> EnvironmentType:
        """How the cluster starts Python; the default if it is not set."""
        return self.environment_type or ("LOOPBACK" if self.flink_master == "[local]" else "EXTERNAL")


class DataflowOptions(BaseModel):
    """How a graph runs on Dataflow. Each machine has ``concurrency`` calls in flight; options hold no secret."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    project: Annotated[str | None, Field(description="Google Cloud project."), DATAFLOW] = None
    region: Annotated[str | None, Field(description="Such as europe-west1."), DATAFLOW] = None
    temp_location: Annotated[str | None, Field(description="gs://BUCKET/PREFIX."), DATAFLOW] = None
    staging_location: Annotated[
        str | None, Field(description="gs://BUCKET/PREFIX; default --temp-location."), DATAFLOW
    ] = None
    container_image: Annotated[
        str | None,
        Field(description="Image of the workers, with llmdo and its requirements, as Dockerfile makes it."),
        DATAFLOW,
    ] = None
    service_account: Annotated[str | None, Field(description="Account that the workers act as."), DATAFLOW] = None
    subnetwork: Annotated[str | None, Field(description="regions/REGION/subnetworks/NAME."), DATAFLOW] = None
    machine_type: Annotated[str | None, Field(description="Such as e2-standard-2."), DATAFLOW] = None
    max_num_workers: Annotated[int, Field(ge=1, description="Machines at most."), DATAFLOW] = 4
    env_from: Annotated[
        tuple[Annotated[str, AfterValidator(_secret)], ...],
        Field(
            description="NAME=projects/P/secrets/S/versions/V: a setting of the environment that workers take from "
            "Secret Manager; may be repeated."
        ),
        Shown(DATAFLOW.panel, near_secret=True),
    ] = ()
    beam_options: Annotated[
        tuple[Annotated[str, AfterValidator(_beam_option)], ...],
        Field(description="NAME or NAME=VALUE of Beam's own, such as no_use_public_ips; may be repeated."),
        Shown(DATAFLOW.panel, name="--beam-option"),
    ] = ()
