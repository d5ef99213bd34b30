"""``llmdo doctor``: is everything that a run needs there? Each finding with its remedy."""

from __future__ import annotations

import io
import os
import platform
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from llmdo import __version__
from llmdo.backends.errors import ModelError
from llmdo.backends.money.prices import FREE, Prices
from llmdo.backends.providers import PROVIDERS, usual_model
from llmdo.pipelines.ask_options import check_ask_options
from llmdo.pipelines.run_options import default_ledger
from llmdo.pipelines.usage import UsageError
from llmdo.runners.flink.jar import cached_jar, java
from llmdo.runners.inspecting.ask import ask
from llmdo.runners.prism.binary import cached_prism
from llmdo.runners.running.checks import check_ledger
from llmdo.runners.showing.words import counted, lasting
from llmdo.settings.environment import MissingSettings, cache_folder, cloudflare_account, state_folder
from llmdo.settings.tools import ToolError
from llmdo.storage.errors import AlreadyExists, InvalidLocation, ObjectChanged, ObjectNotFound, StorageError
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import locate, locate_folder
from llmdo.storage.queues.api import QueueApi
from llmdo.storage.queues.client import QueueClient, find_queue
from llmdo.transforms.answers.ledger_settings import LedgerSettings

Level = Literal["ok", "warning", "fault"]
_LEVELS: tuple[Level, ...] = ("ok", "warning", "fault")
_STYLES = {"ok": "green", "warning": "yellow", "fault": "red"}
# R2 refuses requests that are signed 15 minutes off (RequestTimeTooSkewed). Seconds.
_SKEW_WARNS, _SKEW_FAILS = 60.0, 900.0
# Ledger, caches and temporary files need some room. Bytes.
_LITTLE, _TOO_LITTLE = 5 << 30, 200 << 20
_CONSUMER = "npx wrangler queues consumer http"
_RETRIES_WARN = 5  # a message whose file fails this often is in the dead letters, or lost


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, how it is, and what to do about it; "" where nothing is to be done."""

    what: str
    level: Level
    said: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is looked at besides this machine: None leaves it out, but for the model that the environment chooses.

    Attributes:
        input: an ``r2://`` prefix whose bucket should have a rule for ``queue``.
        call: whether the model is called once, with a few tokens.
    """

    model: str | None = None
    input: str | None = None
    output: str | None = None
    queue: str | None = None
    call: bool = False


def examine(asked: Asked) -> Iterator[Finding]:
    """One finding after the other; whatever fails is one, too."""
    checks: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("machine", _machine),
        ("disk", _disk),
        ("model", lambda: _model(asked)),
    ]
    if asked.output is not None:
        output = asked.output
        checks += [("output", lambda: _output(output)), ("ledger", lambda: _ledger(output))]
    if asked.queue is not None:
        queue = asked.queue
        checks += [("queue", lambda: _queue(queue))]
        if asked.input is not None:
            place = asked.input
            checks += [("event rule", lambda: _event_rule(place, queue))]
    checks += [("prism", _prism), ("flink", _flink)]
    for what, check in checks:
        try:
            yield from check()
        except (StorageError, ModelError, ToolError, InvalidLocation) as error:
            yield Finding(what, "fault", str(error))
        except (MissingSettings, UsageError) as error:
            yield from (Finding(what, "fault", problem) for problem in error.problems)


def worst(findings: Iterable[Finding]) -> Level:
    """The level of the most serious one."""
    return max((one.level for one in findings), key=_LEVELS.index, default="ok")


def findings_json(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """For ``--json``."""
    return [asdict(one) for one in findings]


def finding_table(findings: Iterable[Finding]) -> Table:
    """For people."""
    table = Table("", "what", "how it is, and what to do", show_header=False, box=None)
    for one in findings:
        said = Text.assemble(one.said, *([("\n→ " + one.remedy, "bold")] if one.remedy else []))
        table.add_row(Text(one.level, style=_STYLES[one.level]), Text(one.what), said)
    return table


def _machine() -> Iterator[Finding]:
    said = f"llmdo {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    tested = sys.version_info < (3, 14)
    yield Finding(
        *("machine", "ok" if tested else "warning", said), "" if tested else "llmdo is tested on Python 3.11 to 3.13"
    )
    names = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "SSL_CERT_FILE")
    found = [name for name in names if os.environ.get(name) or os.environ.get(name.lower())]
    if found:
        yield Finding("network", "ok", f"{', '.join(found)} decide how other machines are reached")


