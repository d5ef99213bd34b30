from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from llmdo.backends.errors import InvalidRequest
from llmdo.backends.responses import ChatResponse
from llmdo.backends.usage import Usage
from llmdo.runners.inspecting.verify import Verification, render, verify
from llmdo.storage.objects.local import LocalStore
from llmdo.storage.output.jobs import JobRecord, Jobs
from llmdo.storage.output.manifests import (
    Manifest,
    ManifestShard,
    ShardKind,
    ShardRecord,
    file_folder,
    put_shard,
    write_manifest,
)
from llmdo.transforms.answers.rows import answer_row, failure_row
from llmdo.transforms.elements import FileVersion, Line
from llmdo.transforms.prompts.parse import Defaults, parse_prompt

LINES = [
    b'{"id": "a", "prompt": "What is 2 + 2?"}',
    b"",
    b"not JSON at all",
    b'{"custom_id": "c", "prompt": "Name a colour."}\r',
    b'{"prompt": "No id here."}',
    b"  \t",
    b'{"id": 7, "prompt": 8}',
    b'["an", "array"]',
    b"\xff\xfe broken",
    b'{"id": "last", "prompt": "Say bye."}',
]
KEY = "part/prompts.jsonl"


@dataclass
class Output:
    """An output as the pipeline writes it, built row by row with the project's own parts, and easy to damage."""

    root: Path
    key: str = KEY
    lines: Sequence[bytes] = tuple(LINES)
    shard_lines: int = 2
    rows: list[tuple[ShardKind, int, int, bytes]] = field(default_factory=list)
    changes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        content = b"\n".join(self.lines)
        source = self.root / "in" / self.key
        source.parent.mkdir(parents=True, exist_ok=True)
        packers: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstandard.compress}
        pack = packers.get(source.suffix, bytes)
        source.write_bytes(pack(content))
        self.source = source
        info = LocalStore(self.root / "in").stat(self.key)
        self.file = FileVersion(str(self.root / "in"), self.key, info.etag, info.size)
        self.length = len(content)
        self.blank = sum(1 for line in content.split(b"\n")[:-1] if not line.strip())
        self.blank += bool(content) and bool(self.lines[-1]) and not self.lines[-1].strip()
        self.store = LocalStore(self.root / "out")
        self.folder = file_folder("", "", self.key, info.etag)
        at = 0
        for line in self.lines:
            stop = min(at + len(line) + 1, self.length)
            if line.strip():
                self.rows.append(row_of(Line(self.file, at, stop, line.removesuffix(b"\r"))))
            at = stop

    def write(self) -> Output:
        shards: list[ShardRecord] = []
        for kind in ("answers", "errors"):
            rows = [(start, stop, row) for k, start, stop, row in self.rows if k == kind]
            for i in range(0, len(rows), self.shard_lines):
                batch = rows[i : i + self.shard_lines]
                used = [json.loads(row).get("usage") or {} for _, _, row in batch]
                shards.append(
                    put_shard(
                        self.store,
                        self.folder,
                        kind,
                        batch,
                        configuration="c",
                        input_tokens=sum(u.get("input_tokens", 0) for u in used),
                        output_tokens=sum(u.get("output_tokens", 0) for u in used),
                    )
                )
        shards.sort(key=lambda shard: shard.first)
        manifest = Manifest(
            bucket="",
            key=self.key,
            etag=self.file.etag,
            size=self.file.size,
            length=self.length,
            configuration="c",
            run_id="r",
            created_at="2026-01-01T00:00:00.000+00:00",
            answered=sum(s.lines for s in shards if s.kind == "answers"),
            failed=sum(s.lines for s in shards if s.kind == "errors"),
            blank=self.blank,
            input_tokens=sum(s.input_tokens for s in shards),
            output_tokens=sum(s.output_tokens for s in shards),
            shards=tuple(ManifestShard(name=s.name, kind=s.kind, lines=s.lines, tiles=s.tiles) for s in shards),
        )
        write_manifest(self.store, self.folder, manifest.model_copy(update=self.changes))
        return self

    @property
    def shards(self) -> list[Path]:
        return sorted((self.root / "out" / self.folder).glob("*.jsonl"))

    def check(self, *, with_source: bool = True) -> Verification:
        return verify(str(self.root / "out"), [str(self.root / "in")] if with_source else [])


