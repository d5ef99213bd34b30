import json

import pytest
from typer.testing import CliRunner

from runners.cli import app, main

runner = CliRunner()


@pytest.mark.parametrize("command", ["run", "verify", "local", "ask", "models"])
def test_every_command_has_help_with_an_example(command):
    result = runner.invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert f"llmdo {command}" in result.output


def test_no_option_takes_a_secret():
    for command in ("run", "verify", "local", "ask", "models"):
        text = runner.invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output.lower()
        assert "secret" not in text and "api-key" not in text and "--token" not in text


def test_usage_errors_are_all_said_and_exit_with_2(capsys):
    with pytest.raises(SystemExit) as left:
        main(["run", "--output", "s3://x/y", "--model", "gpt-4o", "--batch-size", "0", "--runner", "spark"])
    assert left.value.code == 2
    said = capsys.readouterr().err
    for what in ("--batch-size", "--model 'gpt-4o'", "--runner"):
        assert what in said


def test_a_complaint_is_shown_as_it_is_also_with_brackets(capsys):
    with pytest.raises(SystemExit):
        main(["run", "[/red].jsonl", "--output", "out/", "--model", "[bold]gpt"])
    assert "'[bold]gpt'" in capsys.readouterr().err


def test_verify_of_a_folder_that_is_no_output_fails_with_a_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        main(["verify", str(tmp_path), "--json"])
    assert left.value.code == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False
