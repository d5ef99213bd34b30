"""What stands on the pages as code: fenced blocks, the commands of llmdo in them, and those within sentences."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
# Without CHANGELOG.md, which names what earlier versions had.
PAGES = sorted(
    page for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "tests" / "README.md") if page.is_file()
)
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_INLINE = re.compile(r"(?<!`)`(llmdo [^`]+)`(?!`)")
_ENDS = frozenset("; | & && || ( ) do done |&".split())
_ASSIGNMENT = re.compile(r"[A-Z_]+=.*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block below a heading; ``language`` is "" for what is typed into a shell, or shown."""

    page: Path
    heading: str
    language: str
    text: str


def name_of(page: Path) -> str:
    """For the ids of tests."""
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str = "") -> list[Block]:
    """All blocks of a page in one language."""
    text, found = page.read_text(encoding="utf-8"), []
    for match in _FENCE.finditer(text):
        above = [heading[1] for heading in _HEADING.finditer(_FENCE.sub(_blank, text[: match.start()]))]
        if match[2] == language:
            found.append(Block(page, above[-1] if above else "", language, match[3]))
    return found


def block(page: Path, heading: str) -> str:
    """The text of the first block below a heading."""
    return next(one.text for one in blocks(page) if one.heading == heading)


def commands(text: str, program: str = "llmdo") -> Iterator[list[str]]:
    """The words after a program's name in each of its commands in a piece of shell."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        words: list[str] = []
        for word in [*_words(line), ";"]:
            if word in _ENDS:
                while words and (_ASSIGNMENT.fullmatch(words[0]) or words[0] in ("!", "time")):
                    del words[0]
                if words[:1] == [program]:
                    yield words[1:]
                words = []
            elif not (words and words[-1] in (">", ">>", "<")):
                words.append(word)
            else:
                del words[-1]


def sentences_commands(page: Path) -> set[str]:
    """The commands that stand within the sentences of a page, with their placeholders."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return {" ".join(found.split()) for found in _INLINE.findall(text)}


def _words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        return list(lexer)
    except ValueError:  # output that is shown, with an apostrophe in it
        return []


def _blank(match: re.Match[str]) -> str:
    return ""
