"""Which file and which line is the same as before: decided by content and place, and seen by what is paid for."""

import hashlib
import json
import os
import shutil

import pytest

from llmdo.pipelines.options import check_options
from llmdo.runners.inspecting.verify import verify
from llmdo.storage.output.manifests import Manifest
from tests.integration.openai_service import MODEL, answer


def lines(*prompts):
    return "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)


def write(path, *prompts, at=1_600_000_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(lines(*prompts))
    os.utime(path, (at, at))
    return path


def manifests(output):
    return [Manifest.model_validate_json(path.read_bytes()) for path in sorted(output.rglob("_manifest.json"))]


def answers(output):
    rows = [json.loads(row) for path in output.rglob("shard-*.jsonl") for row in path.read_text().splitlines()]
    return {
        (row["source"]["etag"], row["source"]["offset"]): row["response"]["body"]["choices"][0]["message"]["content"]
        for row in rows
    }


@pytest.mark.parametrize("together", [True, False])
def test_two_files_of_one_name_size_and_time_are_two_files(service, tmp_path, together):
    left, right = write(tmp_path / "l/q.jsonl", "one"), write(tmp_path / "r/q.jsonl", "two")
    assert (left.stat().st_size, left.stat().st_mtime_ns) == (right.stat().st_size, right.stat().st_mtime_ns)
    out = tmp_path / "out"
    summaries = [answer(left, right, output=out)] if together else [answer(f, output=out) for f in (left, right)]
    assert [summary.exit_code for summary in summaries] == [0] * len(summaries)
    assert service.asked() == ["one", "two"]
    assert sorted((m.folder, m.key, m.answered) for m in manifests(out)) == [
        (str(tmp_path / "l"), "q.jsonl", 1),
        (str(tmp_path / "r"), "q.jsonl", 1),
    ]
    result = verify(str(out), [str(left), str(right)])
    assert (result.ok, result.compared) == (True, 2)


def test_a_file_that_is_edited_and_keeps_its_size_and_time_is_answered_again(service, tmp_path):
    file, out = write(tmp_path / "q.jsonl", "same", "old"), tmp_path / "out"
    answer(file, output=out)
    assert service.asked() == ["old", "same"]
    write(file, "same", "new")
    assert answer(file, output=out).counts.answered == 2
    assert service.asked() == ["new"]


def test_a_file_that_is_touched_moved_or_copied_is_paid_once(service, tmp_path, monkeypatch):
    file, out = write(tmp_path / "in/q.jsonl", "one", "two"), tmp_path / "out"
    answer(file, output=out)
    assert service.asked() == ["one", "two"]
    os.utime(file)
    assert answer(file, output=out).exit_code == 0
    copy = tmp_path / "elsewhere/q.jsonl"
    copy.parent.mkdir()
    shutil.copy(file, copy)
    assert answer(copy, output=out).exit_code == 0
    assert answer(file, copy, output=out).counts.files_done == 1
    file.unlink()
    monkeypatch.chdir(copy.parent)
    assert answer("q.jsonl", output=out).exit_code == 0
    assert service.asked() == []
    assert len(manifests(out)) == 1


def test_only_new_lines_of_a_file_that_has_grown_are_paid_for(service, tmp_path):
    file, out = write(tmp_path / "q.jsonl", "one", "two", "two"), tmp_path / "out"
    answer(file, output=out)
    assert service.asked() == ["one", "two", "two"]
    before = answers(out)
    write(file, "one", "two", "two", "three", at=1_600_000_001)
    assert answer(file, output=out).counts.answered == 4
    assert service.asked() == ["three"]
    after = {offset: text for (etag, offset), text in answers(out).items() if (etag, offset) not in before}
    assert {offset: after[offset] for _, offset in before} == {offset: text for (_, offset), text in before.items()}
    assert len(set(after.values())) == 4


def test_lines_that_moved_within_their_file_are_not_paid_for_again(service, tmp_path):
    file, out = write(tmp_path / "q.jsonl", "one", "two", "three"), tmp_path / "out"
    answer(file, output=out)
    service.asked()
    write(file, "zero", "three", "one", "two")
    assert answer(file, output=out).counts.answered == 4
    assert service.asked() == ["zero"]


def test_equal_lines_of_a_file_are_answers_of_their_own_unless_it_is_said_otherwise(service, tmp_path):
    file = write(tmp_path / "q.jsonl", "roll", "roll", "roll")
    answer(file, output=tmp_path / "each")
    assert service.asked() == ["roll"] * 3
    assert len(set(answers(tmp_path / "each").values())) == 3
    answer(file, output=tmp_path / "once", reuse="same-request")
    assert service.asked() == ["roll"]


def old_output(file, out, *, done):
    """An output as llmdo 0.1 left it: versions of local files by size and time, ids of lines by these."""
    options = check_options(files=(str(file),), output=str(out), model=MODEL)
    etag = f"{file.stat().st_size}-{file.stat().st_mtime_ns}"
    folder = out / "q.jsonl" / etag
    folder.mkdir(parents=True)
    (out / "_configuration.json").write_text(json.dumps({"fingerprint": options.configuration, **options.decisive}))
    rows, start = [], 0
    for line in file.read_bytes().splitlines(keepends=True):
        source = {"key": "q.jsonl", "etag": etag, "offset": start, "length": len(line)}
        rows.append({"id": f"q.jsonl:{start}", "custom_id": f"q.jsonl:{start}", "error": None, "source": source})
        rows[-1]["response"] = {"body": {"choices": [{"message": {"content": "kept"}}]}}
        rows[-1]["usage"] = {"input_tokens": 1, "output_tokens": 1}
        start += len(line)
    rows = rows if done else rows[:1]
    body = "".join(json.dumps(row) + "\n" for row in rows).encode()
    shard = f"shard-{0:012d}-{hashlib.sha256(body).hexdigest()[:16]}.jsonl"
    (folder / shard).write_bytes(body)
    if done:
        manifest = {
            "version": 1, "bucket": "", "key": "q.jsonl", "etag": etag, "size": start, "length": start,
            "configuration": options.configuration, "run_id": "r", "created_at": "2026-01-01T00:00:00.000+00:00",
            "answered": len(rows), "failed": 0, "blank": 0, "input_tokens": len(rows), "output_tokens": len(rows),
            "shards": [{"name": shard, "kind": "answers", "lines": len(rows), "tiles": f"0+{start}"}],
        }  # fmt: skip
        (folder / "_manifest.json").write_text(json.dumps(manifest))
    else:
        record = {
            "version": 1, "store_url": str(file.parent), "key": "q.jsonl", "etag": etag, "size": start,
            "notification": {}, "configuration": options.configuration, "run_id": "", "nonce": "n",
            "opened_at": "2026-01-01T00:00:00.000+00:00",
        }  # fmt: skip
        name = hashlib.sha256(f"{file.parent}\nq.jsonl\n{etag}".encode()).hexdigest()
        (out / "_open").mkdir()
        (out / "_open" / f"{name}.json").write_text(json.dumps(record))


def test_an_output_of_an_earlier_version_is_recognised_as_done(service, tmp_path):
    file, out = write(tmp_path / "q.jsonl", "one", "two"), tmp_path / "out"
    old_output(file, out, done=True)
    summary = answer(file, output=out)
    assert (summary.exit_code, summary.counts.files_done) == (0, 1)
    assert service.asked() == []
    result = verify(str(out), [str(file)])
    assert (result.ok, result.compared) == (True, 1), result.differences


def test_a_file_that_an_earlier_version_began_is_finished_where_it_was(service, tmp_path):
    file, out = write(tmp_path / "q.jsonl", "one", "two"), tmp_path / "out"
    old_output(file, out, done=False)
    assert answer(file, output=out).exit_code == 0
    assert service.asked() == ["two"]
    (manifest,) = manifests(out)
    assert manifest.etag == f"{file.stat().st_size}-{file.stat().st_mtime_ns}"
    assert list((out / "_open").iterdir()) == []
    result = verify(str(out), [str(file)])
    assert (result.ok, result.compared) == (True, 1), result.differences
