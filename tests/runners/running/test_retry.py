import json
from io import StringIO

import pytest
from rich.console import Console
from typer.testing import CliRunner

from llmdo.backends.money.limits import Limits
from llmdo.pipelines.options import check_options
from llmdo.pipelines.usage import UsageError
from llmdo.runners.cli.main import app, main
from llmdo.runners.running.retry import retry_json, retry_options, show_retry
from llmdo.runners.showing.summary import Summary
from llmdo.storage.objects.opening import open_store
from llmdo.storage.output import configuration
from llmdo.transforms.elements import FileVersion, Settled
from llmdo.transforms.run_state import Counts

MODEL = "local/smollm2-135m-instruct"
FILE = FileVersion("r2://bucket", "input/a.jsonl", "e1", 100)


@pytest.fixture
def output(tmp_path):
    """A local output that says what it was answered by."""

    def write(decisive):
        configuration.agree(open_store(str(tmp_path)), "", "f", decisive, lambda run_id: False)
        return str(tmp_path)

    return write


def summary(settled=(), in_work=(), left=None, problem=None, others=None, **counts):
    return Summary("run-1", Counts(**counts), settled, in_work, left or {}, problem, others=others or {})


def shown(summary, output, which="retryable"):
    console = Console(file=StringIO(), width=200)
    options = retry_options(output, which)
    show_retry(summary, options, console)
    return console.file.getvalue()


def test_what_decided_the_answers_is_read_from_the_output(output):
    where = output({"model": MODEL, "parameters": {"max_tokens": 7, "temperature": 0.5}, "system": "Be brief."})
    options = retry_options(where, "all", concurrency="3", ledger=None, drain_seconds=5.0)
    assert options.decisive == {
        "model": MODEL,
        "parameters": {"max_tokens": 7, "temperature": 0.5},
        "system": "Be brief.",
    }
    assert (options.retry, options.concurrency.calls, options.drain_seconds, options.runner) == (
        "all",
        3,
        5.0,
        "direct",
    )
    assert options.kept.ledger == f"sqlite:///{where}/_ledger.sqlite"


def test_templates_schema_and_models_by_key_are_read_from_the_output_and_the_fingerprint_is_the_same(output):
    given = {
        "prompt": "Say {a}",
        "system": "In {language}",
        "model_for": (f"x/*={MODEL}",),
        "response_schema": {"type": "object"},
        "vectors": "base64",
    }
    first = check_options(files=("a.jsonl",), output="out/", model=MODEL, **given)
    options = retry_options(output(first.decisive), "all", max_cost=2.0)
    assert options.configuration == first.configuration
    assert options.defaults == first.defaults
    assert options.limits == Limits(2.0)


@pytest.mark.parametrize(
    "decisive",
    [
        {"model": None, "parameters": {}, "system": ""},
        {"model": "nothing", "parameters": {}, "system": ""},
        {"model": MODEL, "parameters": {"unheard_of": 1}, "system": ""},
        {"model": MODEL, "parameters": {}, "system": 7},
        {"model": MODEL, "parameters": {"files": ["a.jsonl"]}, "system": ""},
    ],
)
def test_a_configuration_that_this_version_cannot_follow_is_a_usage_error(output, decisive):
    with pytest.raises(UsageError):
        retry_options(output(decisive), "all")


def test_an_output_that_does_not_say_what_it_was_answered_by_is_a_usage_error(tmp_path, capsys):
    for body in (None, b"{"):
        if body is not None:
            open_store(str(tmp_path)).put(configuration.NAME, body)
        with pytest.raises(SystemExit) as left:
            main(["retry", str(tmp_path)])
        assert left.value.code == 2
        said = capsys.readouterr().err
        assert "_configuration.json" in said and "llmdo run" in said


def test_a_place_that_is_none_is_a_usage_error():
    with pytest.raises(UsageError, match="not known here"):
        retry_options("s3://bucket/out/", "retryable")


def test_an_output_without_errors_is_said_and_is_no_failure(output, capsys):
    where = output({"model": MODEL, "parameters": {}, "system": ""})
    store = open_store(where)
    found = json.loads(store.read(configuration.NAME)[0])
    found["fingerprint"] = retry_options(where, "retryable").configuration
    store.put(configuration.NAME, json.dumps(found).encode())
    with pytest.raises(SystemExit) as left:
        main(["retry", where])
    assert left.value.code == 0
    assert capsys.readouterr().out == "Nothing to try again.\n"
    with pytest.raises(SystemExit) as left:
        main(["retry", where, "--all", "--json"])
    assert left.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["retried"], said["not_retried"], said["files"]) == (0, 0, [])


def test_the_end_is_told_in_one_sentence_with_the_way_to_try_the_rest(output):
    where = output({"model": MODEL, "parameters": {}, "system": ""})
    done = summary(
        (Settled(FILE, "done", 98, 2),), answered=38, failed=2, failed_before=1200, files_done=1, files_with_errors=1
    )
    assert done.exit_code == 3
    said = shown(done, where)
    assert "Tried 40 lines again: 38 answered now, 2 still errors." in said
    assert "1,200 error lines would fail again and were left; --all tries them too." in said
    assert "they were too long to keep; run the files again with a higher --max-line-bytes" in shown(done, where, "all")
    told = retry_json(done)
    assert (told["until"], told["limits"]) == (None, [])
    assert [told[name] for name in ("retried", "answered", "failed", "not_retried")] == [40, 38, 2, 1200]


def test_what_was_not_merged_is_named_once_with_its_reason(output):
    where = output({"model": MODEL, "parameters": {}, "system": ""})
    other = FileVersion("r2://bucket", "input/b.jsonl", "e2", 100)
    stopped = summary(in_work=(FILE, other), left={FILE.id: "its manifest [was] changed"}, others={"x": "run-7"})
    assert stopped.exit_code == 1
    said = shown(stopped, where)
    assert "left: its manifest [was] changed" in said and said.count("input/a.jsonl") == 1
    assert "not merged: run llmdo retry again to resume" in said
    assert "in progress at run-7" in said
    assert retry_json(stopped)["left"] == stopped.left


def test_the_command_has_help_with_an_example_and_takes_no_secret():
    said = CliRunner().invoke(app, ["retry", "--help"], env={"COLUMNS": "200"})
    assert said.exit_code == 0
    assert "llmdo retry r2://" in said.output and "--all" in said.output
    assert "--token" not in said.output.lower() and "secret" not in said.output.lower()
