"""Where a graph runs on Google Cloud Dataflow: what must be right before a job is sent, and the job's arguments."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from apache_beam.runners.dataflow import dataflow_runner
from apache_beam.version import __version__ as beam_version

from llmdo.backends.providers import access_of
from llmdo.pipelines.options import JsonlOptions
from llmdo.pipelines.runner_options import DataflowOptions
from llmdo.pipelines.shown import name_of, options_of
from llmdo.pipelines.usage import UsageError
from llmdo.runners.showing.terminal import stderr
from llmdo.runners.workers.settings import worker_arguments
from llmdo.settings.environment import (
    ai_gateway,
    cloudflare_account,
    plain_settings,
    r2_access,
    secrets_of,
)
from llmdo.settings.installing import install_command
from llmdo.settings.secrets import check_header, secrets_in_url, without_secrets
from llmdo.storage.ledger.ledger import NO_LEDGER
from llmdo.storage.objects.store import R2_SCHEME

_PROJECT_ID = re.compile(r"[a-z][-a-z0-9:.]+[a-z0-9]")
# Beam makes a bucket of its own if it is given an impossible one.
_GCS_FOLDER = re.compile(r"gs://[a-z0-9][-_a-z0-9.]{1,220}[a-z0-9]/\S+")
# The Python of the image that ``Dockerfile`` makes. Steps are pickled here and unpickled there.
IMAGE_PYTHON = (3, 11)
_REQUIRED = {
    "project": "name the Google Cloud project",
    "region": "name the region, such as europe-west1",
    "temp_location": "name a folder in a bucket there, such as gs://BUCKET/llmdo",
    "container_image": "build Dockerfile, push it to Artifact Registry, and name it",
}
_PASSWORD_IN_URL = re.compile(r"://[^/@\s]*:[^/@\s]+@")
_THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0"})  # noqa: S104  to be refused


class DataflowRunner(dataflow_runner.DataflowRunner):
    """Beam's runner, which also prints where to watch the job. Beam requires this very name."""

    def run_pipeline(self, pipeline: Any, options: Any, pipeline_proto: Any = None) -> Any:
        """See PipelineRunner."""
        result = super().run_pipeline(pipeline, options, pipeline_proto)
        if getattr(result, "has_job", False):
            where = options.get_all_options()
            place = f"{where['region']}/{result.job_id()}?project={where['project']}"
            stderr.print(f"https://console.cloud.google.com/dataflow/jobs/{place}", soft_wrap=True, highlight=False)
        return result


@contextmanager
def launch(options: JsonlOptions) -> Iterator[list[str]]:
    """Yields the arguments of a pipeline on Dataflow; ``prepare`` has called ``check``."""
    yield dataflow_arguments(options)


def dataflow_arguments(options: JsonlOptions) -> list[str]:
    """Pipeline arguments of a streaming job, also for bounded work.

    A batch job would write no shard before every line is answered. A streaming job over bounded work ends by itself:
    https://docs.cloud.google.com/dataflow/docs/concepts/streaming-pipelines
    """
    given, command = options.dataflow, "stream" if options.continuous else "run"
    named = {
        "project": given.project,
        "region": given.region,
        "temp_location": given.temp_location,
        "staging_location": given.staging_location or given.temp_location,
        "sdk_container_image": given.container_image,
        "service_account_email": given.service_account,
        "subnetwork": given.subnetwork,
        "machine_type": given.machine_type,
        "max_num_workers": given.max_num_workers,
    }
    own = [
        f"--runner={__name__}.{DataflowRunner.__name__}",
        "--streaming",
        "--enable_streaming_engine",
        "--autoscaling_algorithm=THROUGHPUT_BASED",
        "--no_save_main_session",  # every step is in a module that the image has
        "--sdk_location=container",  # the image has Beam, of the version that its requirements say
        "--labels=app=llmdo",
        f"--labels=command={command}",
    ]
    return [
        *own,
        *(f"--{name}={value}" for name, value in named.items() if value is not None),
        # One engine a machine: it keeps ``concurrency`` calls in flight, on one core. Else there is one for each core.
        "--experiments=no_use_multiple_sdk_containers",
        # Else `pip freeze` goes into the bucket, whose URLs of private indexes may hold passwords.
        "--experiments=disable_logging_submission_environment",
        *worker_arguments(given.env_from),
        *(f"--{option}" for option in given.beam_options),
        *([f"--job_name={_job_name(command)}"] if beam_option(given, "job_name") is None else []),
    ]


