"""What the launcher of the Flex Template starts: its arguments become those of ``llmdo run`` or ``llmdo stream``.

The launcher passes the template's parameters and Beam's own options, all as ``--name=value``. Those that the
command has go to it, the others to Beam. Settings come from Secret Manager, here as on the workers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import typer

from llmdo.runners.cli.main import command_of, main
from llmdo.settings.secret_manager import take_secrets

# Beam's names for what llmdo calls something else.
NAMES = {
    "sdk_container_image": "container_image",
    "service_account_email": "service_account",
    "worker_machine_type": "machine_type",
}
COMMANDS = ("run", "stream")


def command_line(arguments: list[str]) -> list[str]:
    """llmdo's arguments for those of the launcher.

    >>> command_line(["--command=stream", "--queue=q", "--runner=DataflowRunner", "--job_name=j"])
    ['stream', '--runner=dataflow', '--queue=q', '--beam-option=job_name=j']
    >>> command_line(["--line_parameters=true"]), command_line(["--line_parameters=False"])
    (['run', '--runner=dataflow', '--line-parameters'], ['run', '--runner=dataflow'])
    """
    given = [(name, value) for name, _, value in (one.removeprefix("--").partition("=") for one in arguments)]
    command = dict(given).get("command", COMMANDS[0])
    if command not in COMMANDS:
        sys.exit(f"the parameter command is {command!r}: write {' or '.join(COMMANDS)}")
    known = {option: parameter.is_flag for parameter in _parameters(command) for option in parameter.opts}
    return [command, "--runner=dataflow", *(one for name, value in given for one in _argument(name, value, known))]


def _argument(name: str, value: str, known: dict[str, bool]) -> Iterator[str]:
    """``known``: llmdo's options, and whether each is a flag, which has no value."""
    option = f"--{NAMES.get(name, name).replace('_', '-')}"
    if name in ("command", "runner"):
        return
    if name == "env_from":
        yield from (f"{option}={one}" for one in value.split())
    elif known.get(option):
        if value.lower() == "true":
            yield option
    elif option in known:
        yield f"{option}={value}"
    else:
        yield f"--beam-option={name}={value}" if value else f"--beam-option={name}"


def _parameters(command: str) -> list[typer.core.TyperOption]:
    return [parameter for parameter in command_of(command).params if parameter.param_type_name == "option"]


if __name__ == "__main__":
    line = command_line(sys.argv[1:])
    take_secrets([one.partition("=")[2] for one in line if one.startswith("--env-from=")])
    main(line)
