"""Graphs with steps of a user's own: every line comes to one end, is asked as the steps say, and is paid for once."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest

import llmdo
from llmdo.local.stats import prompt_hash
from llmdo.runners.inspecting.verify import verify
from llmdo.runners.running.retry import retry_options
from tests.integration.cloud import MODEL, OUTPUT, Cloud
from tests.integration.openai_service import MODEL as SMALL
from tests.integration.test_end_to_end import wait_until

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "own_pipeline.py"
pytestmark = pytest.mark.timeout(900)

KNOWN = {"A-17": "a lamp, sent on Monday", "B-4": "two red chairs, not sent yet"}
# What each line becomes; of "bad" lines by the steps, and by the next one.
SPAM, NO_TEXT, BROKEN = "SkippedLine", "StepFailed", "BadLine"


def question(at: int) -> tuple[bytes, str]:
    """A line, and what must be asked about it, or the class of its error."""
    order, text = ["A-17", "B-4", "C-9"][at % 3], f"question {at:03}"
    match at % 10:
        case 3:
            return json.dumps({"id": at, "order": order, "text": f"lottery {at}"}).encode(), SPAM
        case 5:
            return json.dumps({"id": at, "order": order}).encode(), NO_TEXT
        case 7:
            return f"{{broken {at}".encode(), BROKEN
    known = KNOWN.get(order, "there is none")
    asked = f"Reply to a customer in one sentence. The order: {known}. The question: {text}"
    return json.dumps({"id": at, "order": order, "text": text}).encode(), asked


def upload(cloud: Cloud, count: int) -> tuple[Counter[str], dict[str, dict[int, str]]]:
    """Two files, one packed, each with a blank line; the hashes of what is asked, and by file and offset the ends."""
    asked: Counter[str] = Counter()
    ends: dict[str, dict[int, str]] = {}
    for name, numbers in {"a.jsonl": range(count), "b.jsonl.gz": range(count, 2 * count)}.items():
        body, ends[name] = b"\n", {}
        for at in numbers:
            line, end = question(at)
            ends[name][len(body)] = end if end in (SPAM, NO_TEXT, BROKEN) else "answer"
            asked.update([prompt_hash(end)] if ends[name][len(body)] == "answer" else [])
            body += line + b"\n"
        cloud.upload(name, gzip.compress(body) if name.endswith(".gz") else body)
    return asked, ends


def example(cloud: Cloud, runner: str) -> subprocess.CompletedProcess[str]:
    arguments = ["r2://llmdo/input/", "--output", OUTPUT, "--model", f"workers-ai/{MODEL}", "--runner", runner]
    return subprocess.run(
        [sys.executable, EXAMPLE, *arguments],
        env=os.environ | cloud.env,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


@pytest.mark.parametrize(
    "runner",
    [
        "direct",
        pytest.param("prism", marks=[pytest.mark.prism, pytest.mark.slow]),
        pytest.param("flink", marks=[pytest.mark.flink, pytest.mark.slow]),
    ],
)
def test_the_example_brings_each_line_to_one_end_and_pays_for_it_once(cloud: Cloud, runner: str) -> None:
    asked, ends = upload(cloud, 40)
    done = example(cloud, runner)
    assert done.returncode == 3, done.stderr
    cloud.check()
    for name, expected in ends.items():
        found = [
            (row["error"]["offset"], row["error"]["class"]) if row["error"] else (row["source"]["offset"], "answer")
            for row in cloud.rows(name)
        ]
        assert sorted(found) == sorted(expected.items())
        failed = sum(end != "answer" for end in expected.values())
        assert f"{name}: done, {len(expected) - failed} answered, {failed} skipped or failed" in done.stdout
    assert cloud.stats()["paid"]["by_prompt"] == asked
    again = example(cloud, runner)
    assert again.returncode == 3, again.stderr
    assert cloud.stats()["paid"]["by_prompt"] == asked


CONTINUOUS = """
import sys
sys.path.insert(0, {examples!r})
import llmdo, own_pipeline
summary = llmdo.run_graph(
    own_pipeline.build, own_steps="orders", prompt=own_pipeline.PROMPT, queue="llmdo-input", output={output!r},
    model={model!r}, runner="prism", continuous=True, batch_seconds=1,
)
print(summary.problem, file=sys.stderr)
sys.exit(summary.exit_code)
"""


@pytest.mark.slow
@pytest.mark.prism
def test_a_continuous_run_answers_what_comes_until_it_is_stopped(cloud: Cloud, tmp_path: Path) -> None:
    asked, ends = upload(cloud, 20)
    text = CONTINUOUS.format(examples=str(EXAMPLE.parent), output=OUTPUT, model=f"workers-ai/{MODEL}")
    log = tmp_path / "log"
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, "-c", text], env=os.environ | cloud.env, stderr=out)
    try:
        wait_until(lambda: done_files(cloud) == len(ends) or process.poll() is not None, 300)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=200)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, log.read_text()
    assert done_files(cloud) == len(ends), log.read_text()
    assert {name: len(cloud.rows(name)) for name in ends} == {name: len(lines) for name, lines in ends.items()}
    assert cloud.stats()["paid"]["by_prompt"] == asked


def done_files(cloud: Cloud) -> int:
    keys = cloud.keys()
    return sum(key.endswith("/_manifest.json") for key in keys)


@pytest.mark.slow
def test_the_example_explains_itself() -> None:
    done = subprocess.run([sys.executable, EXAMPLE, "--help"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "--runner {direct,prism,flink}" in done.stdout


@pytest.mark.slow
def test_the_example_is_strictly_typed_as_a_users_file(tmp_path: Path) -> None:
    copy = tmp_path / "mine.py"
    copy.write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--config-file=", copy],
        env=os.environ | {"MYPYPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.stdout.startswith("Success"), done.stdout + done.stderr


def build_with(change: Any) -> Any:
    """A graph with this function between reading and asking."""

    def build(root: beam.Pipeline, steps: llmdo.Steps) -> Any:
        return (
            root
            | steps.find_files()
            | steps.open_files()
            | steps.read_lines()
            | steps.change_lines(change)
            | steps.infer()
            | steps.write_shards()
            | steps.settle_files()
        )

    return build


def answer(folder: Path, change: Any, build: Any = None, **options: Any) -> llmdo.Summary:
    """Answers ``folder``/in.jsonl into ``folder``/out on the direct runner."""
    given = {"files": [str(folder / "in.jsonl")], "output": str(folder / "out"), "model": SMALL, "runner": "direct"}
    return llmdo.run_graph(build or build_with(change), own_steps="mine", **{**given, **options})


@pytest.fixture
def lines(tmp_path: Path) -> list[dict[str, Any]]:
    found = [{"id": at, "prompt": f"p {at}"} for at in range(20)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in found))
    return found


def rows(folder: Path) -> dict[Any, dict[str, Any]]:
    found = [json.loads(line) for path in (folder / "out").rglob("*-*.jsonl") for line in path.open()]
    assert len({row["id"] for row in found}) == len(found)
    return {row["id"]: row for row in found}


def same(line: dict[str, Any]) -> dict[str, Any]:
    return line


def test_what_a_function_stops_is_resumed_and_nothing_is_asked_twice(service: Any, lines: Any, tmp_path: Path) -> None:
    def stopping(line: dict[str, Any]) -> dict[str, Any]:
        if line["id"] == 12:
            raise llmdo.StopRun("the orders cannot be read: start their database")
        return line

    first = answer(tmp_path, stopping)
    assert (first.exit_code, first.problem) == (1, "the orders cannot be read: start their database")
    assert [file.key for file in first.in_work] == ["in.jsonl"]
    second = answer(tmp_path, same)
    assert (second.exit_code, second.in_work) == (0, ())
    assert service.asked() == sorted(line["prompt"] for line in lines)
    assert sorted(rows(tmp_path)) == [line["id"] for line in lines]
    assert verify(str(tmp_path / "out"), [str(tmp_path / "in.jsonl")]).ok


def test_errors_keep_the_line_of_the_file_and_answers_what_was_added(service: Any, lines: Any, tmp_path: Path) -> None:
    def adding(line: dict[str, Any]) -> dict[str, Any] | llmdo.Skip:
        if line["id"] == 3:
            return llmdo.Skip("not wanted")
        if line["id"] == 4:
            return {**line, "prompt": 4}
        return {**line, "prompt": f"{line['prompt']}, in short", "plan": "free"}

    summary = answer(tmp_path, adding)
    assert (summary.exit_code, summary.counts.answered, summary.counts.failed) == (3, 18, 2)
    found = rows(tmp_path)
    assert {name: found[3][name] for name in ("id", "prompt")} == lines[3]
    assert (found[3]["error"]["class"], found[3]["error"]["message"]) == ("SkippedLine", "not wanted")
    assert {name: found[4][name] for name in ("id", "prompt")} == lines[4]
    assert found[4]["error"]["class"] == "BadLine"
    assert {row["metadata"]["plan"] for at, row in found.items() if at not in (3, 4)} == {"free"}
    assert service.asked() == sorted(f"p {at}, in short" for at in range(20) if at not in (3, 4))
    assert verify(str(tmp_path / "out"), [str(tmp_path / "in.jsonl")]).ok


def test_a_graph_that_could_lose_lines_is_refused_before_any_call(service: Any, lines: Any, tmp_path: Path) -> None:
    def build(root: beam.Pipeline, steps: llmdo.Steps) -> Any:
        read = root | steps.find_files() | steps.open_files() | steps.read_lines()
        kept = read | "Drop spam" >> beam.Filter(lambda tile: not isinstance(tile, llmdo.elements.Line))
        return kept | steps.infer() | steps.write_shards() | steps.settle_files()

    with pytest.raises(llmdo.UsageError, match=r"'Drop spam' stands between .*steps.change_lines"):
        answer(tmp_path, None, build)
    assert service.asked() == []
    assert answer(tmp_path, same).exit_code == 0  # the output is as if nothing had been


def test_other_steps_and_the_command_need_another_output(service: Any, lines: Any, tmp_path: Path) -> None:
    assert answer(tmp_path, same).exit_code == 0
    with pytest.raises(llmdo.UsageError, match="own_steps 'mine' there, 'mine, 2' now"):
        llmdo.run_graph(
            build_with(same),
            own_steps="mine, 2",
            files=[str(tmp_path / "in.jsonl")],
            output=str(tmp_path / "out"),
            model=SMALL,
        )
    with pytest.raises(llmdo.UsageError, match="give its error files to that program, with another output"):
        retry_options(str(tmp_path / "out"), "all")
    assert len(service.asked()) == len(lines)