def row_of(line: Line) -> tuple[ShardKind, int, int, bytes]:
    try:
        prompt = parse_prompt(line.data, "r", Defaults("workers-ai/@cf/a/b"), lambda *_: 1)
    except InvalidRequest as error:
        return "errors", line.start, line.stop, failure_row(line, error, 0)
    response = ChatResponse("four", "stop", Usage(5, 2), "@cf/a/b", "q")
    return "answers", line.start, line.stop, answer_row(prompt, line, response, 1, 0.1)


def edit(output: Output, position: int, change: Callable[[dict[str, Any]], None]) -> None:
    kind, start, stop, row = output.rows[position]
    document = json.loads(row)
    change(document)
    output.rows[position] = (kind, start, stop, json.dumps(document).encode())


def offset(position: int) -> int:
    """Where the line of this number begins in LINES."""
    return sum(len(line) + 1 for line in LINES[:position])


@pytest.mark.parametrize("key", [KEY, "prompts.jsonl.gz", "prompts.jsonl.zst"])
def test_a_right_output_passes(tmp_path: Path, key: str) -> None:
    result = Output(tmp_path, key).write().check()
    assert result.differences == ()
    assert result.notes == ()
    assert (result.files, result.compared, result.lines) == (1, 1, 8)
    assert (result.answered, result.failed, result.blank) == (4, 4, 2)
    assert (result.input_tokens, result.output_tokens) == (20, 8)
    assert result.as_json()["ok"] is True


@pytest.mark.parametrize(
    "lines",
    [
        [b""],
        [b"", b"", b""],
        [b"\xef\xbb\xbf", b""],
        [b'\xef\xbb\xbf{"prompt": "with a BOM"}', b""],
        [b'{"prompt": "x"}'],
    ],
    ids=["empty", "blank", "only a BOM", "BOM", "no final newline"],
)
def test_odd_sources_pass(tmp_path: Path, lines: list[bytes]) -> None:
    output = Output(tmp_path, lines=lines)
    if lines[0].startswith(b"\xef\xbb\xbf"):
        data = lines[0].removeprefix(b"\xef\xbb\xbf")
        output.rows = [row_of(Line(output.file, 0, len(lines[0]) + 1, data))] if data else []
        output.blank = 0 if data else 1
    assert output.write().check().differences == ()


def test_a_line_over_the_limit_may_have_an_error_row_without_its_text(tmp_path: Path) -> None:
    output = Output(tmp_path)
    edit(output, 1, lambda row: row.update(raw=None))
    assert output.write().check().ok


def test_an_error_line_that_was_fed_back_keeps_its_ids(tmp_path: Path) -> None:
    error = {"class": "BadLine", "offset": 3, "length": 9}
    inner = json.dumps({"id": "inner", "prompt": "hello"})
    lines = [json.dumps({"raw": inner, "error": error}).encode(), json.dumps({"id": 1, "error": error}).encode()]
    assert Output(tmp_path, lines=lines).write().check().differences == ()


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    output = Output(tmp_path).write()
    shard = output.shards[-1]
    shard.unlink()
    assert output.check().differences == (
        f"{KEY}: {shard.name} is in the manifest and not in the output",
        f"{KEY}: offset {offset(4)}: this line is in no shard",
        f"{KEY}: offset {offset(9)}: this line is in no shard",
        f"{KEY}: answered: 2 in the shards, 4 in the manifest",
        f"{KEY}: input tokens: 10 in the shards, 20 in the manifest",
        f"{KEY}: output tokens: 4 in the shards, 8 in the manifest",
    )


