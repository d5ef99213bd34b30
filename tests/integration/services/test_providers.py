"""Files answered by a provider that speaks OpenAI's API: here the OpenAI route of the local Cloudflare."""

import json
import os
import subprocess
import sys

from llmdo.runners.inspecting.verify import verify
from tests.integration.cloud import prompts

MODEL = "openai/@cf/meta/llama-3.3-70b-instruct-fp8-fast"


def test_lines_are_answered_by_openais_api(cloud):
    lines = [
        {"id": "chat", "prompt": "a b c"},
        {"id": "short", "messages": [{"role": "user", "content": "a b c"}], "max_tokens": 2},
        {"id": "vector", "text": "a b", "model": "openai/@cf/baai/bge-m3"},
        {"id": "native", "prompt": "a b", "model": "@cf/meta/llama-3.3-70b-instruct-fp8-fast"},
        {"id": "odd", "prompt": "a b", "lora": "x"},
        {"id": "gone", "prompt": "a b", "model": "openai/no-such-model"},
    ]
    cloud.upload("a.jsonl", b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    summary = cloud.run(model=MODEL, line_models="any")
    assert (summary.counts.answered, summary.counts.failed) == (5, 1)
    cloud.check()
    rows = {row["id"]: row for row in cloud.rows("a.jsonl")}

    def said(name):
        return rows[name]["response"]["body"]["choices"][0]["message"]["content"]

    assert (said("chat"), said("short"), said("native")) == ("echo: a b c", "echo: a", "echo: a b")
    assert rows["chat"]["model"] == MODEL
    assert rows["chat"]["usage"]["input_tokens"] == 3
    assert len(rows["vector"]["response"]["body"]["data"][0]["embedding"]) == 1024
    assert rows["odd"]["metadata"] == {"lora": "x"}, "a parameter of Workers AI only is the user's own field elsewhere"
    assert rows["gone"]["error"]["class"] == "ModelNotFound"


def test_overload_is_waited_out_and_every_line_is_answered(cloud):
    cloud.fault(target="ai", status=503, count=5)
    cloud.upload("a.jsonl", prompts(40))
    summary = cloud.run(model=MODEL)
    assert (summary.counts.answered, summary.counts.failed) == (40, 0)
    cloud.check()


def test_a_wrong_key_stops_the_run_and_the_next_one_goes_on(cloud, monkeypatch):
    cloud.upload("a.jsonl", prompts(10))
    key = os.environ["OPENAI_API_KEY"]
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-wrong-wrong")
    stopped = cloud.run(model=MODEL)
    assert stopped.exit_code == 1
    assert "OPENAI_API_KEY" in stopped.problem
    assert stopped.counts.failed == 0
    monkeypatch.setenv("OPENAI_API_KEY", key)
    assert cloud.run(model=MODEL).counts.answered == 10
    cloud.check()


def test_the_command_needs_no_cloudflare_for_local_files_and_openai(cloudflare, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"id": 1, "prompt": "a b"}\n')
    own = {name: value for name, value in cloudflare.env.items() if name.startswith("OPENAI_")}
    env = {name: value for name, value in os.environ.items() if not name.startswith(("CLOUDFLARE_", "R2_", "OPENAI_"))}

    def llmdo(*arguments, **more):
        command = [sys.executable, "-m", "llmdo", *arguments]
        return subprocess.run(command, env=env | more, check=False, capture_output=True, text=True, timeout=120)

    run = ("run", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out"), "--model", MODEL)
    missing = llmdo(*run)
    assert (missing.returncode, "OPENAI_API_KEY is not set" in missing.stderr) == (2, True)
    done = llmdo(*run, "--json", **own)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["answered"] == 1
    assert verify(str(tmp_path / "out"), [str(tmp_path / "in.jsonl")]).ok
    assert own["OPENAI_API_KEY"] not in done.stdout + done.stderr
