"""Every command on the pages, and in the help of the commands, is one that llmdo takes as it stands."""

from __future__ import annotations

import io
import re
import sys
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from llmdo.pipelines.usage import UsageError
from llmdo.runners.cli import main as cli
from llmdo.runners.cli.answer import ask, chat, run, schedule, stream
from llmdo.runners.cli.settings import SettingsFile, check_names
from tests.pages.blocks import PAGES, README, ROOT, blocks, commands, name_of, sentences_commands

# What a reader has, who types the commands.
FILES = {
    "praise.json": '{"type": "object", "properties": {"praise": {"type": "boolean"}}}',
    "prompts.jsonl": '{"prompt": "hi"}\n',
    "reviews.jsonl": '{"text": "good"}\n',
}
ENVIRONMENT = {
    "CLOUDFLARE_ACCOUNT_ID": "0123456789abcdef" * 2,
    "CLOUDFLARE_API_TOKEN": "cf-token",
    "R2_ACCESS_KEY_ID": "id",
    "R2_SECRET_ACCESS_KEY": "secret",
    "OPENAI_API_KEY": "sk-test",
    "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
    "BRAINTRUST_API_KEY": "bt-test",
    "BRAINTRUST_PROJECT_ID": "project",
    "ANTHROPIC_API_KEY": "sk-ant-test",
}
# Commands whose options are checked together, by the function of that name, before anything is done.
CHECKED = {
    ask: "check_ask_options",
    run: "check_options",
    stream: "check_options",
    schedule: "check_options",
    chat: "check_chat_options",
}
ALL = [
    pytest.param(words, id=f"{name_of(page)}: {' '.join(words)}"[:120])
    for page in PAGES
    for one in blocks(page)
    for words in commands(one.text)
]
SPANS = {"llmdo file"}  # a name in OpenTelemetry, and not a command
IN_SENTENCES = {
    command for page in PAGES if page.name != "CHANGELOG.md" for command in sentences_commands(page) - SPANS
}


class Checked(Exception):
    """The options were good: nothing else is done."""


@pytest.fixture
def take(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Takes the words of a command as the command line does, and checks its options; nothing is run."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    for module, name in CHECKED.items():
        monkeypatch.setattr(module, name, _checking(getattr(module, name)))
    monkeypatch.setattr(run, "with_stdin", lambda files, output, keep, form: list(files))
    monkeypatch.setattr(sys, "stdin", io.StringIO("what is piped in"))
    real = cli.command_of
    checked = {module.__name__.rpartition(".")[2] for module in CHECKED}
    monkeypatch.setattr(cli, "command_of", lambda name: _without_doing(real(name), but_check=name in checked))

    def take(words: list[str]) -> None:
        with suppress(Checked):
            cli.app(args=words, standalone_mode=False)

    return take


def _checking(check: Any) -> Any:
    def checks(*args: Any, **given: Any) -> None:
        check(*args, **given)
        raise Checked

    return checks


def _done(*_: object, **__: object) -> None:
    raise Checked


def _without_doing(command: Any, *, but_check: bool) -> Any:
    inner = getattr(command, "commands", {})
    for one in inner.values():
        one.callback = _done
    if not but_check and not inner:
        command.callback = _done
    return command


@pytest.mark.parametrize("words", ALL)
def test_a_command_on_a_page_is_taken(take, words):
    take(words)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_examples_in_a_commands_help_are_taken(take, name, monkeypatch):
    command = cli.command_of(name)
    helps = [command.epilog, *(inner.epilog for inner in getattr(command, "commands", {}).values())]
    found = [
        words
        for text in filter(None, helps)
        for line in text.replace("Example: ", "").replace("& then: . data/env", "").splitlines()
        for words in commands(line.partition("     (")[0])
    ]
    assert found or name in ("local", "config")
    monkeypatch.chdir(README.parent)  # they name its examples
    if "is LLMDO_QUEUE" in str(command.epilog):
        monkeypatch.setenv("LLMDO_QUEUE", "llmdo-input")
    for words in found:
        take(words)


@pytest.mark.parametrize("command", sorted(IN_SENTENCES))
def test_a_command_in_a_sentence_exists_with_its_options(command):
    words = command.removesuffix("…").split()[1:]
    named = words[0] if words else ""
    known: set[str] = {"--help", "-h", "--version", "--install-completion", "--show-completion"}
    if named in cli.COMMANDS:
        found = cli.command_of(named)
        for one in (found, *getattr(found, "commands", {}).values()):
            known |= {name for parameter in one.params for name in (*parameter.opts, *parameter.secondary_opts)}
    else:
        assert named.startswith(("-", "COMMAND", "…", "[")), command
    assert {word.partition("=")[0].rstrip(",") for word in words if word.startswith("-") and word != "-"} <= known


def test_a_wrong_command_is_seen(take):
    for words, why in (
        (["run", "prompts.jsonl", "-o", "out/", "--no-such-option"], "No such option"),
        (["run", "prompts.jsonl"], "Missing parameter: output"),
        (["ledger", "prune", "sqlite:///x"], "Missing parameter: older_than_days"),
        (["chat", "explain", "m", "--nothing"], "No such option"),
    ):
        with pytest.raises(Exception, match=why):
            take(words)
    with pytest.raises(UsageError, match="needs --output"):
        take(["chat", "--events", "events.jsonl", "-m", "local/x"])
    with pytest.raises(UsageError, match="a continuous run needs"):
        take(["stream", "--queue", "q", "-o", "out/", "--runner", "direct"])


def test_the_pages_have_commands():
    assert len(ALL) > 50
    assert len(IN_SENTENCES) > 20
    assert {param.values[0][0] for param in ALL} >= set(cli.COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_a_page_makes_is_a_target(page):
    made = {words[0] for one in blocks(page) for words in commands(one.text, "make")}
    made |= set(re.findall(r"`make ([a-z-]+)", page.read_text(encoding="utf-8")))
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert made <= set(targets)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_settings_file_on_a_page_is_taken(page):
    every = {name: cli.command_of(name) for name in cli.COMMANDS}
    for one in blocks(page, "toml"):
        check_names(SettingsFile(Path("llmdo.toml"), tomllib.loads(one.text)), every)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_on_a_page_is_python(page):
    for one in blocks(page, "python"):
        compile(one.text, name_of(page), "exec", dont_inherit=True)
