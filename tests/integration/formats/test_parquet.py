"""Parquet files end to end: the answers, ids and metadata of the same data as JSONL, whatever runs them."""

from __future__ import annotations

import json
from contextlib import nullcontext
from datetime import datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from llmdo.runners.inspecting.verify import verify
from llmdo.runners.running.retry import retry, retry_options
from tests.faults.test_kills import wait_until
from tests.integration.cloud import MODEL, OUTPUT
from tests.transforms.tables.parquet_files import parquet, prompts

pytestmark = pytest.mark.timeout(600)
COUNT = 230
WHEN = datetime(2024, 5, 1, 12, 30)
KEPT = ("id", "custom_id", "metadata", "model", "usage", "warnings")
WHERE = ("--input", "r2://llmdo/input/", "--output", OUTPUT, "--model", MODEL, "--max-line-bytes", "2000")
WAYS = {
    "direct": ("run", *WHERE),
    "processes": ("run", *WHERE, "--processes", "2", "--range-bytes", "5000"),
    "prism": ("run", *WHERE, "--runner", "prism", "--range-bytes", "5000"),
    "flink": ("run", *WHERE, "--runner", "flink", "--range-bytes", "5000"),
    "events": ("run", "--queue", "llmdo-input", *WHERE[2:]),
    "stream": ("stream", "--queue", "llmdo-input", *WHERE[2:], "--runner", "prism", "--batch-seconds", "1"),
}
MARKS = {"prism": pytest.mark.prism, "flink": [pytest.mark.flink, pytest.mark.slow], "stream": pytest.mark.prism}


def rows() -> list[dict[str, Any]]:
    """Of the table; prompts are missing, too long, and of another model now and then."""
    return [
        {
            "id": f"r{i}",
            "prompt": None if i % 50 == 7 else "x" * 3000 if i == 60 else f"What is {i}?",
            "messages": [{"role": "user", "content": f"Say {i}.", "name": None}] if i % 50 == 7 else None,
            "temperature": 0.5 if i % 3 == 0 else None,
            "about": {"tags": ["a", str(i)], "when": WHEN, "price": Decimal("1.50")} if i % 2 else None,
            "note": None,
            "n": i,
        }
        for i in range(COUNT)
    ] + [{"id": "broken", "n": 1}]


def lines() -> list[dict[str, Any]]:
    """The same as JSONL: fields without a value are those that nobody would write."""
    written = []
    for row in rows():
        line: dict[str, Any] = {"about": None, "note": None, **row}
        if line["about"]:
            line["about"] = {"tags": line["about"]["tags"], "when": "2024-05-01T12:30:00", "price": "1.50"}
        if line.get("messages"):
            line["messages"] = [{"role": "user", "content": line["messages"][0]["content"]}]
        meant = ("prompt", "messages", "temperature")
        written.append({name: value for name, value in line.items() if name not in meant or value is not None})
    return written


def bodies() -> tuple[bytes, bytes]:
    table = pa.Table.from_pylist(rows())
    jsonl = b"".join(json.dumps(line).encode() + b"\n" for line in lines())
    return parquet(table, row_group_size=100), jsonl


