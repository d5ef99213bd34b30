"""What a worker on another machine sets in its environment before it runs any step: plain settings, then secrets.

Beam's workers import this module when they start (``--beam_plugin``), with the job's options at hand. Those hold plain
settings as they are, and for secrets only the places in Secret Manager.
"""

from __future__ import annotations

import os
from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.options.value_provider import RuntimeValueProvider

from llmdo.settings.environment import plain_settings
from llmdo.settings.secret_manager import take_secrets


class WorkerSettings(PipelineOptions):
    """The options that carry them; both may be repeated."""

    @classmethod
    def _add_argparse_args(cls, parser: ArgumentParser) -> None:
        parser.add_argument("--llmdo_env", action="append", default=None, help="NAME=VALUE; no secret.")
        parser.add_argument("--llmdo_env_from", action="append", default=None, help="NAME=projects/…/versions/….")


def worker_arguments(env_from: tuple[str, ...]) -> list[str]:
    """Pipeline arguments that give workers this process's plain settings, and the places of their secrets."""
    taken = {one.partition("=")[0] for one in env_from}
    return [
        f"--beam_plugin={__name__}",
        *(f"--llmdo_env={name}={value}" for name, value in plain_settings().items() if name not in taken),
        *(f"--llmdo_env_from={one}" for one in env_from),
    ]


def set_environment(options: Mapping[str, Any]) -> None:
    """Sets what a job's options name; what is already set stays. Raises MissingSettings: the worker cannot start."""
    for setting in options.get("llmdo_env") or ():
        name, _, value = setting.partition("=")
        os.environ.setdefault(name, value)
    take_secrets(options.get("llmdo_env_from") or ())


# Only a worker that was started for a job has options at this moment.
set_environment(RuntimeValueProvider.runtime_options or {})