def test_a_row_in_two_shards_is_named_with_both(tmp_path: Path) -> None:
    output = Output(tmp_path, shard_lines=1)
    kind, start, stop, row = output.rows[0]
    edit_of = json.loads(row) | {"latency_ms": 9}
    output.rows.append((kind, start, stop, json.dumps(edit_of).encode()))
    result = output.write().check()
    assert any("offset 0: this line is in shard-" in t and "and again in shard-" in t for t in result.differences)
    alone = output.check(with_source=False)
    assert any("offset 0 in shard-" in t and "another row has this line" in t for t in alone.differences)


def test_a_missing_row_is_named_by_its_offset(tmp_path: Path) -> None:
    output = Output(tmp_path)
    del output.rows[2]
    result = output.write().check()
    assert result.differences == (f"{KEY}: offset {offset(3)}: this line is in no shard",)


def test_a_missing_row_is_found_without_the_source_too(tmp_path: Path) -> None:
    output = Output(tmp_path, lines=[line for line in LINES if line.strip()])
    del output.rows[2]
    assert "no row has" in output.write().check(with_source=False).differences[0]


def test_a_wrong_offset_is_found(tmp_path: Path) -> None:
    output = Output(tmp_path, shard_lines=1)
    kind, start, stop, row = output.rows[2]
    document = json.loads(row)
    document["source"]["offset"] += 1
    output.rows[2] = (kind, start + 1, stop + 1, json.dumps(document).encode())
    result = output.write().check()
    assert any(f"offset {start}: this line is in no shard" in text for text in result.differences)
    assert any(f"offset {start + 1} in shard-" in text and "no line begins" in text for text in result.differences)


def test_a_wrong_length_is_found(tmp_path: Path) -> None:
    output = Output(tmp_path, shard_lines=1)
    kind, start, stop, _ = output.rows[2]
    edit(output, 2, lambda row: row["source"].update(length=stop - start - 1))
    output.rows[2] = (kind, start, stop - 1, output.rows[2][3])
    result = output.write().check()
    assert any(f"offset {start} in shard-" in t and "and the line" in t for t in result.differences)


@pytest.mark.parametrize("name", ["answered", "failed", "blank", "input_tokens", "output_tokens", "length", "size"])
def test_a_wrong_figure_in_the_manifest_is_found(tmp_path: Path, name: str) -> None:
    output = Output(tmp_path, changes={name: 3})
    (difference,) = output.write().check().differences
    assert difference.startswith(f"{KEY}: ")
    assert "3" in difference
    assert "manifest" in difference


def test_a_torn_shard_is_found(tmp_path: Path) -> None:
    output = Output(tmp_path).write()
    shard = output.shards[-1]
    shard.write_bytes(shard.read_bytes()[:-20])
    result = output.check()
    assert any(shard.name in text and "does not hold what was written" in text for text in result.differences)
    assert any(f"line 2 of {shard.name} is not a JSON object" in text for text in result.differences)


@pytest.mark.parametrize("change", [{"id": "b"}, {"custom_id": None}])
def test_an_answer_with_another_lines_id_is_found(tmp_path: Path, change: dict[str, Any]) -> None:
    output = Output(tmp_path)
    edit(output, 0, lambda row: row.update(change))
    (difference,) = output.write().check().differences
    assert f"{KEY}: offset 0 in shard-" in difference
    assert f"the answer's {next(iter(change))} is" in difference


@pytest.mark.parametrize(
    ("position", "change"), [(1, {"raw": "not JSON"}), (4, {"prompt": 9}), (6, {"raw_base64": ""})]
)
def test_an_error_row_with_a_changed_line_is_found(tmp_path: Path, position: int, change: dict[str, Any]) -> None:
    output = Output(tmp_path)
    edit(output, position, lambda row: row.update(change))
    (difference,) = output.write().check().differences
    assert f"offset {output.rows[position][1]} in errors-" in difference
    assert "is not the input line with an error added" in difference


def test_a_row_of_another_file_is_found(tmp_path: Path) -> None:
    output = Output(tmp_path)
    edit(output, 0, lambda row: row["source"].update(key="other.jsonl"))
    assert any("is of another file, other.jsonl" in text for text in output.write().check().differences)