def comparable(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what differs from call to call, and from place to place."""
    out = []
    for row in found:
        kept = {
            name: row[name] for name in row if name in ("id", "custom_id", "metadata", "model", "usage", "warnings")
        }
        error = row["error"]
        kept["error"] = error and (error["class"], error["retryable"])
        kept["answer"] = None if error else row["response"]["body"]["choices"][0]["message"]
        out.append(kept)
    return out


def manifests(cloud: Any) -> list[str]:
    return [key for key in cloud.keys("output/") if key.endswith("/_manifest.json")]


def settle(cloud: Any, way: str, files: int) -> None:
    process = cloud.command(*WAYS[way], "--json")
    if way == "stream":
        wait_until(lambda: len(manifests(cloud)) == files and not cloud.keys("output/_open/"), 120, process)
        process.terminate()
    out, err = process.communicate(timeout=400)
    assert process.returncode in (0, 3), err.decode()[-3000:]
    said = json.loads(out)
    assert (said["problem"], said["left"], said["in_work"]) == (None, {}, [])


@pytest.mark.parametrize("way", [pytest.param(way, marks=MARKS.get(way, ())) for way in WAYS])
def test_the_same_data_as_jsonl_has_the_same_answers_and_ids(cloud: Any, way: str) -> None:
    table, jsonl = bodies()
    cloud.upload("table.parquet", table)
    cloud.upload("lines.jsonl", jsonl)
    settle(cloud, way, 2)
    ours, theirs = cloud.rows("table.parquet"), cloud.rows("lines.jsonl")
    assert len(ours) == COUNT + 1
    assert comparable(ours) == comparable(theirs)
    places = [row["error"] or row["source"] for row in ours]
    assert [(place["offset"], place["length"], place["unit"]) for place in places] == [
        (i, 1, "row") for i in range(COUNT + 1)
    ]
    assert "unit" not in theirs[0]["source"]
    cloud.check()
    (manifest,) = (key for key in cloud.keys("output/llmdo/input/table.parquet/") if key.endswith("_manifest.json"))
    said = json.loads(cloud.store.read(manifest)[0])
    assert (said["format"], said["unit"], said["length"], said["size"]) == ("parquet", "row", COUNT + 1, len(table))
    assert (said["failed"], said["answered"], said["blank"]) == (2, COUNT - 1, 0)


def test_a_row_without_an_id_is_named_by_its_number_and_one_that_was_too_long_is_read_later(cloud: Any) -> None:
    cloud.upload("t.pq", parquet({"prompt": ["a", "b" * 300, "c"]}))
    first = cloud.run(input="r2://llmdo/input/", max_line_bytes=100)
    assert (first.counts.answered, first.counts.failed) == (2, 1)
    found = cloud.rows("t.pq")
    assert [row.get("id") for row in found] == ["input/t.pq:0", None, "input/t.pq:2"]
    assert found[1]["error"]["bytes"] == len('{"prompt":""}') + 300
    assert "313 bytes" in found[1]["error"]["message"]
    for limit, answered in ((300, 2), (313, 3)):  # the first is still too low, and opens nothing
        again = cloud.run(input="r2://llmdo/input/", max_line_bytes=limit)
        assert again.counts.answered + again.counts.answered_before == (0 if limit == 300 else 3)
        assert len([row for row in cloud.rows("t.pq") if row["error"] is None]) == answered
    cloud.check()


def test_templates_take_columns_and_the_others_come_back(cloud: Any) -> None:
    table = pa.table({"text": ["red", None], "model": ["kept", None], "price": pa.array([Decimal("1.5")] * 2)})
    cloud.upload("t.parquet", parquet(table))
    summary = cloud.run(input="r2://llmdo/input/", prompt="Is {text} worth {price}?")
    assert (summary.counts.answered, summary.counts.failed) == (1, 1)
    answer, error = cloud.rows("t.parquet")
    assert answer["response"]["body"]["choices"][0]["message"]["content"].endswith("Is red worth 1.5?")
    assert answer["metadata"] == {"model": "kept"}
    assert "text" in error["error"]["message"]
    cloud.check()


def test_a_killed_run_resumes_at_its_row_and_pays_for_none_twice(cloud: Any) -> None:
    cloud.upload("t.parquet", prompts(400))
    cloud.fault(target="ai", probability=1.0, latency_s=0.3)
    more = ("--batch-size", "20", "--concurrency", "8")
    process = cloud.command("run", *WHERE, *more)
    wait_until(lambda: len([key for key in cloud.keys("output/") if "/shard-" in key]) >= 3, 120, process)
    process.kill()
    process.communicate()
    assert cloud.keys("output/_open/")
    cloud.no_faults()
    process = cloud.command("run", *WHERE, *more, "--json")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err.decode()[-3000:]
    assert json.loads(out)["files_done"] == 1
    assert [row["id"] for row in cloud.rows("t.parquet")] == [f"r{i}" for i in range(400)]
    assert 400 <= cloud.stats()["paid"]["calls"] <= 400 + 8
    cloud.check()


def test_retry_answers_error_rows_in_place(cloud: Any) -> None:
    cloud.upload("t.parquet", prompts(30))
    cloud.fault(target="ai", match="What is 1", status=400, code=5024)
    cloud.run(input="r2://llmdo/input/")
    failed = [row["error"]["offset"] for row in cloud.rows("t.parquet") if row["error"]]
    assert failed
    cloud.no_faults()
    summary = retry(retry_options(OUTPUT, "all"), lambda state: nullcontext())
    assert (summary.counts.answered, summary.counts.failed) == (len(failed), 0)
    assert [row["source"]["offset"] for row in cloud.rows("t.parquet")] == list(range(30))
    assert {row["source"]["unit"] for row in cloud.rows("t.parquet")} == {"row"}
    cloud.check()


def test_dry_run_reads_rows_and_calls_nothing(cloud: Any) -> None:
    table, _ = bodies()
    cloud.upload("table.parquet", table)
    process = cloud.command("run", *WHERE, "--dry-run", "--json")
    out, err = process.communicate(timeout=120)
    said = json.loads(out)
    assert (process.returncode, said["lines"], said["broken"], said["files"]) == (3, COUNT + 1, 2, 1), err.decode()
    assert said["problems"][0].startswith("r2://llmdo/input/table.parquet:60: the row, as JSON, has ")
    assert cloud.stats()["paid"]["calls"] == 0


def test_tables_without_rows_settle_and_wrong_ones_end_with_a_sentence(cloud: Any) -> None:
    cloud.upload("empty.parquet", parquet({"prompt": pa.array([], pa.string())}))
    cloud.upload("nothing.parquet", parquet(pa.table({})))
    cloud.upload("cut.parquet", prompts(1000)[:5000])
    cloud.upload("lines.parquet", b'{"prompt": "x"}\n')
    cloud.upload("twins.parquet", parquet(pa.table([["x"], ["y"]], names=["prompt", "prompt"])))
    summary = cloud.run(input="r2://llmdo/input/")
    assert (summary.counts.files_done, summary.counts.files_stale, summary.counts.failed) == (2, 3, 0)
    assert cloud.stats()["paid"]["calls"] == 0
    said = {one.file.key: one.reason for one in summary.settled if one.status == "stale"}
    assert all(reason.startswith(f"r2://llmdo/{key} ") for key, reason in said.items())
    assert "several columns named 'prompt'" in said["input/twins.parquet"]
    result = verify(OUTPUT)
    assert (result.ok, result.files, result.compared, result.lines) == (True, 2, 2, 0)


def test_verify_finds_rows_that_are_missing(cloud: Any) -> None:
    cloud.upload("t.parquet", prompts(10))
    cloud.run(input="r2://llmdo/input/")
    (name,) = manifests(cloud)
    body = json.loads(cloud.store.read(name)[0])
    cloud.store.put(name, json.dumps(body | {"length": 11}).encode())
    differences = verify(OUTPUT).differences
    assert any("has 10 rows of content" in one for one in differences), differences


def test_files_of_any_name_are_tables_with_format_and_only_its_endings_are_taken_in_folders(cloud: Any) -> None:
    cloud.upload("a.parquet", prompts(2))
    cloud.upload("b.jsonl", b'{"prompt": "x"}\n')
    cloud.s3.put_object(Bucket="llmdo", Key="other/part-0", Body=prompts(3))
    summary = cloud.run(input=["r2://llmdo/input/", "r2://llmdo/other/part-0"], format="parquet")
    assert (summary.counts.files_done, summary.counts.answered) == (2, 5)
    result = verify(OUTPUT, ["r2://llmdo/input/", "r2://llmdo/other/part-0"])
    assert (result.ok, result.lines) == (True, 5), result.differences


def test_a_file_that_is_overwritten_while_it_is_read_is_stale(cloud: Any) -> None:
    cloud.upload("t.parquet", prompts(40_000, row_group_size=5_000, compression="none", use_dictionary=False))
    cloud.fault(target="ai", probability=1.0, latency_s=0.02)
    process = cloud.command("run", *WHERE, "--concurrency", "16", "--json")
    wait_until(lambda: any("/shard-" in key for key in cloud.keys("output/")), 120, process)
    cloud.upload("t.parquet", prompts(5))
    out, err = process.communicate(timeout=240)
    said = json.loads(out)
    assert (said["files_stale"], said["files_done"]) == (1, 0), err.decode()[-2000:]
    assert process.returncode == 3
