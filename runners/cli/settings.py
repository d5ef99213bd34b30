"""What sets a command's options where it is not given them: variables of the environment, then llmdo.toml.

``LLMDO_`` and an option's name in capitals is its variable. The working folder's ``llmdo.toml``, or else
``[tool.llmdo]`` in its ``pyproject.toml``, has options for all commands, and in a table with a command's name for that
one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from llmdo.pipelines.shown import DATAFLOW, FLINK
from llmdo.pipelines.usage import UsageError

SETTINGS_FILE, PYPROJECT = "llmdo.toml", "pyproject.toml"
# Options about one call of a command.
_ONCE = frozenset({"help", "json", "dry-run", "progress", "all", "yes", "errors", "json-progress", "watch", "call"})
# Their variables hold for commands without the option, too, and are read where they are needed.
_READ_ELSEWHERE = frozenset({"queue", "gateway"})
# These decide which program runs here, or who gets keys or files: a folder that somebody else made must not set them.
_NOT_OF_A_FILE = frozenset({"gateway", "header", "prism-location", "allow-open-ports", "livestore", "media-from"})
_PANELS_NOT_OF_A_FILE = frozenset({FLINK.title, DATAFLOW.title})
# A schedule's runs are runs: they read what stands there for `llmdo run`.
_READS = {"schedule": "run"}


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """A file's options, by the names that they have there. ``path`` is None if there is no file."""

    path: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For messages."""
        return "" if self.path is None else self.path.name


def read_settings(folder: Path) -> SettingsFile:
    """What a folder sets. Raises UsageError for a file that cannot be read."""
    for name in (SETTINGS_FILE, PYPROJECT):
        path = folder / name
        try:
            found = tomllib.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            raise UsageError([f"{name} cannot be read: {getattr(error, 'strerror', None) or error}"]) from None
        if name == PYPROJECT:
            found = found.get("tool", {}).get("llmdo")
        if isinstance(found, dict):
            return SettingsFile(path, found)
    return SettingsFile()


def settable(command: Any) -> Iterator[tuple[str, Any]]:
    """A command's parameters that are set this way, by name; of a group also those of its commands."""
    for one in command.params:
        if one.param_type_name == "argument":
            name = one.name if one.name == "output" else ""
        else:
            name = max(one.opts, key=len).lstrip("-")
        if name and name not in _ONCE and one.expose_value:
            yield name, one
    for inner in getattr(command, "commands", {}).values():
        yield from settable(inner)


def variable_of(name: str) -> str:
    """An option's variable.

    >>> variable_of("max-cost")
    'LLMDO_MAX_COST'
    """
    return f"LLMDO_{name.upper().replace('-', '_')}"


def defaults(
    name: str, command: Any, found: SettingsFile, all_commands: Callable[[], Mapping[str, Any]]
) -> dict[str, Any]:
    """Gives a command's options their variables; returns what a file sets of them, by parameter.

    Raises UsageError for a name that no command knows. ``all_commands`` is asked only if this command does not know it.
    """
    ours = dict(settable(command))
    for option, parameter in ours.items():
        if option not in _READ_ELSEWHERE:
            parameter.envvar, parameter.show_envvar = variable_of(option), False
    section = found.options.get(_READS.get(name, name))
    given = {key: value for key, value in found.options.items() if not isinstance(value, dict)}
    own = dict(section) if isinstance(section, dict) else {}
    if any(_spelled(key) not in ours for key in (*given, *own)):
        check_names(found, all_commands())
    _check_trust(found, {_spelled(key): ours[_spelled(key)] for key in (*given, *own) if _spelled(key) in ours})
    values = {ours[_spelled(key)].name: _plain(value) for key, value in (given | own).items() if _spelled(key) in ours}
    inner = dict.fromkeys(getattr(command, "commands", {}), values)
    return {**values, **inner}


def _check_trust(found: SettingsFile, options: Mapping[str, Any]) -> None:
    """Raises UsageError for options that a file must not set."""
    problems = [
        f"{found.name}: --{name} decides which program runs, or who gets keys: give it as an option, or as "
        f"{variable_of(name)}"
        for name, option in options.items()
        if name in _NOT_OF_A_FILE or getattr(option, "rich_help_panel", None) in _PANELS_NOT_OF_A_FILE
    ]
    if problems:
        raise UsageError(problems)


def check_names(found: SettingsFile, commands: Mapping[str, Any]) -> None:
    """Raises UsageError if a file has what no command knows."""
    known = {name: {option for option, _ in settable(command)} for name, command in commands.items()}
    every = set().union(*known.values())
    problems = []
    for key, value in found.options.items():
        if not isinstance(value, dict):
            problems += _unknown(found, key, every, "no command has")
        elif key not in known:
            problems.append(f"{found.name}: [{key}] is no command: write one of {', '.join(known)}")
        elif key in _READS:
            problems.append(f"{found.name}: write [{_READS[key]}] instead of [{key}]: it holds for both")
        else:
            names = known[key].union(*(known[other] for other, read in _READS.items() if read == key))
            for name in value:
                problems += _unknown(found, name, names, f"llmdo {key} does not have")
    if problems:
        raise UsageError(problems)


def _unknown(found: SettingsFile, key: str, known: set[str], who: str) -> list[str]:
    if _spelled(key) in known:
        return []
    near = get_close_matches(_spelled(key), known, 1)
    return [f"{found.name}: {who} the option {key!r}" + (f": did you mean {near[0]}?" if near else ": remove it")]


def _spelled(key: str) -> str:
    return key.replace("_", "-")


def _plain(value: Any) -> Any:
    """A value as the command line reads it."""
    return value.isoformat() if isinstance(value, datetime | date | time) else value
