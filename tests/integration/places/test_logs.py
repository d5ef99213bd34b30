"""What a run logs with -v as JSON: files and lines, but never a prompt or an answer."""

import json

from tests.integration.cloud import MODEL, OUTPUT


def test_files_and_failed_lines_are_logged_without_what_was_asked_or_answered(cloud):
    cloud.upload("a.jsonl", b'{"prompt": "tell a zebra"}\n{"prompt": "refuse the zebra"}\nno JSON zebra\n')
    cloud.fault(target="ai", match="refuse", status=400)
    words = ["run", "--input", "r2://llmdo/input/", "--output", OUTPUT, "--model", MODEL, "--json", "-v"]
    process = cloud.command(*words, "--log-format", "json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 3, err.decode()
    said = [json.loads(line) for line in err.decode().splitlines()]
    ours = {one["message"]: one for one in said if one["logger"].startswith("llmdo.transforms")}
    run = json.loads(out)["run_id"]
    assert {one["run"] for one in ours.values()} == {run}
    assert {one["file"].partition("@")[0] for one in ours.values()} == {"r2://llmdo/input/a.jsonl"}
    assert [text for text in ours if text.startswith("opened, ")]
    assert "done: 1 lines answered, 2 errors (settled)" in ours
    failed = {text: one["line"] for text, one in ours.items() if text.startswith("a line has no answer: ")}
    assert sorted(failed.values()) == [27, 58]
    assert b"zebra" not in err
