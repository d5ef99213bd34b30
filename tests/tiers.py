"""The two tiers of the suite: what ``make test`` runs, and what only ``make test-slow`` does (marker ``slow``).

``@pytest.mark.fast("direct", "prism-*")`` names the cases of a parametrised test that stay in the fast tier, by their
ids or patterns of them; its other cases become slow.
"""

from __future__ import annotations

from collections.abc import Generator
from fnmatch import fnmatchcase
from typing import Any

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem() -> Generator[None, Any, Any]:
    """Marks the slow cases of each function that pytest has found. Raises UsageError for a name that no case has."""
    found = yield
    if isinstance(found, list):
        _mark_slow([item for item in found if isinstance(item, pytest.Function)])
    return found


def _mark_slow(cases: list[pytest.Function]) -> None:
    """``cases``: all of one test."""
    unused: set[str] = set()
    fits: set[str] = set()
    for case in cases:
        for marker in case.iter_markers("fast"):
            names = set(marker.args)
            mine = {name for name in names if fnmatchcase(_id_of(case), name)}
            unused |= names
            fits |= mine
            if not mine:
                case.add_marker(pytest.mark.slow)
    if unused - fits:
        raise pytest.UsageError(f"{cases[0].nodeid}: no case is named {', '.join(sorted(unused - fits))}")


def _id_of(case: pytest.Function) -> str:
    return case.callspec.id if hasattr(case, "callspec") else ""
