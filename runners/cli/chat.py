"""The commands for chats: ``llmdo chat`` and ``llmdo chat explain``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from llmdo.pipelines.chat_options import ChatOptions, check_chat_options, log_of
from llmdo.runners.cli import arguments as arg
from llmdo.runners.inspecting.explain import exit_code, show_explained
from llmdo.runners.inspecting.explain import explain as explain_message
from llmdo.runners.running.chat import chat as answer_chats
from llmdo.runners.running.chat import chat_line, show_chat
from llmdo.runners.showing.progress import Watch
from llmdo.runners.showing.terminal import leave, quiet, stderr
from llmdo.settings.environment import default_store

CHAT_EXAMPLES = """
Examples:

    llmdo chat --events examples/chat/events.jsonl --output out/ --model local/smollm2-135m-instruct

    llmdo chat --queue chat-in --reply-queue chat-out --log r2://bucket/chat/

    llmdo chat explain MESSAGE_ID --log r2://bucket/chat/

Exit codes: 0 all answered, or stopped and drained; 3 finished, some messages got an error for an answer; 1 failed or
stopped, the same command goes on; 2 usage. STORE_ID names the log below --log or --output.
"""
EXPLAIN_EXAMPLES = """
Example: llmdo chat explain 0a1b2c3d --log r2://bucket/chat/

Exit codes: 0 it was answered; 3 it got an error for an answer; 1 it has no answer, or none yet; 2 usage.
"""
_MANY = "--events"


class _Chat(TyperGroup):
    """Lets ``--events`` take several files, as a shell makes of ``--events *.jsonl``."""

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


chat_app = typer.Typer()


@chat_app.callback(cls=_Chat, invoke_without_command=True, epilog=CHAT_EXAMPLES)
def chat(
    context: typer.Context,
    events: Annotated[list[str] | None, typer.Option(help="Event logs, JSON lines: files, folders, patterns.")] = None,
    output: Annotated[str | None, typer.Option(help="Where log and responses of --events go: a folder, r2://…")] = None,
    queue: Annotated[str | None, typer.Option(help="Queue of events, id or name.")] = None,
    reply_queue: Annotated[str | None, typer.Option(help="Queue that responses go to, id or name.")] = None,
    log: Annotated[
        str | None, typer.Option(help="What was said and answered (with --queue): r2://BUCKET/PREFIX/.")
    ] = None,
    model: Annotated[str, typer.Option(help="PROVIDER/MODEL.")] = arg.default("model", ChatOptions),
    temperature: Annotated[float, typer.Option(help="0 to 5.")] = arg.default("temperature", ChatOptions),
    max_tokens: Annotated[int, typer.Option(help="Tokens of an answer at most.")] = arg.default(
        "max_tokens", ChatOptions
    ),
    context_tokens: Annotated[
        int | None, typer.Option(help="Tokens that the model's context holds; default what its provider tells.")
    ] = None,
    system: Annotated[
        Path | None, typer.Option(help="File with the system prompt; default pipelines/system_prompt.md.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Messages sent before are not answered: ISO 8601, or ms since 1970.")
    ] = None,
    deltas: Annotated[bool, typer.Option("--deltas", help="Push the text while it is generated, too.")] = False,
    concurrency: Annotated[str, typer.Option(help="Answers in the making at most: N, or fixed:N.")] = arg.default(
        "concurrency", ChatOptions
    ),
    rpm: arg.Rpm = None,
    tpm: arg.Tpm = None,
    max_cost: Annotated[
        float | None,
        typer.Option(
            help="US dollars at most. Before they could be passed, --events stops and leaves its messages open; with "
            "--queue they get an error for an answer, without a call."
        ),
    ] = None,
    max_tokens_total: Annotated[
        int | None, typer.Option(help="Tokens of all calls at most, in and out; likewise.")
    ] = None,
    header: arg.Header = None,
    call_timeout: arg.CallTimeout = arg.default("call_timeout", ChatOptions),
    patience: Annotated[
        float | None,
        typer.Option(
            help="Seconds for which the model may answer nothing, while calls pause, before messages get an error for "
            "an answer (default 60), or with --events the run stops (default 600)."
        ),
    ] = None,
    poll_seconds: arg.PollSeconds = arg.default("poll_seconds", ChatOptions),
    ledger: arg.Ledger = None,
    runner: Annotated[str | None, typer.Option(help="direct (default, with --events) or prism.")] = None,
    prism_location: arg.PrismLocation = None,
    allow_open_ports: arg.AllowOpenPorts = False,
    drain_seconds: arg.DrainSeconds = arg.default("drain_seconds", ChatOptions),
    max_restarts: arg.MaxRestarts = arg.default("max_restarts", ChatOptions),
    as_json: arg.AsJson = False,
) -> None:
    """Answer the messages of users: those of event logs, then exit; or those of a queue, until SIGTERM or Ctrl-C."""
    given = {name: value for name, value in locals().items() if name in ChatOptions.model_fields}
    if context.invoked_subcommand is not None:
        return
    given |= {"events": tuple(events or ()), "header": tuple(header or ())}
    del given["system"]
    if system is not None:
        given["system"] = arg.read_text(system, "--system")
    options = check_chat_options(**given)
    summary = answer_chats(options, quiet if as_json else Watch(stderr, chat_line))
    if as_json:
        print(json.dumps(summary.as_json()))  # noqa: T201  this is the command's output
    else:
        show_chat(summary, Console())
    leave(summary)


@chat_app.command(epilog=EXPLAIN_EXAMPLES)
def explain(
    message_id: Annotated[str, typer.Argument(help="The message's id, as its event has it.")],
    log: Annotated[str, typer.Option(help="As given to llmdo chat: --log, or --output.")],
    conversation: Annotated[
        str | None, typer.Option(help="The conversation's id; saves looking through them all.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell what happened to a message, stage by stage, or why it has no answer."""
    found = explain_message(log_of(log, default_store()), message_id, conversation)
    if as_json:
        print(json.dumps([one.as_json() for one in found]))  # noqa: T201  this is the command's output
    else:
        show_explained(found, Console())
    raise typer.Exit(exit_code(found))
