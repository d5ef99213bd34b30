"""Dataflow jobs that are built but not run: shown, or kept as a template. Needs the extra [gcp]."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, TestOptions
from apache_beam.runners.dataflow.internal import apiclient
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmdo.pipelines import jsonl
from llmdo.pipelines.options import JsonlOptions
from llmdo.runners.dataflow import check, dataflow_arguments
from llmdo.runners.running.attempt import new_run_id
from llmdo.runners.running.checks import check_configuration, prepare
from llmdo.storage.objects.opening import open_store
from llmdo.storage.runs.runs import Presence

JOB_FILE = "job.json"


@dataclass(frozen=True, slots=True)
class BuiltJob:
    """A job as Dataflow would get it.

    Attributes:
        folder: holds JOB_FILE, the request as JSON, and what would be put into the bucket: the graph, ``pipeline.pb``.
        steps: the graph's steps, in the order in which they were added.
        image: the workers' container.
        env_from: the settings that workers take from Secret Manager, and where from.
    """

    name: str
    folder: Path
    steps: tuple[str, ...]
    image: str
    machines: int
    env_from: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "job": self.name,
            "job_file": str(self.folder / JOB_FILE),
            "steps": list(self.steps),
            "container_image": self.image,
            "max_num_workers": self.machines,
            "env_from": list(self.env_from),
        }


def build_job(options: JsonlOptions, folder: Path) -> BuiltJob:
    """Builds the whole job into ``folder``, and sends nothing anywhere. Raises UsageError: see ``dataflow.check``."""
    check(options)
    pipeline = beam.Pipeline(options=PipelineOptions([*dataflow_arguments(options), "--dry_run=yes"]))
    jsonl.build(pipeline, options, new_run_id())
    job = pipeline.run().job
    job.options.view_as(TestOptions).dry_run = False  # as the job that would be sent has it
    _Unsent(job, folder).create_job_description(job)
    (folder / JOB_FILE).write_text(job.json(), encoding="utf-8")
    graph = job.proto_pipeline.components.transforms
    (root,) = job.proto_pipeline.root_transform_ids
    return BuiltJob(
        job.proto.name,
        folder,
        tuple(graph[step].unique_name for step in graph[root].subtransforms),
        str(options.dataflow.container_image),
        options.dataflow.max_num_workers,
        options.dataflow.env_from,
    )


def make_template(options: JsonlOptions) -> None:
    """Puts the job where the launcher of a Flex Template looks for it; it is the launcher that sends it.

    Raises what ``prepare`` raises, and UsageError for another configuration.
    """
    check(options)
    options = prepare(options)
    where, run_id = options.output_location, new_run_id()
    presence = Presence(open_store(where.store_url), where.key, run_id, options.configuration)
    try:
        check_configuration(options, presence.is_alive)
        pipeline = beam.Pipeline(options=PipelineOptions(dataflow_arguments(options)))
        jsonl.build(pipeline, options, run_id)
        pipeline.run()
    finally:
        presence.stop()


class _Unsent(apiclient.DataflowApplicationClient):
    """Keeps in a folder what would be put into the bucket. It has no credentials, and calls no service."""

    def __init__(self, job: Any, folder: Path) -> None:
        cloud = job.options.view_as(GoogleCloudOptions)
        cloud.no_auth = True
        super().__init__(job.options, job.root_staging_location)
        cloud.no_auth = False
        self._folder = folder

    def stage_file(self, _place: str, file_name: str, stream: Any, *_: Any, **__: Any) -> None:
        """See DataflowApplicationClient."""
        (self._folder / file_name).write_bytes(stream.read())


def show_job(job: BuiltJob) -> RenderableType:
    """For people: the steps, then where and by whom they would be run."""
    table = Table(f"steps of {job.name}")
    for step in job.steps:
        table.add_row(Text(step))
    said = (
        f"Image {job.image}, at most {job.machines:,} machines. Nothing was sent; the job is {job.folder / JOB_FILE}."
    )
    taken = [Text(f"from Secret Manager: {one}") for one in job.env_from]
    return Group(table, *taken, Text(said))
