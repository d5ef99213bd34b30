"""Tables and arrays as programs write them, and the lines that they are read as, byte by byte."""

import json
from pathlib import Path

import pytest

from llmdo.transforms.elements import Blank, FileVersion, Line
from llmdo.transforms.lines.reading import CUTTERS

GOLDEN = Path(__file__).parents[2] / "golden" / "tables"


def read(path):
    """Each line with its place: its data, or what is wrong with its bytes."""
    file = FileVersion("/in", path.name, "e", 1)
    tiles = [tile for some in CUTTERS[file.kind.name](file, [path.read_bytes()], [(0, None)], 100) for tile in some]
    for tile in tiles:
        place = {"offset": tile.start, "length": tile.stop - tile.start}
        if isinstance(tile, Line):
            yield {
                **place,
                "data": tile.data.decode(errors="replace"),
                **({"problem": tile.problem} if tile.problem else {}),
            }
        elif isinstance(tile, Blank) and not tile.between and tile.total is None:
            yield {**place, "blank": True}


@pytest.mark.parametrize("name", ["excel.csv", "unix.csv", "sheet.tsv", "array.json"])
def test_lines_are_as_the_golden_file_says(name):
    golden = (GOLDEN / f"{name}.lines").read_text(encoding="utf-8")
    assert [json.loads(line) for line in golden.splitlines()] == list(read(GOLDEN / name))
