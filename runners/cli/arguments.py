"""Turns the options that a model declares into a command's parameters, and arguments into the model's values."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel

from llmdo.pipelines.shown import ADVANCED, OUTPUT, PANELS, Option, options_of
from llmdo.pipelines.usage import UsageError
from llmdo.settings.installing import install_command

if TYPE_CHECKING:
    from llmdo.runners.exporting.scheduled import ScheduleFigures
    from llmdo.runners.running.attempt import Watch

AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print the summary as JSON, and no progress.", rich_help_panel=OUTPUT.title),
]
JsonProgress = Annotated[
    bool,
    typer.Option(
        "--json-progress",
        help="Print the run's figures on stderr as JSON, an object every 5 s.",
        rich_help_panel=OUTPUT.title,
    ),
]
MetricsPort = Annotated[
    int | None,
    typer.Option(
        "--metrics-port",
        min=0,
        max=65535,
        help="Serve /metrics for Prometheus, /healthz and /readyz at this port (needs the extra [metrics]).",
        rich_help_panel=ADVANCED.title,
    ),
]
MetricsHost = Annotated[
    str,
    typer.Option(
        "--metrics-host",
        help="The address that --metrics-port listens at; 0.0.0.0 lets other machines read, as probes need it.",
        rich_help_panel=ADVANCED.title,
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Answers to print at the end; default 3 on a terminal, else none: a log would keep them.",
        rich_help_panel=OUTPUT.title,
    ),
]
_AS_THEY_ARE = (bool, int, float, str)
_NO_CLIENT = "--metrics-port needs prometheus-client: run "
_LONGEST_PATH = 1024  # what is longer is surely not the name of a file


@contextmanager
def served(watch: Watch, port: int | None, host: str) -> Iterator[Watch]:
    """Serves what ``watch`` sees at a port, in addition; without a port nothing. Raises UsageError."""
    if port is None:
        yield watch
        return
    try:
        from llmdo.runners.exporting.metrics import serving
    except ImportError:
        raise UsageError([_NO_CLIENT + install_command("[metrics]")]) from None
    with serving(watch, port, host) as both:
        yield both


@contextmanager
def schedule_served(port: int | None, host: str) -> Iterator[ScheduleFigures]:
    """Serves what a schedule reports at a port; without a port nothing. Raises UsageError."""
    if port is None:
        from llmdo.runners.exporting.scheduled import ScheduleFigures

        yield ScheduleFigures()
        return
    try:
        from llmdo.runners.exporting.metrics import serving_schedule
    except ImportError:
        raise UsageError([_NO_CLIENT + install_command("[metrics]")]) from None
    with serving_schedule(port, host) as figures:
        yield figures


def command_app() -> typer.Typer:
    """Holds a command, or a group of commands, which its module adds."""
    return typer.Typer(add_completion=False, rich_markup_mode="markdown")


def takes(
    model: type[BaseModel], only: Iterable[str] = (), without: Iterable[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options of a model: all but those ``without``, or ``only`` some, by their fields' names.

    The command gets what was set as its first argument, a dict that the model takes. Its other parameters stay as
    they are; one that has an option's name takes that option's place. The command raises UsageError for a file that
    cannot be read.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        _, *own = inspect.signature(command, eval_str=True).parameters.values()
        names = {parameter.name for parameter in own}
        wanted = set(only) or options_of(model).keys() - set(without)
        options = [one for name, one in options_of(model).items() if name in wanted - names]

        @wraps(command)
        def run(**arguments: Any) -> None:
            command(_given(options, arguments), **{name: arguments[name] for name in names})

        in_order = sorted(options, key=lambda option: PANELS.index(option.shown.panel))
        parameters = [*map(_parameter, in_order), *(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own)]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # read by inspect
        return run

    return decorate


def _parameter(option: Option) -> inspect.Parameter:
    """A parameter for Typer. What is neither a number nor a flag is text, which the model parses."""
    kind, default = _kind(option), option.info.get_default()
    if kind is list:
        kind, default = list[str] | None, None
    elif option.shown.file:
        kind, default = (Path if option.shown.file == "json" else str) | None, None
    elif default is None or option.shown.default:
        kind, default = kind | None, None
    elif kind is str:
        default = str(default)
    if option.info.is_required() and option.shown.default is None:
        default = inspect.Parameter.empty
    words, panel = option.shown.help, option.shown.panel
    names = [option.name, *([option.shown.short] if option.shown.short else [])]
    choices = _choices(option)
    # The model checks them, with all else that may be wrong.
    listed: dict[str, Any] = {"metavar": "|".join(choices), "autocompletion": lambda: list(choices)} if choices else {}
    marker = (
        typer.Argument(help=words)
        if option.shown.positional
        else typer.Option(
            *names, help=words, rich_help_panel=panel, show_default=option.shown.default or True, **listed
        )
    )
    annotation = Annotated[kind, marker]  # type: ignore[valid-type]  # a value
    return inspect.Parameter(option.field, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _kind(option: Option) -> Any:
    """One of _AS_THEY_ARE, or ``list``; without None."""
    annotation: Any = option.info.annotation
    if NoneType in get_args(annotation):
        (annotation,) = (one for one in get_args(annotation) if one is not NoneType)
    if get_origin(annotation) is tuple:
        return list
    return annotation if annotation in _AS_THEY_ARE and not option.shown.as_text else str


def _choices(option: Option) -> tuple[str, ...]:
    """The values that there are, if they are a few words."""
    found = (option.info.annotation, *get_args(option.info.annotation))
    return next((get_args(one) for one in found if get_origin(one) is Literal), ())


def _given(options: Iterable[Option], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Raises UsageError for a file that cannot be read."""
    given: dict[str, Any] = {}
    for option in options:
        value = arguments[option.field]
        if option.shown.file:
            if value is None:
                continue
            value = json_object_of(value, option.name) if option.shown.file == "json" else _text(value, option.name)
        elif _kind(option) is list:
            value = tuple(value or ())
        holder = given if option.group is None else given.setdefault(option.group, {})
        holder[option.field] = value
    return given


def json_object_of(path: Path, option: str) -> dict[str, Any]:
    """The JSON object in an option's file. Raises UsageError."""
    try:
        value = json.loads(_read_text(path, option))
    except ValueError as error:
        raise UsageError([f"{option} {path} is not valid JSON: {error}"]) from None
    if not isinstance(value, dict):
        raise UsageError([f"{option} {path} does not hold a JSON object: write a JSON Schema"])
    return value


def _text(value: str, option: str) -> str:
    """What is written, or what the file holds whose name follows an ``@``. Raises UsageError."""
    if value.startswith("@"):
        return _read_text(Path(value[1:]), option)
    if value and "\n" not in value and len(value) < _LONGEST_PATH and Path(value).is_file():
        raise UsageError([f"{option} {value} is the name of a file: write @{value} to give what is in it"])
    return value


def _read_text(path: Path, option: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        why = error.strerror
    except UnicodeDecodeError:
        why = "it is not UTF-8"
    raise UsageError([f"{option} {path} cannot be read ({why}): name a text file in UTF-8"])
