"""One question to one model: asked, retried until the answer has begun, and written as it comes."""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any, TextIO, TypeVar

from llmdo.backends.errors import ModelError, Retryable
from llmdo.backends.limits.retry import THREE_TRIES
from llmdo.backends.listing import deprecation
from llmdo.backends.providers import unusual
from llmdo.backends.requests import ChatRequest, Message
from llmdo.backends.responses import ChatResponse, StreamChunk
from llmdo.backends.sync import Model, connect
from llmdo.pipelines.ask_options import AskOptions
from llmdo.settings.environment import MissingSettings

T = TypeVar("T")
_SAYS = ("content", "tool_use", "done")


@dataclass(frozen=True, slots=True)
class Said:
    """How it went: whether there was text or a tool call, and sentences on what is not as requested."""

    answered: bool
    warnings: tuple[str, ...]


def ask(prompt: str, options: AskOptions, out: TextIO, *, stream: bool, as_json: bool) -> Said:
    """Writes the answer to ``out``.

    With ``stream`` each piece is written as it comes. With ``as_json`` the answer is one JSON object, or one for each
    chunk. Raises ModelError, and MissingSettings.
    """
    system = (Message("system", options.system),) if options.system else ()
    messages = (*system, Message("user", prompt))
    with connect(options.model, options.gateway, **unusual(options.header, options.call_timeout)) as model:
        request = ChatRequest(model.model, messages, options.parameters, uuid.uuid4().hex)
        if stream:
            said = _written(_tried(lambda: _begun(model, request)), out, as_json=as_json)
        else:
            response = _tried(lambda: model.execute(request))
            if as_json:
                print(json.dumps(_without_defaults(response)), file=out)
            elif response.text or response.tool_calls:
                print(response.text or _calls(response.tool_calls), file=out, flush=True)
            said = Said(bool(response.text or response.tool_calls), response.warnings)
        return replace(said, warnings=tuple(dict.fromkeys((*said.warnings, *_ending(model)))))


def _ending(model: Model) -> tuple[str, ...]:
    """A warning if the model is, or will be, switched off; looked up after the answer, in a list up to an hour old."""
    try:
        listed = model.list_models().models
    except (ModelError, MissingSettings):
        return ()  # the answer is good without it
    info = next((info for info in listed if info.name == model.name), None)
    warning = deprecation(info, time.time())
    return (warning,) if warning else ()


def _begun(model: Model, request: ChatRequest) -> Iterator[StreamChunk]:
    """A stream whose first words have come: until then, a retry repeats nothing."""
    chunks = model.execute_stream(request)
    first: list[StreamChunk] = []
    while not first or first[-1].kind not in _SAYS:
        first.append(next(chunks))
    return chain(first, chunks)


def _written(chunks: Iterator[StreamChunk], out: TextIO, *, as_json: bool) -> Said:
    warnings: list[str] = []
    last, calls, answered = "\n", [], False
    try:
        for chunk in chunks:
            warnings += chunk.details.get("warnings", ())
            answered = answered or chunk.kind in ("content", "tool_use")
            if as_json:
                print(json.dumps({"kind": chunk.kind, **_without_defaults(chunk)}), file=out, flush=True)
            elif chunk.kind == "content":
                print(chunk.text, end="", file=out, flush=True)
                last = chunk.text
            elif chunk.kind == "tool_use" and chunk.tool_call:
                calls.append(chunk.tool_call)
            if chunk.kind == "done" and chunk.finish_reason == "length" and not any("cut off" in w for w in warnings):
                warnings.append("the answer is cut off: raise --max-tokens")
    finally:
        if not last.endswith("\n"):
            print(file=out)
    if calls:
        print(_calls(tuple(calls)), file=out)
    if not answered:
        warnings.append("the model sent no text")
    return Said(answered, tuple(warnings))


def _tried(call: Callable[[], T]) -> T:
    tries = 0
    while True:
        tries += 1
        try:
            return call()
        except Retryable as error:
            wait = THREE_TRIES.wait_s(error, tries, random.Random())  # noqa: S311  no secret depends on it
            if wait is None:
                raise
            time.sleep(wait)


def _calls(calls: tuple[Mapping[str, Any], ...]) -> str:
    return "\n".join(json.dumps(call) for call in calls)


def _without_defaults(value: ChatResponse | StreamChunk) -> dict[str, Any]:
    return {name: part for name, part in asdict(value).items() if part not in (None, "", (), {}, [])}
