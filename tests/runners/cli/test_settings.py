"""Options from the command line, the environment and llmdo.toml: which of them holds, and what is said of a mistake."""

import json
import os

import pytest
from typer.testing import CliRunner

from llmdo.pipelines.usage import UsageError
from llmdo.runners.cli.main import COMMANDS, app, command_of
from llmdo.runners.cli.settings import read_settings, settable
from llmdo.runners.showing.summary import Summary
from llmdo.transforms.run_state import Counts

runner = CliRunner()
MODEL = "local/smollm2-135m-instruct"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("LLMDO_")]:
        monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def started(monkeypatch):
    found = []

    def start(options, *_, **more):
        found.append(options)
        return Summary("r", Counts(), (), (), {})

    monkeypatch.setattr("llmdo.runners.running.run.run", start)
    return found


def problems(*words):
    error = runner.invoke(app, words).exception
    assert isinstance(error, UsageError), error
    return error.problems


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(folder, started, monkeypatch):
    (folder / "llmdo.toml").write_text(
        f'model = "{MODEL}"\noutput = "of-file"\nmax-cost = 1\nmax_tokens = 7\n[run]\nconcurrency = "fixed:3"\n'
    )
    monkeypatch.setenv("LLMDO_MAX_COST", "2")
    monkeypatch.setenv("LLMDO_OUTPUT", "of-environment")
    assert runner.invoke(app, ["run", "a.jsonl", "-o", "of-line"], catch_exceptions=False).exit_code == 0
    (options,) = started
    assert (options.output, options.max_cost, options.max_tokens, str(options.concurrency)) == (
        *("of-line", 2.0, 7),
        "fixed:3",
    )
    assert options.model == MODEL


def test_what_may_be_repeated_is_a_list_in_the_file_and_words_in_the_environment(folder, started, monkeypatch):
    (folder / "llmdo.toml").write_text(f'model-for = ["a/*={MODEL}", "b/*={MODEL}"]\n')
    words = ["run", "x.jsonl", "-o", "out", "-m", MODEL]
    assert runner.invoke(app, words, catch_exceptions=False).exit_code == 0
    monkeypatch.setenv("LLMDO_MODEL_FOR", f"c/*={MODEL} d/*={MODEL}")
    assert runner.invoke(app, words, catch_exceptions=False).exit_code == 0
    assert [one.model_for for one in started] == [
        (f"a/*={MODEL}", f"b/*={MODEL}"),
        (f"c/*={MODEL}", f"d/*={MODEL}"),
    ]


def test_a_project_may_keep_its_options_in_pyproject(folder, started):
    (folder / "pyproject.toml").write_text(f'[tool.llmdo]\nmodel = "{MODEL}"\noutput = "out"\n[tool.ruff]\nx = 1\n')
    assert runner.invoke(app, ["run", "a.jsonl"], catch_exceptions=False).exit_code == 0
    assert started[0].model == MODEL
    (folder / "llmdo.toml").write_text('output = "other"\n')
    assert runner.invoke(app, ["run", "a.jsonl", "-m", MODEL], catch_exceptions=False).exit_code == 0
    assert started[1].output == "other"