def _disk() -> Iterator[Finding]:
    for what, folder in (("state", state_folder()), ("cache", cache_folder())):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not os.access(there, os.W_OK):
            yield Finding(f"disk, {what}", "fault", f"{there}: nothing can be written there", "make it this user's")
            continue
        free = shutil.disk_usage(there).free
        level: Level = "fault" if free < _TOO_LITTLE else "warning" if free < _LITTLE else "ok"
        remedy = "" if level == "ok" else f"free some space, or set XDG_{what.upper()}_HOME to another disk"
        yield Finding(f"disk, {what}", level, f"{folder}: {free / (1 << 30):,.1f} GiB free", remedy)


def _model(asked: Asked) -> Iterator[Finding]:
    for name, row in PROVIDERS.items():
        if row.access is None:
            continue
        with suppress(MissingSettings):
            row.access()
            yield Finding(f"keys, {name}", "ok", "are set")
    model = asked.model or usual_model()
    if model is None:
        yield Finding("model", "warning", "no provider's keys are set", "export them, or name --model local/…")
        return
    options = check_ask_options(model=model, max_tokens=16)
    provider, name = options.model.split("/", 1)
    prices = Prices()
    if provider not in FREE:
        listed, problem = prices.lists(provider, name), prices.problem(provider)
        if problem:
            yield Finding(f"models, {provider}", "warning", f"its list cannot be read: {problem}")
        elif not listed:
            yield Finding("model", "fault", f"{provider} lists no {name}", f"choose one: llmdo models {provider}")
            return
    price = prices.of(provider, name)
    said = (
        "its price is not known: --max-cost needs a --price-file" if price is None else f"is priced by {price.source}"
    )
    yield Finding("model", "warning" if price is None else "ok", f"{options.model} {said}")
    if asked.call:
        began, out = time.monotonic(), io.StringIO()
        answered = ask("Say hello.", options, out, stream=False, as_json=False).answered
        took = lasting(time.monotonic() - began)
        yield Finding(
            "call", "ok" if answered else "warning", f"{'answered' if answered else 'no text came'} in {took}"
        )


def _output(url: str) -> Iterator[Finding]:
    """Writes, writes conditionally, reads and removes one small object."""
    where = locate_folder(url)
    store, key = open_store(where.store_url), f"{where.key}_doctor/{uuid.uuid4().hex}"
    next(iter(store.list(where.key)), None)
    etag = store.put_if_absent(key, b"llmdo doctor")
    try:
        modified, now = store.stat(key).modified.timestamp(), time.time()
        yield Finding("output", "ok", f"{url} can be listed, written and read")
        ignored = [*_conditional(store.url, lambda: store.put_if_absent(key, b"again"), AlreadyExists)]
        if not ignored:
            store.put_if_match(key, b"changed", etag)
            ignored = [*_conditional(store.url, lambda: store.put_if_match(key, b"again", etag), ObjectChanged)]
        yield from ignored
    finally:
        store.delete(key)
    with suppress(ObjectNotFound):
        store.stat(key)
        yield Finding("output", "fault", f"{url}: an object cannot be removed", "give the token the right to delete")
    if where.bucket:
        yield _clock(abs(now - modified), store.url)


def _conditional(place: str, write: Callable[[], object], refusal: type[StorageError]) -> Iterator[Finding]:
    try:
        write()
    except refusal:
        return
    yield Finding(
        *("output", "fault", f"{place} ignores conditional writes: two runs could take the same file"),
        "use R2 itself, or another S3 service that has If-Match and If-None-Match",
    )


