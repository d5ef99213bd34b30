"""Hostile lines and names: each line is accounted for once, and none stops the others."""

from __future__ import annotations

import base64
import gzip
import json
import os
import unicodedata
from pathlib import Path

import pytest

from llmdo.runners.inspecting.verify import verify
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import locate
from llmdo.storage.output.manifests import read_manifest
from tests.integration.cloud import OUTPUT

# Hostile lines, most of them between two good ones; never touched by git (see .gitattributes). What comes of each file:
# how many of its lines are answered, and how many end as errors.
CORPUS = Path(__file__).parent / "corpus"
OUTCOMES = {
    "batch-lines.jsonl": (3, 3),
    "blank-lines-only.jsonl": (0, 0),
    "bom-at-the-start.jsonl": (2, 0),
    "bom-in-the-middle.jsonl": (3, 2),
    "control-characters.jsonl": (3, 4),
    "deep-nesting.jsonl": (2, 2),
    "deep-nesting-without-end.jsonl": (2, 3),
    "duplicate-custom-ids.jsonl": (7, 0),
    "duplicate-keys.jsonl": (4, 0),
    "empty.jsonl": (0, 0),
    "empty-objects.jsonl": (2, 6),
    "huge-numbers.jsonl": (5, 3),
    "invalid-utf-8.jsonl": (2, 6),
    "line-separators.jsonl": (3, 2),
    "lone-surrogates.jsonl": (2, 4),
    "mixed-newlines.jsonl": (6, 1),
    "models-that-are-paths.jsonl": (3, 5),
    "names-of-ours.jsonl": (5, 1),
    "no-final-newline.jsonl": (2, 0),
    "no-numbers.jsonl": (2, 4),
    "no-objects.jsonl": (2, 11),
    "nul.jsonl": (3, 3),
    "one-lone-newline.jsonl": (0, 0),
    "spaces-around.jsonl": (4, 1),
    "wrong-types.jsonl": (5, 6),
}
REFUSED = "utf-16.jsonl"  # as a whole, before any call
GOOD = b'{"prompt": "good"}\n'
# Too large to lie here. The limit of a line is 1 MiB.
LONG = {
    "long-lines.jsonl": (
        GOOD + json.dumps({"prompt": "x" * 1_000_000}).encode() + b"\n" + b"y" * (1 << 20) + b"\n" + GOOD,
        (3, 1),
    ),
    "too-long-lines.jsonl": (
        GOOD + json.dumps({"prompt": "x" * (1 << 20)}).encode() + b"\n" + b"y" * (3 << 20) + b"\r\n" + GOOD,
        (2, 2),
    ),
    "many-short-lines.jsonl": (b"7\n" * 2000, (0, 2000)),
}

HOSTILE_NAMES = [
    "a b.jsonl",
    " .jsonl",
    "plus+and&=?#.jsonl",
    "percent%.jsonl",
    "percent%25.jsonl",
    "slash%2Fin.jsonl",
    "up%2e%2e%2F.jsonl",
    "u\u0308 decomposed.jsonl",
    "\u00fc composed.jsonl",
    "\u202egnp.jsonl",
    "\U0001f600.jsonl",
    "new\nline.jsonl",
    "carriage\rreturn.jsonl",
    "tab\tand\x1b[2J.jsonl",
    "quote'\"<>&;.jsonl",
    "$(touch owned)`touch owned`.jsonl",
    "deep/er/../../../../x.jsonl",
    "../x.jsonl",
    "../" * 60 + "tmp/llmdo-was-here.jsonl",
    "./x.jsonl",
    "//two.jsonl",
    "/etc/x.jsonl",
    "back\\slash\\..\\x.jsonl",
    "C:\\x.jsonl",
    "a.jsonl",
    "a.jsonl/b.jsonl",
    "_open/x.jsonl",
    "_manifest.json/x.jsonl",
    "n" * 250 + ".jsonl",
    "d/" * 300 + "x.jsonl",
    "\u00e4" * 506 + ".jsonl",  # 1,024 bytes below input/: R2's limit
    "NUL\0.jsonl",
    "control\x01\x7f\x9b.jsonl",
    "\ufffe\uffff.jsonl",
]
# What no suffix makes a file of prompts, and what is hidden.
NO_FILES = ["folder.jsonl/", ".jsonl", "...jsonl", ".hidden/a.jsonl", "a.jsonl ", "a.jsonl\n", "jsonl"]


def lines_of(body: bytes) -> dict[tuple[int, int], bytes]:
    """The lines that are not blank, by offset and length: counted without the code under test."""
    found, at = {}, 0
    for line in body.split(b"\n"):
        length = min(len(line) + 1, len(body) - at)
        data = line[3:] if at == 0 and line.startswith(b"\xef\xbb\xbf") else line
        if data.strip(b" \t\r"):
            found[at, length] = data.removesuffix(b"\r")
        at += length
    return found


