"""Commands are made from the options that models declare, and nothing of Beam is needed to say what they are."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from llmdo import __version__
from llmdo.pipelines.ask_options import AskOptions
from llmdo.pipelines.chat_options import ChatOptions
from llmdo.pipelines.options import JsonlOptions
from llmdo.pipelines.shown import PANELS, options_of
from llmdo.runners.cli.main import COMMANDS, app, command_of

ALL = ["", *COMMANDS, "ledger prune", "chat explain"]
_SCRIPT = """
import sys
from llmdo.runners.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as left:
    assert left.code == 0, left.code
heavy = {"apache_beam", "grpc", "aiohttp", "boto3", "pyarrow", "numpy"} & sys.modules.keys()
sys.exit(f"imported {heavy}" if heavy else 0)
"""


def without_beam(*script):
    return subprocess.run([sys.executable, "-c", *script], capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("command", ALL)
def test_no_help_imports_beam_or_a_client(command):
    ended = without_beam(_SCRIPT, *command.split(), "--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert f"Usage: -c {command}".rstrip() in ended.stdout
    if command in COMMANDS:
        assert COMMANDS[command].partition(",")[0] in " ".join(ended.stdout.split())


def test_an_output_is_verified_without_beam(tmp_path):
    (tmp_path / "out").mkdir()
    script = "import sys, llmdo.runners.inspecting.verify as v; v.verify(sys.argv[1], []); "
    ended = without_beam(script + "sys.exit('apache_beam' in sys.modules)", str(tmp_path / "out"))
    assert (ended.returncode, ended.stderr) == (0, "")


def test_asking_and_listing_models_need_no_beam():
    modules = "llmdo.runners.inspecting.ask, llmdo.runners.inspecting.models, llmdo.storage.ledger.opening"
    ended = without_beam(f"import sys, {modules}; sys.exit('apache_beam' in sys.modules)")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_package_alone_imports_nothing_of_ours():
    ended = without_beam("import sys, llmdo; print([name for name in sys.modules if name.startswith('llmdo.')])")
    assert ended.stdout == "[]\n"


@pytest.mark.parametrize(
    ("command", "model", "without"),
    [
        ("run", JsonlOptions, {"max_restarts"}),
        ("schedule", JsonlOptions, {"max_restarts"}),
        ("stream", JsonlOptions, {"files", "input", "ready_by"}),
        ("chat", ChatOptions, set()),
        ("ask", AskOptions, set()),
    ],
)
def test_a_command_has_every_option_that_its_model_declares_with_its_words_and_panel(command, model, without):
    declared = {name: one for name, one in options_of(model).items() if name not in without}
    parameters = {one.name: one for one in command_of(command).params}
    assert declared.keys() <= parameters.keys()
    for name, option in declared.items():
        if (command, name) == ("stream", "runner"):
            continue
        assert parameters[name].help == option.shown.help
        if not option.shown.positional:
            assert parameters[name].opts == [option.name.partition("/")[0], *filter(None, [option.shown.short])]
            assert parameters[name].rich_help_panel == option.shown.panel


@pytest.mark.parametrize("model", [JsonlOptions, ChatOptions, AskOptions])
def test_every_option_has_words_and_a_panel_that_help_knows(model):
    for option in options_of(model).values():
        assert option.shown.help and option.shown.help[-1] in ".…"
        assert option.shown.panel in PANELS


@pytest.mark.parametrize("model", [JsonlOptions, ChatOptions])
def test_a_field_without_a_mark_is_not_on_the_command_line(model):
    hidden = {"retry", "continuous", "store"} & model.model_fields.keys()
    assert hidden and not hidden & options_of(model).keys()


def test_panels_stand_in_their_order_in_the_help():
    said = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "120"}).output
    places = [said.index(f"─ {panel} ─") for panel in PANELS]
    assert places == sorted(places)
    assert said.count("─ Input ─") == 1


@pytest.mark.parametrize("arguments", [["--version"], ["-h"], ["run", "-h"]])
def test_the_version_and_a_short_name_for_help(arguments):
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 0
    assert (f"llmdo {__version__}\n" if "--version" in arguments else "Usage") in ended.output
