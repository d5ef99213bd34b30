"""What the page on troubles quotes is what the program says, and it has all classes of errors of lines."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

from llmdo.backends import errors
from llmdo.runners.exporting.metrics import CALL_LABELS, CALL_SECONDS
from llmdo.runners.exporting.scheduled import SCHEDULED
from llmdo.runners.exporting.totals import FIGURES
from tests.pages.blocks import ROOT

PAGE = ROOT / "docs" / "guide" / "troubleshooting.md"
ROOMS = ("backends", "local", "pipelines", "runners", "storage", "transforms", "llmdo/settings")
_ROW = re.compile(r"^\| (.+?) \| .*\|$", re.MULTILINE)
_CODE = re.compile(r"`([^`]+)`")


def section(heading: str, page: Path = PAGE) -> str:
    text = page.read_text(encoding="utf-8")
    return text.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def first_cells(table: str) -> list[str]:
    """What stands in backticks in the first cells of the rows below a table's head."""
    return [quoted for cell in _ROW.findall(table)[1:] for quoted in _CODE.findall(cell)]


@pytest.fixture(scope="module")
def said() -> str:
    """All that stands in strings of the product, with ``…`` for what is filled in."""
    found = []
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            found += [_text(node) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if _is_text(node)]
    return "\n".join(re.sub(r"%[.\d,]*[sdfgr]", "…", text) for text in found)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return str(node.value)  # type: ignore[attr-defined]  # a Constant


QUOTED = [
    *first_cells(section("A command does not start")),
    *first_cells(section("A run stops, or leaves something")),
    *(text for text in _CODE.findall(section("It is slow")) if "…" in text),
]


@pytest.mark.parametrize("words", QUOTED)
def test_the_program_says_what_is_quoted(said, words):
    """The words between two placeholders stand in one string, in their order."""
    pattern = "[^\n]*".join(re.escape(part) for part in words.strip("… ").split("…"))
    assert re.search(pattern, said), words


def test_the_page_quotes_enough():
    assert len(QUOTED) > 20


def test_words_that_nothing_says_are_seen(said):
    with pytest.raises(AssertionError):
        test_the_program_says_what_is_quoted(said, "the moon … is made of cheese")


def test_every_class_of_a_lines_errors_is_there():
    """Those that end a line: it cannot be answered, or every try failed."""
    wanted = {"ModelNotAllowed"}  # of a line's own model, transforms/prompts/models.py
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.LineError | errors.Retryable):
            wanted.add(kind.__name__)
    table = section("A line ends as an error")
    assert set(first_cells(table)) == wanted - {"LineError"}


def test_the_metrics_on_the_page_are_those_that_are_served():
    page = ROOT / "docs" / "guide" / "watching.md"
    named = first_cells(section("Prometheus and Kubernetes", page))
    served = {
        f"llmdo_{one.name}{'_total' if one.counter else ''}{f'{{{one.label}}}' if one.label else ''}"
        for one in {*FIGURES, *SCHEDULED}
    }
    served.add(f"{CALL_SECONDS}{{{','.join(CALL_LABELS)}}}")
    assert set(named) == served


def test_the_extras_on_the_page_are_those_of_the_package():
    page = ROOT / "docs" / "guide" / "configuration.md"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(first_cells(section("Extras", page))) == set(project["optional-dependencies"])


def test_the_variables_on_the_page_are_read():
    page = ROOT / "docs" / "guide" / "configuration.md"
    sources = "".join(path.read_text(encoding="utf-8") for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    named = first_cells(section("Environment", page))
    assert len(named) > 20
    assert [name for name in named if name not in sources] == []