def beam_option(given: DataflowOptions, name: str) -> str | None:
    """What --beam-option sets a name to: "" where it has no value, None where it is not set."""
    return dict(option.partition("=")[::2] for option in given.beam_options).get(name)


def _job_name(command: str) -> str:
    return f"llmdo-{command}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


def check(options: JsonlOptions) -> None:
    """Raises UsageError with everything that would fail on Dataflow or expose a secret."""
    problems = [problem for find in _CHECKS for problem in find(options)]
    if problems:
        raise UsageError(problems)


def _installation(_: JsonlOptions) -> Iterator[str]:
    if sys.version_info[:2] != IMAGE_PYTHON:
        ours, theirs = (".".join(map(str, version[:2])) for version in (sys.version_info, IMAGE_PYTHON))
        yield f"this is Python {ours} and the workers' image has {theirs}: run llmdo with Python {theirs}"
    try:
        missing = importlib.util.find_spec("google.cloud.dataflow") is None
    except ModuleNotFoundError:
        missing = True
    if missing:
        yield f"apache-beam[gcp] {beam_version} is not installed: run {install_command('[gcp]')}"


def _places(options: JsonlOptions) -> Iterator[str]:
    given = options.dataflow
    for name, remedy in _REQUIRED.items():
        if not getattr(given, name):
            yield f"{name_of(name)} is missing: {remedy}"
    if given.project and not _PROJECT_ID.fullmatch(given.project):
        yield f"--project {given.project}: write the project's id, not its name or number"
    for name in ("temp_location", "staging_location"):
        place = getattr(given, name)
        if place and not _GCS_FOLDER.fullmatch(place):
            yield f"{name_of(name)} {place}: write gs://BUCKET/PREFIX"
    if options.local_files:
        yield f"workers cannot see the local {options.local_files[0]}: put the files into R2, and name r2://BUCKET/PREFIX/"
    if not options.output.startswith(R2_SCHEME):
        yield f"workers cannot write the local --output {options.output}: use r2://BUCKET/PREFIX/"
    if options.ledger != NO_LEDGER and not (options.ledger or "").startswith(R2_SCHEME):
        said = options.ledger or "in a local database, the default,"
        yield f"--ledger {said} cannot be seen by workers: use r2://BUCKET/PREFIX/ (a write for each answer), or none"


def _models(options: JsonlOptions) -> Iterator[str]:
    for model in options.models:
        if model.startswith("local/"):
            yield f"--model {model} is not in the workers' image: use one that a service answers"


def _settings(options: JsonlOptions) -> Iterator[str]:
    covered = {one.partition("=")[0] for one in options.dataflow.env_from}
    for name in secrets_needed(options):
        if name not in covered:
            yield (
                f"workers need {name}: put it into Secret Manager, and give "
                f"--env-from {name}=projects/PROJECT/secrets/SECRET/versions/latest"
            )
    for name, value in plain_settings().items():
        if secrets_in_url(value) and name not in covered:
            said = f"{name} holds a password or a key, and a job's options can be read"
            yield f"{said}: give it by --env-from {name}=projects/…"
        elif urlsplit(value).hostname in _THIS_MACHINE:
            yield f"{name} is an address of this machine, which workers cannot reach: set the service's own"


def _secrets_in_options(options: JsonlOptions) -> Iterator[str]:
    said: dict[str, Any] = options.model_dump(mode="json")
    said |= said.pop("dataflow")
    said.pop("flink")
    options_by_field = options_of(JsonlOptions)
    for name, value in said.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if without_secrets(text) != text or _PASSWORD_IN_URL.search(text):
            option = options_by_field[name].name if name in options_by_field else name_of(name)
            yield (
                f"{option} holds a password or a secret of the environment, and a job's options can "
                "be read: take it out, and use --env-from"
            )


_CHECKS: tuple[Callable[[JsonlOptions], Iterator[str]], ...] = (
    _installation,
    _places,
    _models,
    _settings,
    _secrets_in_options,
)


def secrets_needed(options: JsonlOptions) -> tuple[str, ...]:
    """The secret variables that are set here and that the steps of this job read."""
    reads: list[Callable[[], object] | None] = [r2_access, *map(access_of, options.models)]
    if options.queue is not None:
        reads.append(cloudflare_account)
    if cloudflare_account in reads:
        reads.append(ai_gateway)
    names = [name for read in dict.fromkeys(reads) for name in secrets_of(read)]
    names += [check_header(header)[1] for header in options.header]
    return tuple(name for name in dict.fromkeys(names) if os.environ.get(name))
