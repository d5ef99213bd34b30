"""The site of README and docs: it has every page and every public name, and no link leads nowhere."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import llmdo
from tests.pages.blocks import PAGES, ROOT, name_of

SITE = ROOT / "docs" / "site"
PICTURES = sorted(ROOT.glob("web/*.png"))
REFERENCE = ROOT / "docs" / "reference.md"


def named(nav: list[Any]) -> Iterator[str]:
    """The pages of a part of the site's table of contents."""
    for entry in nav:
        for place in entry.values():
            yield from [place] if isinstance(place, str) else named(place)


def test_the_site_lists_every_page():
    settings = tomllib.loads((SITE / "zensical.toml").read_text(encoding="utf-8"))["project"]
    listed = list(named(settings["nav"]))
    assert sorted(listed) == sorted(map(name_of, PAGES))
    assert len(set(listed)) == len(listed)


def test_the_reference_has_every_public_name():
    names = re.findall(r"^::: llmdo\.(\w+)$", REFERENCE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(names) == sorted(set(llmdo.__all__) - {"__version__"})


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the site is built of, in another place."""
    place = tmp_path / "checkout"
    for page in PAGES:
        copy = place / page.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(page, copy)
    shutil.copytree(SITE, place / "docs" / "site")
    for picture in PICTURES:
        copy = place / picture.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, copy)
    (place / "llmdo").symlink_to(ROOT / "llmdo")
    return place


def build(checkout: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, checkout / "docs" / "site" / "build.py"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return done.returncode, re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr)


@pytest.mark.slow
def test_the_site_is_built_with_the_reference_and_a_search(checkout):
    code, told = build(checkout)
    assert code == 0, told
    site = checkout / "build" / "docs" / "site"
    built = {str(path.relative_to(site).parent) for path in site.rglob("index.html")}
    assert built >= {"docs/guide/tutorial", "docs/running", "SECURITY"}
    shown = {str(path.relative_to(site)) for path in site.rglob("*.png") if "assets" not in path.parts}
    assert shown == set(map(name_of, PICTURES))
    start = (site / "index.html").read_text(encoding="utf-8")
    assert "llmdo answers files of prompts" in start
    reference = (site / "docs" / "reference" / "index.html").read_text(encoding="utf-8")
    for name in set(llmdo.__all__) - {"__version__"}:
        assert f'id="llmdo.{name}"' in reference, name
    assert "A model by its full name" in reference, "docstrings"
    assert "smollm2" in json.dumps(json.loads((site / "search.json").read_text(encoding="utf-8"))).lower()


@pytest.mark.slow
@pytest.mark.parametrize(
    "link", ["[x](docs/no-such-page.md)", "[x](docs/models.md#no-such-heading)"], ids=["page", "heading"]
)
def test_a_link_that_leads_nowhere_is_an_error(checkout, link):
    with (checkout / "README.md").open("a", encoding="utf-8") as page:
        page.write(f"\n{link}\n")
    code, told = build(checkout)
    assert code != 0
    assert "no-such" in told
