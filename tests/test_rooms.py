"""The rooms import downwards only, and the main graph stays a picture."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("backends", "local", "pipelines", "runners", "storage", "transforms")
MAY_IMPORT = {
    "storage": set(),
    "backends": {
        "llmdo.settings.environment",
        "llmdo.settings.network",
        "llmdo.settings.private",
        "llmdo.settings.secrets",
    },
    "transforms": {"backends", "storage"},
    "pipelines": {"transforms", "backends", "storage"},
    "runners": {"pipelines", "transforms", "backends", "storage"},
    "local": {"runners", "pipelines", "transforms", "backends", "storage"},
}
# The command that starts it.
EXCEPTIONS = {("runners/cli/main.py", "llmdo.local.server"), ("runners/cli/main.py", "llmdo.local.settings")}
BEAM_ALLOWED = {"storage/objects/r2_filesystem.py", "storage/ledger/filesystem.py"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def modules(room):
    return sorted((ROOT / room).glob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_below_it(room):
    allowed = MAY_IMPORT[room] | {room}
    wrong = [
        (str(path.relative_to(ROOT)), name)
        for path in modules(room)
        for name in imports(path)
        if name.split(".")[0] in ROOMS
        and not any(name == a or name.startswith(a + ".") for a in allowed)
        and (str(path.relative_to(ROOT)), name) not in EXCEPTIONS
    ]
    assert wrong == []
    assert modules(room)


@pytest.mark.parametrize("room", ["backends", "storage"])
def test_beam_stays_out_of_the_lower_rooms(room):
    with_beam = {
        str(path.relative_to(ROOT)) for path in modules(room) if any(n.startswith("apache_beam") for n in imports(path))
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
