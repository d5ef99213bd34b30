"""The files, modules, options and headings that the documentation names exist."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
import typer.main

from llmdo.backends.telemetry import conventions
from llmdo.runners.cli.main import COMMANDS, app, command_of
from llmdo.runners.exporting.totals import FIGURES
from tests.test_rooms import MAY_IMPORT, imports, modules

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "tests" / "README.md"])
FOLDERS = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and path.name.isalpha())
FILE = re.compile(
    rf"(?<![\w./:-])(?:[\w.-]+/)*[\w.-]+\.py\b|(?<![\w./:-])(?:{FOLDERS})/(?:[\w.-]+/)*(?:[\w-]+\.\w+|(?=`))"
)
MODULE = re.compile(r"(?<![\w./])llmdo(?!\.toml)(?:\.[a-zA-Z_]\w*)+(?!\w*/)")
LINK = re.compile(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]+")
# Of other programs: Maven, mypy, docker, gcloud, Beam's pool of workers, pipx, uv, wrangler, the page, benchmarks.
OTHERS = {"--strict-checksums", "--strict", "--build-arg", "--image", "--sdk-language", "--metadata-file"}
OTHERS |= {
    "--force",
    "--reinstall",
    "--message-retries",
    "--dead-letter-queue",
    "--event-type",
    "--file",
    "--remote",
    "--suffix",
}
OTHERS |= {"--service_port", "--seeds", "--rivals", "--rounds", "--seconds", "--show", "--help", "--sync-port"}
OTHERS |= {"--suffix", "--rows"}
OTHERS |= {
    "--fully_qualified_name_glob",
    "--serve_loopback_worker",
    "--environment_type",
    "--environment_config",
}  # of Beam's expansion service


# What spans and metrics of OpenTelemetry are named.
TELEMETRY = {f"llmdo.{one.dotted or one.name}" for one in FIGURES}
TELEMETRY |= {name for name in vars(conventions).values() if isinstance(name, str)}


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def headings(page: Path) -> set[str]:
    """As anchors."""
    titles = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def options(command) -> set[str]:
    below = getattr(command, "commands", {}).values()
    own = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return own.union(*map(options, below))


def exists(name: str) -> bool:
    module, found = name, None
    while found is None:
        try:
            found = import_module(module)
        except ModuleNotFoundError:
            module = module.rpartition(".")[0]
    for part in name.removeprefix(module).split(".")[1:]:
        found = getattr(found, part, None)
    return found is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page):
    text = text_of(page)
    # Paths of tests are below tests/.
    assert [name for name in FILE.findall(text) if not any((ROOT / top / name).exists() for top in ("", "tests"))] == []
    assert [name for name in set(MODULE.findall(text)) - TELEMETRY if not exists(name)] == []
    known = options(typer.main.get_command(app)).union(*(options(command_of(name)) for name in COMMANDS))
    assert set(OPTION.findall(text)) - known - OTHERS == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_links_to_pages_and_headings_that_exist(page):
    wrong = set()
    for target, heading in LINK.findall(text_of(page)):
        other = (page.parent / target).resolve() if target else page
        if not other.exists() or (heading and heading not in headings(other)):
            wrong.add((target, heading))
    assert wrong == set()


def test_the_patterns_find_what_pages_name():
    text = "\n".join(map(text_of, PAGES))
    assert len(FILE.findall(text)) > 80
    assert len(MODULE.findall(text)) > 5
    assert len(LINK.findall(text)) > 15
    assert len(OPTION.findall(text)) > 150


def test_the_drawing_of_each_room_shows_what_imports_what():
    drawn = dict(re.findall(r"^ (\w+)/ +(.* ▶ .*)$", text_of(ROOT / "docs" / "architecture.md"), re.MULTILINE))
    assert set(drawn) == set(MAY_IMPORT) - {"settings", "pipelines"}
    wrong = set()
    for room, line in drawn.items():
        place = {name: at for at, names in enumerate(line.split("▶")) for name in names.split()}
        parts = {module: module.split(".")[2] for module in modules() if module.startswith(f"llmdo.{room}.")}
        assert set(place) <= set(parts.values())
        for module, part in parts.items():
            below = {name.split(".")[2] for name in imports(modules()[module]) if name.startswith(f"llmdo.{room}.")}
            wrong |= {(room, part, other) for other in below - {part} if place.get(part, -1) >= place.get(other, 99)}
    assert wrong == set()
