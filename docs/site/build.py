"""Builds the site of README.md and docs/ into build/docs/site; a link that leads nowhere is an error.

The pages are copied as they lie in the repository, so that each link is right there and on the site.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / "build" / "docs"  # two folders below ROOT, where zensical.toml looks for the docstrings

_PICTURE = re.compile(r"!\[[^\]]*\]\((?!https?:)([^)]+)\)")


def pages() -> Iterator[Path]:
    """All that the site shows."""
    yield from sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "tests" / "README.md"])


def pictures() -> Iterator[Path]:
    """Those that pages show."""
    for page in pages():
        for name in _PICTURE.findall(page.read_text(encoding="utf-8")):
            yield (page.parent / name).resolve()


def main() -> int:
    """Returns the exit code."""
    shutil.rmtree(PLACE, ignore_errors=True)
    for page in (*pages(), *pictures()):
        copy = PLACE / "pages" / page.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(page, copy)
    shutil.copyfile(Path(__file__).with_name("zensical.toml"), PLACE / "zensical.toml")
    zensical = Path(sys.executable).with_name("zensical")
    return subprocess.run([zensical, "build", "--strict", "--clean"], cwd=PLACE, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
