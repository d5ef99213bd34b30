"""What messages tell a user to do is done here, on the same output, and works."""

import gzip
import json
import os
import pwd
import subprocess
import sys
from contextlib import nullcontext
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from llmdo.pipelines.options import check_options
from llmdo.pipelines.usage import UsageError
from llmdo.runners.inspecting.dryrun import plan_run
from llmdo.runners.inspecting.verify import verify
from llmdo.runners.running.checks import check_consumers, check_ledger
from llmdo.runners.running.retry import retry, retry_options, show_retry
from llmdo.settings.environment import MissingSettings, cache_folder, state_folder
from tests.integration.openai_service import MODEL, answer
from tests.local.clients import rest


def rows(output, kind):
    return [json.loads(row) for path in output.rglob(f"{kind}-*.jsonl") for row in path.read_text().splitlines()]


def test_raising_max_line_bytes_answers_the_lines_that_were_too_long_and_no_other(service, tmp_path):
    file, out = tmp_path / "q.jsonl", tmp_path / "out"
    long = json.dumps({"id": "long", "prompt": "x" * 3000})
    file.write_text('{"id": "a", "prompt": "a"}\n' + long + '\n{"id": "broken"\n' + long.replace("long", "also") + "\n")
    first = answer(file, output=out, max_line_bytes=1000)
    assert (first.exit_code, service.asked()) == (3, ["a"])
    (said,) = {row["error"]["message"] for row in rows(out, "errors") if row["error"]["class"] == "LineTooLong"}
    assert "raise --max-line-bytes" in said
    assert answer(file, output=out, max_line_bytes=2000).exit_code == 3
    assert service.asked() == []
    assert (
        plan_run(check_options(files=(str(file),), output=str(out), model=MODEL, max_line_bytes=5000)).files_done == 0
    )
    again = answer(file, output=out, max_line_bytes=len(long) + 1)  # the message's own figure
    assert (again.exit_code, again.counts.files_done) == (3, 1)
    assert service.asked() == ["x" * 3000] * 2
    assert {row["id"] for row in rows(out, "shard")} == {"a", "long", "also"}
    (left,) = rows(out, "errors")
    assert left["raw"] == '{"id": "broken"'
    result = verify(str(out), [str(file)])
    assert (result.ok, result.compared, result.notes) == (True, 1, ()), result.differences
    assert answer(file, output=out, max_line_bytes=5000).exit_code == 3
    assert service.asked() == []


def test_what_retry_says_of_lines_that_were_too_long_to_keep_answers_them(service, tmp_path):
    file, out = tmp_path / "q.jsonl", tmp_path / "out"
    file.write_text('{"prompt": "a"}\n{"prompt": "' + "x" * 3000 + '"}\n')
    assert answer(file, output=out, max_line_bytes=1000).exit_code == 3
    options, console = retry_options(str(out), "all"), Console(file=StringIO(), width=300)
    summary = retry(options, lambda _: nullcontext())
    show_retry(summary, options, console)
    assert "run the files again with a higher --max-line-bytes and the same --output" in console.file.getvalue()
    assert service.asked() == ["a"]
    assert answer(file, output=out, max_line_bytes=4000).exit_code == 0
    assert service.asked() == ["x" * 3000]


def test_it_does_so_within_compressed_files(service, tmp_path):
    file, out = tmp_path / "q.jsonl.gz", tmp_path / "out"
    file.write_bytes(gzip.compress(b'{"prompt": "a"}\n{"prompt": "' + b"x" * 3000 + b'"}\n'))
    assert answer(file, output=out, max_line_bytes=1000).exit_code == 3
    assert answer(file, output=out).exit_code == 0
    assert service.asked() == ["a", "x" * 3000]
    assert verify(str(out), [str(file)]).ok


def test_raising_max_file_bytes_answers_a_file_that_was_too_large(service, tmp_path):
    file, out = tmp_path / "q.jsonl", tmp_path / "out"
    file.write_text('{"prompt": "a"}\n' * 3)
    first = answer(file, output=out, max_file_bytes=20)
    assert first.exit_code == 3 and "raise --max-file-bytes" in first.settled[0].reason
    assert answer(file, output=out, max_file_bytes=200).exit_code == 0
    assert service.asked() == ["a"] * 3


def test_where_no_price_is_known_a_limit_of_tokens_can_be_kept_and_raised_in_the_same_output(service, tmp_path):
    file, out = tmp_path / "q.jsonl", tmp_path / "out"
    file.write_text("".join(json.dumps({"prompt": f"p{n}", "max_tokens": 50}) + "\n" for n in range(99)))
    with pytest.raises(UsageError, match="use --max-tokens-total instead"):
        answer(file, output=out, max_cost=1)
    first = answer(file, output=out, max_tokens_total=120, concurrency="1")
    assert (
        first.exit_code == 1 and "--max-tokens-total 120 could be exceeded by the next call: raise it" in first.problem
    )
    asked = service.asked()
    assert 0 < len(asked) < 99
    assert answer(file, output=out, max_tokens_total=100_000).exit_code == 0
    assert len(service.asked()) == 99 - len(asked)


@pytest.mark.parametrize("inputs", [["q.jsonl"], ["."], ["*.jsonl"]])
def test_an_output_folder_may_hold_its_inputs(service, tmp_path, monkeypatch, inputs):
    monkeypatch.chdir(tmp_path)
    Path("q.jsonl").write_text('{"prompt": "hello"}\n')
    for _ in range(2):
        summary = answer(*inputs, output=".")
        assert (summary.exit_code, summary.counts.files_done) == (0, 1)
    assert service.asked() == ["hello"]
    assert len(list(tmp_path.rglob("_manifest.json"))) == 1
    assert verify(".", inputs).ok


