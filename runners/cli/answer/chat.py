"""``llmdo chat`` and ``llmdo chat explain``."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from llmdo.pipelines.chat_options import ChatOptions, check_chat_options, log_to_explain
from llmdo.pipelines.shown import ADVANCED
from llmdo.runners.cli import arguments as arg
from llmdo.runners.lean_beam import import_beam
from llmdo.runners.showing.terminal import exit_by, is_quiet, put

CHAT_EXAMPLES = """
Examples:

    llmdo chat --events examples/chat/events.jsonl --output out/ --model local/smollm2-135m-instruct

    llmdo chat --queue chat-in --reply-queue chat-out --log r2://bucket/chat/

    llmdo chat --livestore wss://sync.example.com --store my-workspace --log r2://bucket/chat/

    llmdo chat explain MESSAGE_ID --log r2://bucket/chat/ --store my-workspace

Exit codes: 0 all answered, or stopped and drained; 3 finished, some messages got an error event; 1 failed or stopped,
the same command resumes; 2 usage. --store or STORE_ID names the log below --log or --output.
LIVESTORE_PAYLOAD is what the sync backend asks of its clients.
"""
EXPLAIN_EXAMPLES = """
Example: llmdo chat explain 0a1b2c3d --log r2://bucket/chat/

Exit codes: 0 it was answered; 3 it got an error event instead; 1 it has no answer, or none yet; 2 usage.
"""
_MANY = "--events"


class _Chat(TyperGroup):
    """Lets ``--events`` take several files, as a shell expands ``--events *.jsonl``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread(args))


def spread(args: list[str]) -> list[str]:
    """Repeats ``--events`` before each of the words that follow it.

    >>> spread(["--events", "a", "b", "--json"])
    ['--events', 'a', '--events', 'b', '--json']
    """
    found: list[str] = []
    many = False
    for word in args:
        if word.startswith("-"):
            many = word == _MANY
        elif many and found[-1] != _MANY:
            found.append(_MANY)
        found.append(word)
    return found


app = arg.command_app()


@app.callback(cls=_Chat, invoke_without_command=True, epilog=CHAT_EXAMPLES)
@arg.takes(ChatOptions)
def chat(
    given: dict[str, Any],
    context: typer.Context,
    runner: Annotated[
        str | None, typer.Option(help="direct (default, with --events) or prism.", rich_help_panel=ADVANCED.title)
    ] = None,
    as_json: arg.AsJson = False,
    json_progress: arg.JsonProgress = False,
    metrics_port: arg.MetricsPort = None,
    metrics_host: arg.MetricsHost = "127.0.0.1",
) -> None:
    """``llmdo chat``."""
    if context.invoked_subcommand is not None:
        return
    options = check_chat_options(**given, runner=runner)
    import_beam(options.runner)
    from llmdo.runners.running import chat as running
    from llmdo.runners.showing.progress import display

    shown = display(running.chat_line, as_json=as_json, json_progress=json_progress)
    with arg.served(shown, metrics_port, metrics_host) as watch:
        summary = running.chat(options, watch)
    if as_json:
        put(summary.as_json())
    elif not is_quiet():
        running.show_chat(summary, Console())
    exit_by(summary.run, summary.exit_code)


@app.command(epilog=EXPLAIN_EXAMPLES)
def explain(
    message_id: Annotated[str, typer.Argument(help="The message's id, as its event has it.")],
    log: Annotated[str, typer.Option(help="As given to llmdo chat: --log, or --output.")],
    conversation: Annotated[
        str | None, typer.Option(help="The conversation's id; saves looking through them all.")
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="As given to llmdo chat; default STORE_ID, or the only one of STORE_IDS.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell what happened to a message, stage by stage, or why it has no answer."""
    from llmdo.runners.inspecting import explain as inspecting

    found = inspecting.explain(log_to_explain(log, store), message_id, conversation)
    if as_json:
        put([one.as_json() for one in found])
    else:
        inspecting.show_explained(found, Console())
    raise typer.Exit(inspecting.exit_code(found))