def rows_in(store, prefix: str) -> list[dict]:
    """All rows that manifests below a prefix count."""
    rows = []
    for info in store.list(prefix):
        folder, _, name = info.key.rpartition("/")
        if name == "_manifest.json":
            for shard in read_manifest(store, folder + "/").shards:
                rows += [json.loads(line) for line in store.read(f"{folder}/{shard.name}")[0].split(b"\n")[:-1]]
    return rows


def place(row: dict) -> tuple[int, int]:
    where = row["error"] or row["source"]
    return where["offset"], where["length"]


def holds(row: dict, line: bytes) -> bool:
    """Whether an error row still has its line: as an object, as text, or as bytes; too long ones only say so."""
    rest = {name: value for name, value in row.items() if name != "error"}
    if row["error"]["class"] == "LineTooLong":
        return rest == {"raw": None} and len(line) > 1 << 20
    try:
        return rest == {"raw": line.decode()} or rest == json.loads(line)
    except UnicodeDecodeError:
        return rest == {"raw_base64": base64.b64encode(line).decode()}
    except ValueError:  # no JSON, and another text
        return False


def check_rows(rows: list[dict], body: bytes, outcome: tuple[int, int]) -> None:
    lines = lines_of(body)
    assert sorted(map(place, rows)) == sorted(lines)
    failed = [row for row in rows if row["error"]]
    assert (len(rows) - len(failed), len(failed)) == outcome
    assert all(row["error"]["message"] and holds(row, lines[place(row)]) for row in failed)


def bodies() -> dict[str, tuple[bytes, tuple[int, int]]]:
    return {name: ((CORPUS / name).read_bytes(), outcome) for name, outcome in OUTCOMES.items()} | LONG


def test_the_corpus_is_as_it_was_written():
    assert {path.name for path in CORPUS.iterdir()} == OUTCOMES.keys() | {REFUSED}
    assert sum(path.stat().st_size for path in CORPUS.iterdir()) < 100_000
    assert b"\r\n" in (CORPUS / "mixed-newlines.jsonl").read_bytes()
    assert (CORPUS / REFUSED).read_bytes()[:2] in (b"\xff\xfe", b"\xfe\xff")
    assert "tests/faults/corpus/* -text" in (CORPUS.parents[2] / ".gitattributes").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["direct", pytest.param("prism", marks=pytest.mark.prism)])
def test_every_hostile_line_is_accounted_for_once(cloud, runner):
    files = bodies()
    for name, (body, _) in files.items():
        cloud.upload(name, body)
    summary = cloud.run(runner=runner)
    assert (summary.problem, list(summary.in_work), dict(summary.left), summary.exit_code) == (None, [], {}, 3)
    cloud.check()
    for name, (body, outcome) in files.items():
        check_rows(cloud.rows(name), body, outcome)
    assert cloud.backlog() == 0


def test_hostile_lines_of_local_files_are_accounted_for_once(cloud, tmp_path):
    files, inputs, output = bodies(), tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    for name, (body, _) in files.items():
        (inputs / name).write_bytes(body)
    summary = cloud.run(files=(str(inputs),), output=str(output), queue=None)
    assert (summary.problem, list(summary.in_work), summary.exit_code) == (None, [], 3)
    assert verify(str(output), [str(inputs)]).differences == ()
    store = open_store(str(output))
    for name, (body, outcome) in files.items():
        check_rows(rows_in(store, f"{name}/"), body, outcome)


def test_a_file_that_is_not_utf_8_ends_by_itself(cloud):
    cloud.upload(REFUSED, (CORPUS / REFUSED).read_bytes())
    cloud.upload("good.jsonl", GOOD)
    summary = cloud.run()
    found = {settled.file.key: settled for settled in summary.settled}
    assert (summary.exit_code, found["input/good.jsonl"].status, summary.counts.failed) == (3, "done", 0)
    assert "UTF-16" in found[f"input/{REFUSED}"].reason
    assert cloud.keys("output/_open/") == []


@pytest.mark.slow
def test_all_hostile_lines_in_one_file_stay_apart(cloud):
    files = [(body, outcome) for name, (body, outcome) in bodies().items() if name not in LONG]
    whole = b"".join(body if body.endswith(b"\n") or not body else body + b"\n" for body, _ in files)
    cloud.upload("all.jsonl", whole)
    cloud.run(range_bytes=1000)
    cloud.check()
    answered, failed = (sum(outcome[i] for _, outcome in files) for i in (0, 1))
    # Where it is not the first of its file, a byte order mark is a mistake.
    check_rows(cloud.rows("all.jsonl"), whole, (answered - 1, failed + 1))


def prompt_of(name: str) -> bytes:
    return json.dumps({"prompt": f"asked in {name}"}).encode() + b"\n"


@pytest.fixture
def named(cloud):
    """Objects with hostile names, each with a prompt of its own."""
    for name in [*HOSTILE_NAMES, *NO_FILES]:
        cloud.upload(name, prompt_of(name))
    return cloud