def test_converting_a_file_as_its_error_says_makes_it_answered(service, tmp_path):
    file, out = tmp_path / "q.jsonl", tmp_path / "out"
    lines = '{"prompt": "a"}\n{"prompt": "b"}\n'
    for wrong in (gzip.compress(lines.encode()), lines.encode("utf-16")):
        file.write_bytes(wrong)
        summary = answer(file, output=out)
        assert (summary.exit_code, summary.counts.failed, summary.counts.files_stale) == (3, 0, 1)
        assert service.asked() == []
        result = verify(str(out), [str(file)])
        assert not result.ok and summary.settled[0].reason in " ".join(result.differences)
        dry = plan_run(check_options(files=(str(file),), output=str(out), model=MODEL))
        assert (dry.exit_code, dry.problems) == (3, [summary.settled[0].reason])
    file.write_bytes(lines.encode("utf-16"))
    text = subprocess.run(["iconv", "-f", "UTF-16", "-t", "UTF-8", file], check=True, capture_output=True).stdout
    file.write_bytes(text)
    assert answer(file, output=out).exit_code == 0
    assert service.asked() == ["a", "b"]


def wrangler(server, command):
    """Makes the calls of ``npx wrangler queues consumer http add|remove NAME [--dead-letter-queue NAME]``."""
    words = command.split()
    assert words[:5] == ["npx", "wrangler", "queues", "consumer", "http"]
    verb, name, *dead = words[5:]
    (queue,) = rest(server, "GET", f"/queues?name={name}").json()["result"]
    path = f"/queues/{queue['queue_id']}/consumers"
    if verb == "remove":
        return rest(server, "DELETE", f"{path}/{queue['consumers'][0]['consumer_id']}").json()["success"]
    body = {"type": "http_pull", "settings": {}, **({"dead_letter_queue": dead[1]} if dead else {})}
    return rest(server, "POST", path, body).json()["success"]


def test_the_commands_that_make_a_queue_fit_to_be_pulled_work_one_after_the_other(cloudflare, caplog):
    queue_id = rest(cloudflare, "POST", "/queues", {"queue_name": "mine"}).json()["result"]["queue_id"]
    with pytest.raises(UsageError, match="queue mine cannot be pulled") as caught:
        check_consumers("mine", queue_id)
    assert wrangler(cloudflare, str(caught.value).partition("run: ")[2])
    check_consumers("mine", queue_id)
    for command in caplog.messages[-1].partition("set one with: ")[2].split(", then: "):
        assert wrangler(cloudflare, command.replace("-queue NAME", "-queue llmdo-input-dlq"))
    caplog.clear()
    check_consumers("mine", queue_id)
    assert caplog.messages == []


@pytest.fixture
def homeless(monkeypatch):
    """No HOME, and a user without a line in /etc/passwd."""

    def nobody(uid):
        raise KeyError(uid)

    for name in ("HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)


def test_without_a_home_folder_a_sentence_names_the_variable_to_set(homeless, monkeypatch, tmp_path):
    for folder, name in ((state_folder, "XDG_STATE_HOME"), (cache_folder, "XDG_CACHE_HOME")):
        with pytest.raises(MissingSettings, match=f"no home folder: set {name}"):
            folder()
        monkeypatch.setenv(name, str(tmp_path))
        assert folder() == tmp_path / "llmdo"


def test_without_a_home_folder_a_path_with_a_tilde_is_one_sentence(homeless):
    with pytest.raises(UsageError, match="write the whole path"):
        check_options(files=("a.jsonl",), output="~/out", model="local/smollm2-135m-instruct")


def test_without_a_home_folder_local_files_are_answered_and_so_are_buckets_with_a_ledger(
    homeless, service, tmp_path, monkeypatch
):
    file = tmp_path / "q.jsonl"
    file.write_text('{"prompt": "a"}\n')
    assert answer(file, output=tmp_path / "out").exit_code == 0
    assert service.asked() == ["a"]
    monkeypatch.setenv("R2_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("R2_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("R2_ENDPOINT_URL", "http://127.0.0.1:1")
    given = {"input": "r2://bucket/in/", "output": "r2://bucket/out/", "model": MODEL}
    with pytest.raises(MissingSettings, match="set XDG_STATE_HOME"):
        check_ledger(check_options(**given).kept)
    check_ledger(check_options(**given, ledger=f"sqlite:///{tmp_path}/ledger.sqlite").kept)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    check_ledger(check_options(**given).kept)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user that nobody knows")
def test_the_command_of_a_user_without_a_home_ends_with_one_sentence():
    env = {k: v for k, v in os.environ.items() if k not in {"HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"}}
    env |= {"R2_ACCESS_KEY_ID": "key", "R2_SECRET_ACCESS_KEY": "secret", "R2_ENDPOINT_URL": "http://127.0.0.1:1"}
    code = "import os; from llmdo.pipelines.options import check_options; os.setuid(12345);"
    code += f"print(check_options(input='r2://bucket/in/', output='r2://bucket/out/', model='{MODEL}').kept)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=env | {"OPENAI_API_KEY": "sk-loopback-only", "OPENAI_BASE_URL": "http://127.0.0.1:1"},
        capture_output=True,
        check=False,
        timeout=240,
    )
    assert b"MissingSettings: this user has no home folder: set XDG_STATE_HOME" in done.stderr
