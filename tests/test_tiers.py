"""Which cases of a parametrised test are in the fast tier."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULE = """
import pytest

@pytest.mark.fast({names})
@pytest.mark.parametrize("runner", ["direct", "prism"])
@pytest.mark.parametrize("lines", [1, 10, 100])
def test_it(runner, lines): ...

def test_another(): ...
"""


def collected(folder: Path, names: str, tier: str) -> tuple[set[str], str]:
    """The ids of the cases that a tier has, and all that pytest writes."""
    (folder / "test_module.py").write_text(MODULE.format(names=names))
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    fast\n    slow\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.tiers", "--collect-only", "-q", "-m", tier, str(folder)]
    done = subprocess.run(
        [*command, "-c", str(folder / "pytest.ini")], check=False, cwd=ROOT, capture_output=True, text=True
    )
    return {
        line.partition("::")[2] for line in done.stdout.splitlines() if "::test_" in line
    }, done.stdout + done.stderr


def test_the_named_cases_are_fast_and_the_others_slow(tmp_path):
    fast, _ = collected(tmp_path, '"10-prism", "1-*"', "not slow")
    slow, _ = collected(tmp_path, '"10-prism", "1-*"', "slow")
    assert fast == {"test_it[1-direct]", "test_it[1-prism]", "test_it[10-prism]", "test_another"}
    assert slow == {"test_it[10-direct]", "test_it[100-direct]", "test_it[100-prism]"}


def test_a_name_that_no_case_has_is_an_error(tmp_path):
    _, told = collected(tmp_path, '"1-direct", "1-flink"', "not slow")
    assert "no case is named 1-flink" in told