def test_a_section_holds_for_its_command_and_that_of_run_for_schedule_too(folder):
    (folder / "llmdo.toml").write_text('[run]\nconcurrency = 5\n[chat]\nconcurrency = 6\nlog = "x/"\n')
    found = {}
    for command in ("run", "schedule", "stream", "chat"):
        said = json.loads(runner.invoke(app, ["config", command, "--json"], catch_exceptions=False).stdout)
        found[command] = {one["option"]: one["value"] for one in said["options"]}
    assert found["run"] == found["schedule"] == {"concurrency": "5"}
    assert found["stream"] == {}
    assert found["chat"] == {"concurrency": "6", "log": "x/"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('modell = "x"\n', "llmdo.toml: no command has the option 'modell': did you mean model?"),
        ('[run]\nlog = "x"\n', "llmdo.toml: llmdo run does not have the option 'log': remove it"),
        ("[walk]\na = 1\n", "llmdo.toml: [walk] is no command: write one of ask, run"),
        ("[schedule]\nconcurrency = 1\n", "write [run] instead of [schedule]: it holds for both"),
        ("output = \n", "llmdo.toml cannot be read: Invalid value"),
        ('prism-location = "x"\n', "llmdo.toml: --prism-location decides which program runs, or who gets keys"),
        ('[run]\ngateway = "https://x/v1/a/b"\n', "give it as an option, or as LLMDO_GATEWAY"),
        ('[run]\nflink_job_server_jar = "x"\n', "give it as an option, or as LLMDO_FLINK_JOB_SERVER_JAR"),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence(folder, text, says):
    (folder / "llmdo.toml").write_text(text)
    (said,) = problems("config")
    assert says in said


def test_a_file_that_is_not_text_is_one_sentence(folder):
    (folder / "llmdo.toml").write_bytes(b"\xff\xfe")
    assert problems("run", "a", "-o", "b")[0].startswith("llmdo.toml cannot be read: ")


def test_what_another_command_knows_is_no_mistake(folder, started):
    (folder / "llmdo.toml").write_text('reply-queue = "q"\nmodel = "local/smollm2-135m-instruct"\n')
    assert runner.invoke(app, ["run", "a.jsonl", "-o", "out"], catch_exceptions=False).exit_code == 0
    assert len(started) == 1


def test_a_folder_that_is_gone_sets_nothing(folder, started):
    (folder / "gone").mkdir()
    os.chdir(folder / "gone")
    (folder / "gone").rmdir()
    assert runner.invoke(app, ["run", "/a.jsonl", "-o", "/out", "-m", MODEL], catch_exceptions=False).exit_code == 0
    assert len(started) == 1


def test_without_a_file_nothing_is_set(folder):
    assert read_settings(folder).options == {}
    (folder / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert read_settings(folder).options == {}


def test_config_shows_what_holds_and_from_where_and_no_secret(folder, monkeypatch):
    (folder / "llmdo.toml").write_text("max-cost = 3\n")
    monkeypatch.setenv("LLMDO_TEMPERATURE", "0.5")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-0123456789")
    monkeypatch.setenv("COLUMNS", "200")
    said = runner.invoke(app, ["config"], catch_exceptions=False).stdout
    rows = [" ".join(row.replace("│", " ").split()) for row in said.splitlines()]
    assert "max-cost 3.0 llmdo.toml" in rows
    assert "temperature 0.5 LLMDO_TEMPERATURE" in rows
    assert "OPENAI_API_KEY: set" in rows
    assert "sk-very" not in said
    everything = runner.invoke(app, ["config", "--all"], catch_exceptions=False).stdout
    assert "batch-size" in everything and "batch-size" not in said


def test_every_option_of_a_command_has_a_variable_or_is_about_one_call():
    for name in COMMANDS:
        command = command_of(name)
        left = {one.name for one in command.params if one.param_type_name == "option"} - {
            one.name for _, one in settable(command)
        }
        assert left <= {
            *("help", "as_json", "dry_run", "progress", "json_progress", "everything", "all_options", "errors"),
            *("quiet", "verbose", "color", "log_format", "watch", "call", "yes"),
        }


def test_the_default_model_follows_from_the_keys_in_the_environment(monkeypatch, started):
    for name in (
        *("CLOUDFLARE_API_TOKEN", "CLOUDFLARE_ACCOUNT_ID", "OPENAI_API_KEY", "OPENAI_BASE_URL"),
        *("BRAINTRUST_API_KEY", "BRAINTRUST_PROJECT_ID", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"),
    ):
        monkeypatch.delenv(name, raising=False)
    words = ["run", "a.jsonl", "-o", "out"]
    (said,) = problems(*words)
    assert "OPENAI_API_KEY" in said and "Ollama" in said and f"--model {MODEL}" in said
    monkeypatch.setenv("ANTHROPIC_API_KEY", "x")
    runner.invoke(app, words, catch_exceptions=False)
    monkeypatch.setenv("BRAINTRUST_API_KEY", "x")
    monkeypatch.setenv("BRAINTRUST_PROJECT_ID", "y")
    runner.invoke(app, words, catch_exceptions=False)
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    runner.invoke(app, words, catch_exceptions=False)
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "x")
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", "a" * 32)
    runner.invoke(app, words, catch_exceptions=False)
    assert [one.model for one in started] == [
        "anthropic/claude-haiku-4-5",
        "braintrust/gpt-4o-mini",
        "openai/gpt-4o-mini",
        "workers-ai/@cf/meta/llama-3.3-70b-instruct-fp8-fast",
    ]


def test_with_a_server_of_their_own_users_name_a_model(monkeypatch):
    for name in ("CLOUDFLARE_API_TOKEN", "OPENAI_API_KEY", "BRAINTRUST_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:11434/v1")
    (said,) = problems("ask", "hello")
    assert said == ("name a model of OPENAI_BASE_URL with --model openai/NAME: `llmdo models openai` lists what it has")


def test_a_text_may_stand_in_a_file_and_a_files_name_alone_is_a_mistake(folder, started):
    (folder / "p.txt").write_text("Say {a}.\n")
    words = ["run", "a.jsonl", "-o", "out", "-m", MODEL]
    runner.invoke(app, [*words, "--prompt", "@p.txt", "--system", "Be brief."], catch_exceptions=False)
    (options,) = started
    assert (options.prompt, options.system) == ("Say {a}.\n", "Be brief.")
    assert problems(*words, "--system", "p.txt") == [
        "--system p.txt is the name of a file: write @p.txt to give what is in it"
    ]
    assert problems(*words, "--prompt", "@none.txt") == [
        "--prompt none.txt cannot be read (No such file or directory): name a text file in UTF-8"
    ]


def test_files_and_input_are_the_same(started, monkeypatch):
    words = ["run", "a.jsonl", "--input", "b.jsonl", "--input", "r2://bucket/c/", "-o", "out", "-m", MODEL]
    for name in ("R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY", "CLOUDFLARE_ACCOUNT_ID"):
        monkeypatch.setenv(name, "a" * 32)
    runner.invoke(app, words, catch_exceptions=False)
    assert started[0].files == ("a.jsonl", "b.jsonl", "r2://bucket/c/")
    assert started[0].local_files == ("a.jsonl", "b.jsonl")
