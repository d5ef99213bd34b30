"""Where prompts may be, through the whole command: in R2, in mounted folders, beside other files."""

import json

import pytest

from llmdo.pipelines.usage import UsageError
from llmdo.runners.inspecting.verify import verify
from tests.integration.cloud import OUTPUT
from tests.integration.openai_service import answer

ECHO = "workers-ai/@cf/meta/llama-3.3-70b-instruct-fp8-fast"


def put(cloud, key, body=b'{"prompt": "a"}\n'):
    cloud.store.put(key, body)


def test_a_mounted_config_map_is_paid_once_and_what_was_skipped_is_said(service, tmp_path, caplog):
    into = tmp_path / "in"
    (into / "..2026_05_05").mkdir(parents=True)
    (into / "..2026_05_05/q.jsonl").write_text('{"prompt": "p"}\n')
    (into / "..data").symlink_to("..2026_05_05")
    (into / "q.jsonl").symlink_to("..data/q.jsonl")
    (into / ".ipynb_checkpoints").mkdir()
    (into / ".ipynb_checkpoints/q-checkpoint.jsonl").write_text('{"prompt": "p"}\n')
    assert answer(into, output=tmp_path / "out").exit_code == 0
    assert service.asked() == ["p"]
    (said,) = [record.message for record in caplog.records if "skipped" in record.message]
    assert said.startswith("skipped 3 paths (") and "hidden" in said


def test_an_lfs_pointer_ends_as_one_file_with_one_sentence(service, tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0f1e2d\nsize 4096\n")
    (tmp_path / "good.jsonl").write_text('{"prompt": "good"}\n')
    summary = answer(tmp_path, output=tmp_path / "out")
    assert (summary.exit_code, summary.counts.failed) == (3, 0)
    assert service.asked() == ["good"]
    (stale,) = [settled for settled in summary.settled if settled.status == "stale"]
    assert stale.reason == f"{file} is a Git LFS pointer, not the file itself: fetch it: git lfs pull"
    assert not verify(str(tmp_path / "out"), [str(tmp_path)]).ok


def test_broken_lines_say_what_is_likely_wrong(service, tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_bytes(b'{"prompt": "a"}\n\xef\xbb\xbf{"prompt": "b"}\n{"prompt": "c", "x": NaN}\n{"prompt": "d",}\n')
    assert answer(file, output=tmp_path / "out").exit_code == 3
    assert service.asked() == ["a"]
    (shard,) = (tmp_path / "out").rglob("errors-*.jsonl")
    said = [json.loads(row)["error"]["message"] for row in shard.read_text().splitlines()]
    hints = ("byte order mark", "NaN and Infinity", "comma before a closing bracket")
    assert all(hint in sentence for hint, sentence in zip(hints, said, strict=True)), said


def test_in_r2_hidden_keys_and_shards_are_skipped_and_other_endings_taken(cloud, caplog):
    shard = "input/old/q.jsonl/e1/shard-000000000000-0123456789abcdef.jsonl"
    fed_back = "input/errors-000000000000-0123456789abcdef.jsonl"
    put(cloud, shard.rpartition("/")[0] + "/_manifest.json")
    for key in (
        "input/a.NDJSON",
        "input/errors-000000000000-0123456789abcdef.jsonl",
        "input/.git/x.jsonl",
        "input/._a.jsonl",
        shard,
        "input/notes.txt",
    ):
        put(cloud, key)
    summary = cloud.run(input="r2://llmdo/input/", model=ECHO)
    assert (summary.exit_code, sorted(settled.file.key for settled in summary.settled)) == (
        0,
        ["input/a.NDJSON", fed_back],
    )
    said = " ".join(record.message for record in caplog.records)
    assert "skipped 2 paths" in said and shard in said and "notes.txt" in said


def test_in_r2_a_wrong_format_is_refused_without_a_call(cloud):
    put(cloud, "input/a.jsonl", '{"prompt": "a"}\n'.encode("utf-16"))
    put(cloud, "input/large.jsonl", b"id,prompt\n" + b"1,hello\n" * 10_000)
    summary = cloud.run(input="r2://llmdo/input/", model=ECHO)
    assert (summary.exit_code, summary.counts.files_stale, summary.spent.calls) == (3, 2, 0)
    reasons = " ".join(settled.reason for settled in summary.settled)
    assert "iconv -f UTF-16" in reasons and "CSV" in reasons
    assert not verify(OUTPUT, ["r2://llmdo/input/"]).ok


def test_in_r2_a_pattern_is_refused_and_an_empty_prefix_said(cloud, caplog):
    put(cloud, "input/a.jsonl")
    with pytest.raises(UsageError, match="R2 takes prefixes, not patterns"):
        cloud.run(input="r2://llmdo/inp*t/", model=ECHO)
    assert cloud.run(input="r2://llmdo/inptu/", model=ECHO).exit_code == 0
    assert "no key begins with r2://llmdo/inptu/: check the prefix" in caplog.text


def test_in_r2_only_new_lines_of_an_object_that_has_grown_are_paid_for(cloud):
    put(cloud, "input/a.jsonl", b'{"prompt": "a"}\n{"prompt": "b"}\n')
    assert cloud.run(input="r2://llmdo/input/", model=ECHO).spent.calls == 2
    put(cloud, "input/a.jsonl", b'{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}\n')
    grown = cloud.run(input="r2://llmdo/input/", model=ECHO)
    assert (grown.spent.calls, grown.counts.answered) == (1, 3)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "absent.jsonl", "check the path"),
        (lambda folder: folder / "*.parquet", "check the path"),
        (lambda folder: folder, "hidden: name the file"),
    ],
)
def test_where_nothing_is_to_answer_a_sentence_says_why(service, tmp_path, make, said):
    (tmp_path / ".secret.jsonl").write_text('{"prompt": "p"}\n')
    with pytest.raises(UsageError, match=said):
        answer(make(tmp_path), output=tmp_path / "out")
