"""The command line's arguments for runners on other machines; see ``arguments.takes``."""

from __future__ import annotations

from typing import Annotated

import typer

from llmdo.pipelines.runner_options import DataflowOptions, FlinkOptions
from llmdo.runners.cli import arguments as arg

_FLINK, _DATAFLOW = "Runner flink", "Runner dataflow"


def flink(
    flink_master: Annotated[
        str, typer.Option(help="[local], or HOST:PORT of a JobManager.", rich_help_panel=_FLINK)
    ] = arg.default("flink_master", FlinkOptions),
    flink_job_server_jar: Annotated[
        str | None,
        typer.Option(help="Beam's Flink job server; default one that Maven builds.", rich_help_panel=_FLINK),
    ] = None,
    flink_sdf: Annotated[
        bool,
        typer.Option(
            "--flink-sdf", help="Experimental: splittable reading; needs a job server 2.77.", rich_help_panel=_FLINK
        ),
    ] = False,
    parallelism: Annotated[
        int, typer.Option(help="Slots; those of a TaskManager share --concurrency.", rich_help_panel=_FLINK)
    ] = arg.default("parallelism", FlinkOptions),
    environment_type: Annotated[
        str | None,
        typer.Option(
            help="LOOPBACK (default with [local]), EXTERNAL (default else), PROCESS, DOCKER.", rich_help_panel=_FLINK
        ),
    ] = None,
    environment_config: Annotated[
        str | None,
        typer.Option(help="The pool's HOST:PORT, the image, or PROCESS's JSON.", rich_help_panel=_FLINK),
    ] = None,
    bundle_ranges: Annotated[
        int | None, typer.Option(help="Ranges in a bundle; default by --concurrency.", rich_help_panel=_FLINK)
    ] = None,
    bundle_seconds: Annotated[
        float, typer.Option(help="Seconds until a bundle ends anyway.", rich_help_panel=_FLINK)
    ] = arg.default("bundle_seconds", FlinkOptions),
    checkpoint_seconds: Annotated[
        float, typer.Option(help="Seconds from one checkpoint to the next.", rich_help_panel=_FLINK)
    ] = arg.default("checkpoint_seconds", FlinkOptions),
    checkpoint_dir: Annotated[
        str | None,
        typer.Option(help="Where checkpoints go, for all machines: file:///…, s3://….", rich_help_panel=_FLINK),
    ] = None,
    flink_restarts: Annotated[
        int, typer.Option(help="How often Flink begins a failed job again.", rich_help_panel=_FLINK)
    ] = arg.default("flink_restarts", FlinkOptions),
) -> None:
    """Parameters of commands that can run on Flink (for ``takes``)."""


def dataflow(
    project: Annotated[str | None, typer.Option(help="Google Cloud project.", rich_help_panel=_DATAFLOW)] = None,
    region: Annotated[str | None, typer.Option(help="Such as europe-west1.", rich_help_panel=_DATAFLOW)] = None,
    temp_location: Annotated[str | None, typer.Option(help="gs://BUCKET/PREFIX.", rich_help_panel=_DATAFLOW)] = None,
    staging_location: Annotated[
        str | None, typer.Option(help="gs://BUCKET/PREFIX; default --temp-location.", rich_help_panel=_DATAFLOW)
    ] = None,
    container_image: Annotated[
        str | None, typer.Option(help="Image of the workers, as Dockerfile makes it.", rich_help_panel=_DATAFLOW)
    ] = None,
    service_account: Annotated[
        str | None, typer.Option(help="Whom the workers act as.", rich_help_panel=_DATAFLOW)
    ] = None,
    subnetwork: Annotated[
        str | None, typer.Option(help="regions/REGION/subnetworks/NAME.", rich_help_panel=_DATAFLOW)
    ] = None,
    machine_type: Annotated[str | None, typer.Option(help="Such as e2-standard-2.", rich_help_panel=_DATAFLOW)] = None,
    max_num_workers: Annotated[int, typer.Option(help="Machines at most.", rich_help_panel=_DATAFLOW)] = arg.default(
        "max_num_workers", DataflowOptions
    ),
    env_from: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=projects/P/secrets/S/versions/V: a setting that workers take from Secret Manager.",
            rich_help_panel=_DATAFLOW,
        ),
    ] = None,
    beam_options: Annotated[
        list[str] | None,
        typer.Option(
            "--beam-option",
            help="NAME or NAME=VALUE of Beam's own, such as no_use_public_ips.",
            rich_help_panel=_DATAFLOW,
        ),
    ] = None,
) -> None:
    """Parameters of commands that can run on Dataflow (for ``takes``)."""