def _clock(skew_s: float, place: str) -> Finding:
    level: Level = "fault" if skew_s > _SKEW_FAILS else "warning" if skew_s > _SKEW_WARNS else "ok"
    said = f"{lasting(skew_s)} apart from that of {place}" if skew_s > 1 else f"agrees with that of {place}"
    return Finding("clock", level, said, "" if level == "ok" else "set this machine's clock: timedatectl set-ntp true")


def _ledger(output: str) -> Iterator[Finding]:
    place = default_ledger(locate_folder(output))
    check_ledger(LedgerSettings(place))
    yield Finding("ledger", "ok", f"{place} can be opened")


def _queue(name: str) -> Iterator[Finding]:
    account = cloudflare_account()
    with QueueClient(account, find_queue(account, name)) as client:
        consumers, backlog = client.consumers(), client.backlog_now()
    pulls = [one for one in consumers if one.type == "http_pull"]
    if not pulls:
        has = f"its consumer is a {consumers[0].type}" if consumers else "it has no consumer"
        yield Finding("queue", "fault", f"{name} cannot be pulled: {has}", f"{_CONSUMER} add {name}")
        return
    age = "" if backlog.oldest_at is None else f", the oldest {lasting(max(0.0, time.time() - backlog.oldest_at))} old"
    yield Finding("queue", "ok", f"{name} can be pulled; about {counted(backlog.messages, 'message')}{age}")
    again = f"{_CONSUMER} remove {name} && {_CONSUMER} add {name}"
    retries = pulls[0].max_retries
    if not pulls[0].dead_letter_queue:
        said = f"{name} has no dead-letter queue: after {retries or 'some'} tries a message is deleted"
        yield Finding("queue", "warning", said, f"{again} --dead-letter-queue NAME")
    if retries is not None and retries < _RETRIES_WARN:
        yield Finding(
            "queue",
            "warning",
            f"{name} gives a message {counted(retries, 'try', 'tries')} only",
            f"{again} --message-retries 100",
        )


def _event_rule(place: str, queue: str) -> Iterator[Finding]:
    where = locate(place)
    if not where.bucket:
        return
    account = cloudflare_account()
    queue_id = find_queue(account, queue)
    with QueueApi(account, None, time.sleep) as api:
        what = f"event rules of bucket {where.bucket}"
        reply = api.call("GET", f"/event_notifications/r2/{where.bucket}/configuration", what, tries=3)
    rules = [
        rule
        for entry in (reply.result or {}).get("queues") or ()
        if entry.get("queueId") == queue_id
        for rule in entry.get("rules") or ()
    ]
    covering = [rule for rule in rules if where.key.startswith(rule.get("prefix") or "")]
    remedy = f"npx wrangler r2 bucket notification create {where.bucket} --event-type object-create --queue {queue}"
    remedy += f" --prefix {where.key}" if where.key else ""
    if not covering:
        yield Finding(
            "event rule", "fault", f"no rule of {where.bucket} tells {queue} of new objects in {place}", remedy
        )
    elif not any("PutObject" in (rule.get("actions") or ()) for rule in covering):
        yield Finding("event rule", "fault", f"the rule of {where.bucket} does not tell of new objects", remedy)
    else:
        yield Finding("event rule", "ok", f"{queue} is told of new objects in {place}")


def _prism() -> Iterator[Finding]:
    there = cached_prism().exists() or os.environ.get("LLMDO_PRISM")
    said = "is there" if there else "is not there yet: llmdo stream and chat build it at their first start (a minute)"
    yield Finding("prism", "ok", said)


def _flink() -> Iterator[Finding]:
    try:
        found = f"Java at {java()}"
    except ToolError as error:
        yield Finding("flink", "ok", f"only for --runner flink: {error}")
        return
    jar = cached_jar().exists() or os.environ.get("LLMDO_FLINK_JAR")
    yield Finding("flink", "ok", f"{found}; the job server {'is there' if jar else 'is built at the first start'}")
