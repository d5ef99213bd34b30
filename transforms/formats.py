"""The formats that files of prompts may have: by which endings each is known, and what a position in it is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from llmdo.storage.output.manifests import FormatName, Unit

# By a name's ending, in lower case.
PACKINGS: dict[str, Literal["gzip", "zstd"]] = {".gz": "gzip", ".zst": "zstd"}
# Where sizes in bytes are meant for positions that are rows, a row stands for this many bytes.
ROW_BYTES = 128


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of file.

    Attributes:
        endings: of names, in lower case.
        unit: what positions count: bytes of the (uncompressed) content, or rows.
        whole: a file is read from its begin to its end, as a compressed one is; otherwise anywhere.
        packs: whether a file may be compressed as a whole, and have that ending behind its own.
        ambiguous: the name alone does not decide: the content does (``format_by_content``).
        hides: whether, in folders, a name or a folder that begins with ``_`` is not an input, as Spark and Delta
            have it for what they write beside their tables.
    """

    name: FormatName
    endings: tuple[str, ...]
    unit: Unit = "byte"
    whole: bool = False
    packs: bool = True
    ambiguous: bool = False
    hides: bool = True

    @property
    def position_bytes(self) -> int:
        """How many bytes a position stands for where sizes are compared."""
        return ROW_BYTES if self.unit == "row" else 1

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The endings of names, with those of compressed files."""
        packings = ("", *PACKINGS) if self.packs else ("",)
        return tuple(ending + packed for ending in self.endings for packed in packings)


FORMATS: dict[str, Format] = {
    known.name: known
    for known in (
        Format("jsonl", (".jsonl", ".ndjson", ".jsonlines"), hides=False),
        Format("csv", (".csv",), whole=True),
        Format("tsv", (".tsv",), whole=True),
        Format("json", (".json",), whole=True, ambiguous=True),
        Format("parquet", (".parquet", ".pq"), unit="row", packs=False),
    )
}
# In lower case; a file's ending may be in any.
SUFFIXES = tuple(suffix for known in FORMATS.values() for suffix in known.suffixes)
_JSONL = FORMATS["jsonl"]
_BY_ENDING = {ending: known for known in FORMATS.values() for ending in known.endings}


@lru_cache(maxsize=1024)
def format_of(key: str) -> Format:
    """The format that a key's ending says, a compressed file's without the last one; JSONL where it says none."""
    name = key.rpartition("/")[2].lower()
    for packed in PACKINGS:
        name = name.removesuffix(packed)
    _, dot, ending = name.rpartition(".")
    return _BY_ENDING.get(dot + ending, _JSONL)


def is_wanted_name(below: str, only: str = "") -> bool:
    """Whether a path, relative to the folder that was named, ends as an input does: one of format ``only``, or of any.

    >>> is_wanted_name('a/b.CSV.gz'), is_wanted_name('a/b.txt'), is_wanted_name('_delta_log/0.json')
    (True, False, False)
    """
    name = below.lower()
    for known in FORMATS.values():
        if only in ("", known.name) and name.endswith(known.suffixes):
            return not (known.hides and any(part.startswith("_") for part in below.split("/")))
    return False


def endings(only: str = "") -> str:
    """Those of inputs, of one format or of any, for a sentence."""
    known = [one for one in FORMATS.values() if only in ("", one.name)]
    packed, others = (
        ", ".join(ending for one in known if one.packs == packs for ending in one.endings) for packs in (True, False)
    )
    return ", ".join(part for part in (f"{packed} (.gz, .zst)" if packed else "", others) if part)