def check_names(cloud, summary, output: str, prefix: str) -> None:
    """Each name has one manifest and one answer, and was paid for once."""
    assert (summary.problem, list(summary.in_work), dict(summary.left), summary.exit_code) == (None, [], {}, 0)
    assert verify(output, ["r2://llmdo/input/"]).differences == ()
    keys = [f"input/{name}" for name in HOSTILE_NAMES]
    assert sorted(settled.file.key for settled in summary.settled) == sorted(keys)
    where = locate(output)
    rows = rows_in(open_store(where.store_url), prefix)
    assert sorted(row["source"]["key"] for row in rows) == sorted(keys)
    paid = cloud.stats()["paid"]
    assert paid["calls"] == len(keys)
    assert set(paid["by_prompt"].values()) == {1}


def test_the_longest_name_is_as_long_as_r2_allows(cloud):
    assert max(len(f"input/{name}".encode()) for name in HOSTILE_NAMES) == 1024
    assert len(set(HOSTILE_NAMES)) == len(HOSTILE_NAMES)
    composed = [unicodedata.normalize("NFC", name) for name in HOSTILE_NAMES]
    assert composed != HOSTILE_NAMES


@pytest.mark.fast("queue")
@pytest.mark.parametrize("place", ["queue", "listing"])
def test_hostile_names_are_data_and_never_paths(named, place):
    summary = named.run(**({"input": "r2://llmdo/input/"} if place == "listing" else {}))
    check_names(named, summary, OUTPUT, "output/")
    assert named.keys("output/_open/") == named.keys("output/_dead/") == []
    assert all(key.startswith(("input/", "output/")) for key in named.keys(""))
    if place == "queue":
        assert named.backlog() == 0


def test_hostile_names_stay_inside_a_local_output(named, tmp_path):
    output = tmp_path / "deep" / "er" / "out"
    summary = named.run(input="r2://llmdo/input/", output=str(output))
    check_names(named, summary, str(output), "")
    others = [p for p in tmp_path.rglob("*") if p.is_file() and not p.is_relative_to(output)]
    assert [p for p in others if p.relative_to(tmp_path).parts[0] not in ("cloudflare", "state")] == []
    assert not Path("/tmp/llmdo-was-here.jsonl").exists()
    assert not Path("/etc/x.jsonl").exists()
    assert not Path("owned").exists()


def test_hostile_names_of_local_files_are_data_too(cloud, tmp_path):
    inputs, output = tmp_path / "in", tmp_path / "out"
    names = [n for n in HOSTILE_NAMES if "\0" not in n and all(len(part.encode()) < 256 for part in n.split("/"))]
    names = [n for n in names if not {"", ".", ".."} & set(n.split("/")) and n != "a.jsonl/b.jsonl"]
    assert len(names) > 20
    for name in names:
        path = inputs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(prompt_of(name))
    os.mkfifo(inputs / "pipe.jsonl")
    (inputs / "folder.jsonl").mkdir()
    (inputs / "loop.jsonl").symlink_to(inputs / "loop.jsonl")
    summary = cloud.run(files=(str(inputs),), output=str(output), queue=None)
    assert (summary.problem, list(summary.in_work), summary.exit_code) == (None, [], 0)
    assert verify(str(output), [str(inputs)]).differences == ()
    assert sorted(row["source"]["key"] for row in rows_in(open_store(str(output)), "")) == sorted(names)


def test_a_local_name_that_is_no_text_is_said_and_can_be_mended(cloud, tmp_path, caplog):
    inputs, output = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    wrong = Path(os.fsdecode(os.fsencode(inputs) + b"/\xff.jsonl"))
    for path in (inputs / "good.jsonl", wrong):
        path.write_bytes(prompt_of("a file"))
    summary = cloud.run(files=(str(inputs),), output=str(output), queue=None)
    assert (summary.exit_code, summary.counts.answered) == (0, 1)
    assert "/\\udcff.jsonl'): the name is not UTF-8, which no output could name: rename it" in caplog.text
    wrong.rename(inputs / "mended.jsonl")
    assert cloud.run(files=(str(inputs),), output=str(output), queue=None).exit_code == 0
    assert verify(str(output), [str(inputs)]).differences == ()


def test_a_bomb_of_lines_ends_as_stale_and_stops_no_other_file(cloud):
    line = prompt_of("a bomb")
    cloud.upload("bomb.jsonl.gz", gzip.compress(line * 100_000))
    cloud.upload("large.jsonl", line * 1000)
    cloud.upload("small.jsonl", line)
    summary = cloud.run(max_file_bytes=10_000)
    found = {settled.file.key: settled for settled in summary.settled}
    assert {key: settled.status for key, settled in found.items()} == {
        "input/bomb.jsonl.gz": "stale",
        "input/large.jsonl": "stale",
        "input/small.jsonl": "done",
    }
    for name in ("bomb.jsonl.gz", "large.jsonl"):
        reason = f"r2://llmdo/input/{name} holds more than 10,000 bytes: raise --max-file-bytes, or split the file"
        assert found[f"input/{name}"].reason == reason
    assert (summary.problem, list(summary.in_work), summary.exit_code) == (None, [], 3)
    assert cloud.keys("output/_open/") == []
    assert cloud.stats()["paid"]["calls"] <= 1 + 10_000 // len(line)
