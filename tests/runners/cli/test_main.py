import json
import re

import pytest
from typer.testing import CliRunner

from llmdo.backends.limits.rates import Rates
from llmdo.backends.money.limits import Limits
from llmdo.runners.cli.main import app, main
from llmdo.runners.showing.summary import Summary
from llmdo.transforms.run_state import Counts

runner = CliRunner()


@pytest.mark.parametrize("command", ["run", "schedule", "verify", "local", "ask", "models"])
def test_every_command_has_help_with_an_example(command):
    result = runner.invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert f"llmdo {command}" in result.output


def test_the_help_of_local_says_how_it_is_told_to_fail():
    said = runner.invoke(app, ["local", "--help"], env={"COLUMNS": "200"}).output
    assert 'POST /_faults {"target": "ai", "status": 429, "count": 3}' in said


def test_no_option_takes_a_secret():
    for command in ("run", "stream", "schedule", "chat", "retry", "verify", "local", "ask", "models"):
        text = runner.invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output.lower()
        names = set(re.findall(r"--[a-z-]+", text))
        assert "--help" in names
        assert not {name for name in names if re.search(r"secret|key|password|credential|token$", name)}


def test_usage_errors_are_all_said_and_exit_with_2(capsys):
    with pytest.raises(SystemExit) as left:
        main(["run", "--output", "s3://x/y", "--model", "gpt-4o", "--batch-size", "0", "--runner", "spark"])
    assert left.value.code == 2
    said = capsys.readouterr().err
    for what in ("--batch-size", "--model 'gpt-4o'", "--runner"):
        assert what in said


def test_with_json_an_error_is_an_object_too(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        main(["run", "in/", "--output", str(tmp_path), "--model", "gpt-4o", "--batch-size", "0", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert said["exit_code"] == left.value.code == 2
    assert "--batch-size" in said["problem"]
    assert "--model 'gpt-4o'" in said["problem"]


def test_a_complaint_is_shown_as_it_is_also_with_brackets(capsys):
    with pytest.raises(SystemExit):
        main(["run", "[/red].jsonl", "--output", "out/", "--model", "[bold]gpt"])
    assert "'[bold]gpt'" in capsys.readouterr().err


def test_verify_of_a_folder_that_is_no_output_fails_with_a_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        main(["verify", str(tmp_path), "--json"])
    assert left.value.code == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


@pytest.fixture
def started(monkeypatch):
    """The options that a run or a stream would be started with."""
    found = []

    def start(options, watch, **more):
        found.append(options)
        return Summary("r", Counts(), (), (), {})

    for command in ("run", "stream", "retry"):
        monkeypatch.setattr(f"llmdo.runners.running.{command}.{command}", start)
    for name in ("CLOUDFLARE_API_TOKEN", "R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", "a" * 32)
    return found


@pytest.mark.parametrize(
    "command",
    [
        ["run", "--input", "r2://bucket/in/"],
        ["stream", "--queue", "q"],
    ],
)
def test_templates_schema_models_by_key_and_limits_reach_a_run(started, tmp_path, command):
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    (tmp_path / "system.txt").write_text("In {language}.")
    given = ["--prompt", "Say {a}", "--system", f"@{tmp_path}/system.txt", "--schema", str(tmp_path / "schema.json")]
    given += ["--model-for", "x/*=@cf/baai/bge-m3", "--model-for", "y/*=local/smollm2-135m-instruct"]
    given += ["--max-cost", "1.5", "--max-tokens-total", "1000", "--output", "r2://bucket/out/"]
    with pytest.raises(SystemExit) as left:
        main([*command, *given])
    assert left.value.code == 0
    (options,) = started
    assert (options.prompt, options.system, options.response_schema) == (
        "Say {a}",
        "In {language}.",
        {"type": "object"},
    )
    assert options.model_for == ("x/*=workers-ai/@cf/baai/bge-m3", "y/*=local/smollm2-135m-instruct")
    assert options.limits == Limits(1.5, 1000)


HOW = [
    "--mode",
    "batch",
    "--deadline",
    "90",
    "--patience",
    "7",
    "--workers",
    "3",
    "--gateway",
    "mine",
    "--rpm",
    "60",
    "--tpm",
    "1000",
]


@pytest.mark.parametrize("command", ["run", "stream", "retry"])
def test_how_calls_are_made_reaches_a_run(started, monkeypatch, tmp_path, command):
    given = {
        "run": ["--input", "r2://bucket/in/", "--output", "r2://bucket/out/"],
        "stream": ["--queue", "q", "--output", "r2://bucket/out/"],
        "retry": [str(tmp_path)],
    }
    decisive = {"model": "local/smollm2-135m-instruct", "parameters": {}, "system": "", "fingerprint": "x"}
    (tmp_path / "_configuration.json").write_text(json.dumps({"version": 1, **decisive}))
    with pytest.raises(SystemExit) as left:
        main([command, *given[command], *HOW])
    assert left.value.code == 0
    (options,) = started
    assert (options.mode, options.deadline, options.workers, options.gateway) == ("batch", 90.0, 3, "mine")
    assert options.rates == Rates(60, 1000)
    assert options.patience_s == 7.0


def test_a_run_that_can_go_on_later_says_when(started, monkeypatch, capsys):
    stopped = Summary("r", Counts(), (), (), {}, problem="the allocation is used", until=1_790_035_200.0)
    monkeypatch.setattr("llmdo.runners.running.run.run", lambda options, watch, **more: stopped)
    with pytest.raises(SystemExit) as left:
        main(["run", "--input", "r2://bucket/in/", "--output", "r2://bucket/out/"])
    assert left.value.code == 1
    said = capsys.readouterr().err
    assert "the allocation is used" in said
    assert "It can resume from 2026-09-22 00:00 UTC: run the same command again then." in said


def test_the_help_says_which_rate_holds_by_itself():
    said = " ".join(runner.invoke(app, ["run", "--help"], env={"COLUMNS": "400"}).output.replace("│", " ").split())
    assert "at Cloudflare's public API that of the model or its task (text generation: 300, frontier models 20)" in said


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        ("{", "is not valid JSON"),
        ("[1]", "does not hold a JSON object"),
        ('{"name": 1}', "it is not a JSON Schema"),
    ],
)
def test_a_schema_that_is_none_is_a_usage_error(started, tmp_path, capsys, content, says):
    if content is not None:
        (tmp_path / "schema.json").write_text(content)
    with pytest.raises(SystemExit) as left:
        main(
            ["run", "--input", "r2://b/in/", "--output", "r2://bucket/out/", "--schema", str(tmp_path / "schema.json")]
        )
    assert (left.value.code, started) == (2, [])
    said = capsys.readouterr().err
    assert "--schema" in said and says in said