def test_shards_that_do_not_count_are_a_note(tmp_path: Path) -> None:
    output = Output(tmp_path).write()
    put_shard(output.store, output.folder, "answers", [(0, 3, b"{}")], configuration="c")
    result = output.check()
    assert result.ok
    assert result.notes == (f"{KEY}: 1 shards are not in the manifest and do not count",)


def test_a_source_that_changed_is_said_and_its_new_version_has_no_manifest(tmp_path: Path) -> None:
    output = Output(tmp_path).write()
    output.source.write_bytes(b'{"prompt": "new"}\n')
    result = output.check()
    assert [text for text in result.notes if "was not compared with its source" in text]
    (difference,) = result.differences
    assert difference.endswith(
        f"{KEY} has no manifest: it has changed since it was answered; run again to answer this version"
    )


def test_local_sources_that_were_not_named_are_said_and_no_error(tmp_path: Path) -> None:
    result = Output(tmp_path).write().check(with_source=False)
    assert result.ok
    assert result.compared == 0
    assert result.notes == (f"{KEY} was not compared with its source: name this version with --input",)


def test_a_source_in_a_bucket_is_found_without_naming_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The bucket is a folder here: which store is opened is what counts.
    opened: list[str] = []

    def open_store(url: str) -> LocalStore:
        opened.append(url)
        return LocalStore(tmp_path / "in")

    monkeypatch.setattr("llmdo.runners.inspecting.verify_file.open_store", open_store)
    output = Output(tmp_path, changes={"bucket": "bucket"})
    output.folder = file_folder("", "bucket", KEY, output.file.etag)
    del output.rows[0]
    result = output.write().check(with_source=False)
    assert opened == ["r2://bucket"]
    assert result.compared == 1
    assert result.differences == (f"r2://bucket/{KEY}: offset 0: this line is in no shard",)


