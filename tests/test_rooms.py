"""The rooms and their folders import downwards only, and the main graph stays a picture."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("backends", "local", "pipelines", "runners", "storage", "transforms")
# From the ground up: a room imports the rooms before it, but for those that stand on one floor.
MAY_IMPORT = {
    "settings": set(),
    "storage": {"settings"},
    "backends": {"settings"},
    "transforms": {"settings", "storage", "backends"},
    "pipelines": {"settings", "storage", "backends", "transforms"},
    "runners": {"settings", "storage", "backends", "transforms", "pipelines"},
    "local": {"settings", "storage", "backends"},
}
# The command that starts it.
EXCEPTIONS = {("llmdo.runners.cli.lookup.local", "local")}
BEAM_ALLOWED = {"llmdo.storage.objects.r2_filesystem"}
MOST_FILES, MOST_LINES, MOST_LINES_OF_FUNCTION = 14, 350, 50


@cache
def modules() -> dict[str, Path]:
    """Every module of the product, by its name, with its file."""
    places = {ROOT / room: f"llmdo.{room}" for room in ROOMS} | {ROOT / "llmdo" / "settings": "llmdo.settings"}
    found = {"llmdo": ROOT / "llmdo" / "__init__.py", "llmdo.__main__": ROOT / "llmdo" / "__main__.py"}
    for folder, name in places.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([name, *parts]).removesuffix(".__init__")] = path
    return found


def imports(path: Path) -> Iterator[str]:
    """The full names of all that a file imports: modules, or names in them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(name: str) -> str | None:
    """The module of the product that an imported name is in, or is."""
    while name and name not in modules():
        name = name.rpartition(".")[0]
    return name or None


def folder_of(module: str) -> str:
    """The folder of a module; a module in no folder of its room stands for itself."""
    if modules()[module].name == "__init__.py" or module.count(".") <= 2:
        return module
    return module.rpartition(".")[0]


def test_every_room_is_linked_below_the_one_name():
    for room in ROOMS:
        link = ROOT / "llmdo" / room
        assert link.is_symlink()
        assert link.readlink() == Path("..") / room
    assert len(modules()) > 200


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_the_rooms_below_it(room):
    wrong = {
        (module, name)
        for module, path in modules().items()
        if module.split(".")[1:2] == [room]
        for name in imports(path)
        if name.startswith("llmdo.")
        for other in [name.split(".")[1]]
        if other in MAY_IMPORT and other not in MAY_IMPORT[room] | {room} and (module, other) not in EXCEPTIONS
    }
    assert wrong == set()


def test_folders_import_each_other_in_one_direction():
    below = defaultdict(set)
    for module, path in modules().items():
        for name in imports(path):
            other = module_of(name)
            if other and other != "llmdo" and folder_of(other) != folder_of(module):
                below[folder_of(module)].add(folder_of(other))
    try:
        TopologicalSorter(below).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' → '.join(error.args[1])}")
    assert len(below) > 50


def test_nothing_is_imported_by_a_bare_name():
    """A second copy of a module is a second copy of its state."""
    files = [
        path
        for top in (*ROOMS, "llmdo/settings", "tests", "benchmarks", "examples")
        for path in ROOT.glob(f"{top}/**/*.py")
        if "node_modules" not in path.parts
    ]
    wrong = {(str(path), name) for path in files for name in imports(path) if name.split(".")[0] in ROOMS}
    assert wrong == set()
    assert len(files) > len(modules())


def test_a_folder_is_a_room_and_a_module_is_one_thing():
    folders = defaultdict(list)
    tests = [path for top in ("tests", "benchmarks", "examples") for path in (ROOT / top).rglob("*.py")]
    for path in (*modules().values(), *tests):
        if "node_modules" not in path.parts:
            folders[path.parent].append(path)
    assert {str(folder): len(files) for folder, files in folders.items() if len(files) > MOST_FILES} == {}
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_a_function_fits_on_a_screen():
    """From its name to its last line, docstring included; ruff (C901) limits how complex it is."""
    sizes = {
        f"{name}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: size for name, size in sizes.items() if size > MOST_LINES_OF_FUNCTION} == {}
    assert len(sizes) > 1000


@pytest.mark.parametrize("room", ["settings", "backends", "storage"])
def test_beam_stays_out_of_the_lower_rooms(room):
    with_beam = {
        module
        for module, path in modules().items()
        if module.split(".")[1:2] == [room] and any(name.startswith("apache_beam") for name in imports(path))
    }
    assert with_beam <= BEAM_ALLOWED


def test_the_main_graph_fits_on_a_page_and_its_labels_are_words():
    source = (ROOT / "pipelines" / "jsonl.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) < 60
    labels = [
        node.left.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.RShift) and isinstance(node.left, ast.Constant)
    ]
    assert sorted(labels) == sorted(
        ["Find files", "Open files", "Read lines", "Answer lines", "Write shards", "Settle files"]
    )
