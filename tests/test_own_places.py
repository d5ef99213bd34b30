"""What tests and the processes that they start keep, where, and how long they may take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hypothesis import settings

from llmdo.settings.environment import cache_folder, state_folder
from tests.conftest import TOOLS

SAY = "from llmdo.settings import environment as e; print(e.cache_folder(), e.state_folder())"


def test_the_users_cache_and_ledgers_are_left_alone():
    users = [Path.home() / name for name in (".cache", ".local")]
    told = subprocess.run([sys.executable, "-c", SAY], check=True, capture_output=True, text=True).stdout.split()
    assert told == [str(cache_folder()), str(state_folder())]
    assert not [place for place in told if any(Path(place).is_relative_to(folder) for folder in users)]


def test_tools_are_kept_where_the_user_has_them(monkeypatch):
    links = {name: (cache_folder() / name).readlink() for name in TOOLS}
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert links == {name: cache_folder() / name for name in TOOLS}


def test_an_example_takes_as_long_as_it_takes():
    assert settings.default.deadline is None
