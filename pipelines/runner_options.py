"""Options of the machines that run the steps: Flink's, or Google Cloud Dataflow's; how each runner reads files."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from llmdo.pipelines.shown import DATAFLOW, FLINK
from llmdo.transforms.lines.reading import Reading

# After this long Prism's reader hands its range back, so that what it has read can leave the bundle. Seconds.
PRISM_CHECKPOINT = 30.0
# Bundles that read at the same time on Prism.
PRISM_LANES = 4
# Answering stages side by side in each of Flink's slots: while some wait for their last calls, others continue.
FLINK_LANES = 16
# Flink makes no checkpoint within a range. Bytes.
FLINK_RANGE = 64 << 10

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
        str, FLINK("[local] for a small cluster in the job server, or HOST:PORT of a JobManager's REST API.")
    ] = "[local]"
    flink_job_server_jar: Annotated[
        str | None, FLINK("Path of Beam's job server, Flink 1.19 to 2.2; by default Maven builds one for 1.19, once.")
    ] = None
    flink_sdf: Annotated[
        bool, FLINK("Experimental: splittable reading, as on other runners; needs a job server of Beam 2.77.")
    ] = False
    parallelism: Annotated[int, Field(ge=1), FLINK("Slots; those of a TaskManager share --concurrency.")] = 1
    environment_type: Annotated[
        EnvironmentType | None,
        FLINK(
            "How the cluster starts Python: LOOPBACK (default with [local]), EXTERNAL (default otherwise), "
            "PROCESS, DOCKER."
        ),
    ] = None
    environment_config: Annotated[
        str | None, FLINK("HOST:PORT of the pool (EXTERNAL), the image (DOCKER), or JSON (PROCESS).")
    ] = None
    # None: see llmdo.transforms.lines.planned.parcels_in_bundle
    bundle_ranges: Annotated[
        int | None,
        Field(ge=1),
        FLINK("Ranges, or parcels of 4 lines, in a bundle; by default chosen by --concurrency."),
    ] = None
    bundle_seconds: Annotated[
        float, Field(gt=0), FLINK("Seconds after which a bundle takes nothing more; each of some six steps waits.")
    ] = 0.2
    checkpoint_seconds: Annotated[float, Field(gt=0), FLINK("Seconds from one checkpoint to the next.")] = 30.0
    checkpoint_dir: Annotated[
        str | None, FLINK("Where checkpoints go, file:///… or s3://…; all machines of the cluster must see it.")
    ] = None
    flink_restarts: Annotated[int, Field(ge=0), FLINK("How often Flink restarts a failed job.")] = 10

    @property
    def environment(self) -> EnvironmentType:
        """How the cluster starts Python; the default if it is not set."""
        return self.environment_type or ("LOOPBACK" if self.flink_master == "[local]" else "EXTERNAL")


class DataflowOptions(BaseModel):
    """How a graph runs on Dataflow. Each machine has ``concurrency`` calls in flight; options hold no secret."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    project: Annotated[str | None, DATAFLOW("Google Cloud project.")] = None
    region: Annotated[str | None, DATAFLOW("Such as europe-west1.")] = None
    temp_location: Annotated[str | None, DATAFLOW("gs://BUCKET/PREFIX.")] = None
    staging_location: Annotated[str | None, DATAFLOW("gs://BUCKET/PREFIX; default --temp-location.")] = None
    container_image: Annotated[
        str | None, DATAFLOW("Image of the workers, with llmdo and its requirements, as Dockerfile makes it.")
    ] = None
    service_account: Annotated[str | None, DATAFLOW("Account that the workers act as.")] = None
    subnetwork: Annotated[str | None, DATAFLOW("regions/REGION/subnetworks/NAME.")] = None
    machine_type: Annotated[str | None, DATAFLOW("Such as e2-standard-2.")] = None
    max_num_workers: Annotated[int, Field(ge=1), DATAFLOW("Machines at most.")] = 4
    env_from: Annotated[
        tuple[Annotated[str, AfterValidator(_secret)], ...],
        DATAFLOW(
            "NAME=projects/P/secrets/S/versions/V: a setting of the environment that workers take from "
            "Secret Manager; may be repeated.",
            near_secret=True,
        ),
    ] = ()
    beam_options: Annotated[
        tuple[Annotated[str, AfterValidator(_beam_option)], ...],
        DATAFLOW("NAME or NAME=VALUE of Beam's own, such as no_use_public_ips; may be repeated.", name="--beam-option"),
    ] = ()


def reading_on(runner: str, given: Reading, *, planned: bool, continuous: bool) -> Reading:
    """How files are read on a runner: on Prism and Dataflow nothing leaves a bundle before its end, so the reader ends
    it; Flink gets ``planned`` ranges.
    """
    return replace(
        given,
        range_bytes=min(given.range_bytes, FLINK_RANGE) if planned else given.range_bytes,
        checkpoint_seconds=PRISM_CHECKPOINT if runner in ("prism", "dataflow") else None,
        planned=planned,
        at_once=runner == "direct" and not continuous,
        lanes=FLINK_LANES if planned else PRISM_LANES,
    )