def test_a_source_that_cannot_be_decompressed_is_a_difference(tmp_path: Path) -> None:
    output = Output(tmp_path, "prompts.jsonl.gz")
    stat = output.source.stat()
    output.source.write_bytes(output.source.read_bytes()[:-20] + b"\xff" * 20)
    os.utime(output.source, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # damaged on the disk, not changed by anybody
    result = output.write().check()
    assert result.compared == 0
    assert "prompts.jsonl.gz: its source cannot be read: " in result.differences[-1]
    assert (result.answered, result.failed) == (4, 4)


def test_inputs_without_a_manifest_are_differences_that_say_whether_they_are_in_work(tmp_path: Path) -> None:
    output = Output(tmp_path).write()
    inputs = LocalStore(tmp_path / "in")
    inputs.put("new.jsonl", b"{}\n")
    etag = inputs.put("open.jsonl", b"{}\n")
    record = JobRecord(
        store_url=inputs.url, key="open.jsonl", etag=etag, size=3, notification={}, configuration="c", run_id="r"
    )
    Jobs(output.store, "").claim(record, lambda run_id: False)
    result = output.check()
    assert result.in_work == (f"{inputs.url}/open.jsonl",)
    assert sorted(text.removeprefix(inputs.url) for text in result.differences) == [
        "/new.jsonl has no manifest: it was never started; run again to answer it",
        "/open.jsonl has no manifest: it is in progress, and the next run finishes it",
    ]
    assert output.check(with_source=False).ok


def test_an_output_without_a_manifest_and_an_input_without_files_do_not_pass(tmp_path: Path) -> None:
    result = verify(str(tmp_path), [str(tmp_path / "typo*.jsonl")])
    assert [text.partition(": ")[2] for text in result.differences] == [
        "no file of prompts is there",
        "there is no manifest; give the --output of a run",
    ]


def test_a_manifest_that_cannot_be_read_is_a_difference(tmp_path: Path) -> None:
    output = Output(tmp_path).write()
    output.store.put(output.folder + "_manifest.json", b"{")
    assert "is not a manifest that this version can read" in output.check(with_source=False).differences[0]


def test_many_differences_of_one_file_are_counted_and_not_listed(tmp_path: Path) -> None:
    output = Output(tmp_path, lines=[b'{"prompt": "x"}'] * 50, shard_lines=10)
    for position in range(50):
        edit(output, position, lambda row: row.update(id="wrong"))
    result = output.write().check()
    assert len(result.differences) == 21
    assert result.differences[-1] == f"{KEY}: and 30 more"


def test_what_is_shown_has_the_counts_and_the_verdict(tmp_path: Path) -> None:
    output = Output(tmp_path).write()
    console = Console(width=120, record=True, file=(tmp_path / "shown").open("w"))
    console.print(render(output.check()))
    output.shards[0].unlink()
    console.print(render(output.check()))
    shown = console.export_text()
    assert "Every line is in exactly one shard" in shown
    assert "differs: part/prompts.jsonl: " in shown
    assert "The output is not what" in shown


def _drop(output: Output, rng: random.Random) -> None:
    del output.rows[rng.randrange(len(output.rows))]


def _double(output: Output, rng: random.Random) -> None:
    kind, start, stop, row = rng.choice(output.rows)
    output.shard_lines = 1  # put_shard itself refuses to write a line twice into one shard
    output.rows.append((kind, start, stop, row.replace(b'"attempts":', b'"attempts": ')))


def _shift(output: Output, rng: random.Random) -> None:
    output.shard_lines = 1
    position = rng.randrange(len(output.rows))
    kind, start, stop, row = output.rows[position]
    by = rng.choice([-1, 1, 5])
    place = "source" if kind == "answers" else "error"
    document = json.loads(row)
    document[place]["offset"] = max(0, start + by)
    document[place]["length"] = max(1, stop - start - rng.choice([0, by]))
    if (document[place]["offset"], document[place]["length"]) == (start, stop - start):
        document[place]["length"] += 1
    new = document[place]["offset"]
    output.rows[position] = (kind, new, new + document[place]["length"], json.dumps(document).encode())


def _swap(output: Output, rng: random.Random) -> None:
    """Two rows of one kind change their places: every count stays right."""
    output.shard_lines = 1
    kind = rng.choice(["answers", "errors"])
    i, j = rng.sample([n for n, row in enumerate(output.rows) if row[0] == kind], 2)
    place = "source" if kind == "answers" else "error"
    first, second = json.loads(output.rows[i][3]), json.loads(output.rows[j][3])
    first[place], second[place] = second[place], first[place]
    output.rows[i] = (*output.rows[i][:3], json.dumps(second).encode())
    output.rows[j] = (*output.rows[j][:3], json.dumps(first).encode())


def _miscount(output: Output, rng: random.Random) -> None:
    name = rng.choice(["answered", "failed", "blank", "length", "size", "input_tokens", "output_tokens"])
    output.changes[name] = rng.choice([0, 1, 1000])


def _flip(output: Output, rng: random.Random) -> None:
    output.write()
    path = rng.choice(output.shards)
    body = bytearray(path.read_bytes())
    body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
    path.write_bytes(body)


def _cut(output: Output, rng: random.Random) -> None:
    output.write()
    path = rng.choice(output.shards)
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    damage=st.sampled_from([_drop, _double, _shift, _swap, _miscount, _flip, _cut]),
    shard_lines=st.integers(1, 4),
)
def test_random_damage_is_always_found(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    damage: Callable[[Output, random.Random], None],
    shard_lines: int,
) -> None:
    output = Output(tmp_path_factory.mktemp("damaged"), shard_lines=shard_lines)
    damage(output, random.Random(seed))
    if not (output.root / "out").exists():
        output.write()
    result = output.check()
    assert not result.ok
    assert all(KEY in text for text in result.differences)


@settings(max_examples=60)
@given(
    lines=st.lists(st.sampled_from([*LINES, b"  ", b"{}", b'{"id": null, "prompt": "x"}']), min_size=1, max_size=30),
    shard_lines=st.integers(1, 7),
    key=st.sampled_from(["p.jsonl", "p.jsonl.gz", "p.jsonl.zst"]),
)
def test_what_is_right_always_passes(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], shard_lines: int, key: str
) -> None:
    output = Output(tmp_path_factory.mktemp("right"), key, lines, shard_lines).write()
    assert output.check().differences == ()
    assert output.check(with_source=False).ok
