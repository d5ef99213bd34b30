"""What can be found out before the first call: the queue, the buckets, the files, the ledger, the configuration."""

from __future__ import annotations

import asyncio
import glob
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile

from llmdo.backends.money.prices import Prices
from llmdo.backends.workers_ai.errors import PROVIDER as WORKERS_AI
from llmdo.pipelines.options import JsonlOptions
from llmdo.pipelines.run_options import RunOptions
from llmdo.pipelines.usage import UsageError
from llmdo.runners import dataflow
from llmdo.settings.environment import MissingSettings, cloudflare_account, default_gateway, state_folder, whole_path
from llmdo.settings.private import make_folder, own_folder
from llmdo.storage.errors import QueueNotFound
from llmdo.storage.ledger.ledger import SQLITE_SCHEME
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import R2_SCHEME, Location, locate
from llmdo.storage.output.configuration import agree
from llmdo.storage.queues.api import WRONG_ACCOUNT
from llmdo.storage.queues.client import QueueClient, find_queue
from llmdo.storage.runs.budgets import BudgetBook
from llmdo.transforms.answers.ledger_settings import LedgerSettings
from llmdo.transforms.files.listing import Skipped, is_pattern, list_inputs
from llmdo.transforms.files.source import Listing
from llmdo.transforms.formats import endings

_log = logging.getLogger(__name__)

_WRANGLER = "npx wrangler queues consumer"


def prepare(options: JsonlOptions) -> JsonlOptions:
    """Checks all that a run needs, and replaces the names of queues by their ids.

    Raises UsageError for what the user must correct, StorageError for a service that refuses.
    """
    if options.runner == "dataflow":
        dataflow.check(options)
    if options.queue is not None:
        queue_id = id_of_queue(options.queue)
        check_consumers(options.queue, queue_id)
        options = options.model_copy(update={"queue": queue_id})
    if options.notify_queue is not None:
        options = options.model_copy(update={"notify_queue": _told_queue(options)})
    for place in (options.output, *options.files, *options.media_from):
        if place.startswith(R2_SCHEME) and (where := locate(place)).bucket:
            next(open_store(where.store_url).list(options.output_location.key + "_runs/"), None)
    check_files(options)
    if not options.apart:
        check_media_folders(options)
    for warning in of_gateway(options):
        _log.warning("%s", warning)
    check_folder(options.output_location, "--output")
    check_ledger(options.kept)
    return options


def id_of_queue(id_or_name: str) -> str:
    """A queue's id. Raises UsageError where there is no such queue, QueueError for a service that refuses."""
    try:
        return find_queue(cloudflare_account(), id_or_name)
    except QueueNotFound as error:
        if error.code in WRONG_ACCOUNT:
            raise
        raise UsageError([str(error)]) from None


def _told_queue(options: JsonlOptions) -> str:
    """The id of the queue for messages about settled files. Raises as ``id_of_queue``."""
    queue_id = id_of_queue(str(options.notify_queue))
    if queue_id == options.queue:
        name = options.notify_queue
        raise UsageError([f"--notify-queue {name} is the queue of the input's events, too: name another one"])
    return queue_id


def check_files(options: JsonlOptions) -> None:
    """Raises UsageError where local files or a pattern are named, and nothing to answer is there.

    A prefix in R2 may be empty now and hold files later: that is a warning.
    """
    source, skipped = options.source, Skipped()
    if not isinstance(source, Listing) or not source.inputs:
        return
    if next(list_inputs(source, options.output_location, skipped), None) is None:
        _nothing_there(source, skipped)
    for name in options.local_files:
        if is_pattern(name) and not _is_there(name):
            _log.warning("%s matches no file", name)


def check_media_folders(options: JsonlOptions) -> None:
    """Raises UsageError for a folder of ``--media-from`` that is not there: each line would fail by itself."""
    named = [place for place in options.media_from if place.startswith("/")]
    if absent := [place for place in named if not Path(place).is_dir()]:
        raise UsageError([f"--media-from {place}: there is no such folder; correct the path" for place in absent])


def _nothing_there(source: Listing, skipped: Skipped) -> None:
    prefixes = [name for name in source.inputs if name.startswith(R2_SCHEME)]
    absent = [name for name in source.inputs if name not in prefixes and not _is_there(name)]
    problems = [f"{name} does not exist, or matches no file: check the path" for name in absent]
    for name in prefixes:
        where = locate(name)
        if next(open_store(where.store_url).list(where.key), None) is not None:
            continue
        if is_pattern(name):
            problems.append(
                f"no key begins with {name}: R2 takes prefixes, not patterns; omit all from the wildcard on"
            )
        else:
            _log.warning("no key begins with %s: check the prefix, unless it is to be filled later", name)
    if not problems and not prefixes:
        problems = [f"no file ends in {endings(source.format)} at {' '.join(source.inputs)}"]
    if problems:
        raise UsageError([*problems, *skipped.sentences()])


def _is_there(name: str) -> bool:
    return Path(name).exists() or any(glob.iglob(name, recursive=True))  # noqa: PTH207 - as the files are found: absolute patterns, **


def of_gateway(options: JsonlOptions) -> list[str]:
    """A sentence for each kind of call that bypasses the run's AI Gateway."""
    gateway = options.gateway or default_gateway()
    if not gateway:
        return []
    others = [name for name in options.models if not name.startswith(f"{WORKERS_AI}/")]
    if len(others) == len(options.models):
        given = "--gateway" if options.gateway else "LLMDO_GATEWAY"
        return [f"{given} is for Workers AI: {' and '.join(others)} is called without the AI Gateway"]
    if options.mode != "sync":
        return ["batches do not go through the AI Gateway, which is not documented to support them: use --mode sync"]
    return []


def check_prices(options: RunOptions, prices: Prices) -> None:
    """Raises UsageError for a limit of cost that cannot be kept, since the price of a model is unknown.

    Raises StorageError for a record of the output's budget that cannot be read.
    """
    if options.budget is not None:
        BudgetBook(open_store(options.output_location.store_url), options.output_location.key).read()
    option = options.limits.in_dollars
    if not option:
        return
    unknown = [name for name in options.models if prices.of(*name.split("/", 1)) is None]
    if unknown:
        said = f"{option}: the price of {' and '.join(unknown)} is not known"
        instead = "use --max-tokens-total instead" if options.max_cost else "give --budget in tokens: '2M tokens/day'"
        raise UsageError([f"{said}: name it in a --price-file, or {instead}"])


def check_consumers(name: str, queue_id: str) -> None:
    """Warns of a queue that may lose messages. Raises UsageError for one that cannot be pulled, and QueueError."""
    with QueueClient(cloudflare_account(), queue_id) as client:
        consumers = client.consumers()
    pulls = [consumer for consumer in consumers if consumer.type == "http_pull"]
    if not pulls:
        has, remedy = "it has no consumer", f"run: {_WRANGLER} http add {name}"
        if consumers:  # a queue has one consumer at most
            has = f"its consumer is a {consumers[0].type}"
            remedy = f"run: {_WRANGLER} worker remove {name} SCRIPT, then: {_WRANGLER} http add {name}"
        raise UsageError([f"queue {name} cannot be pulled: {has}; {remedy}"])
    if not pulls[0].dead_letter_queue:
        tries = "some" if pulls[0].max_retries is None else str(pulls[0].max_retries)
        _log.warning(
            "queue %s has no dead-letter queue: a message that cannot be processed is deleted after %s tries; set one "
            "with: %s http remove %s, then: %s http add %s --dead-letter-queue NAME",
            *(name, tries, _WRANGLER, name, _WRANGLER, name),
        )


def check_folder(where: Location, option: str, *, private: bool = False) -> None:
    """Makes a missing local folder; a ``private`` one for this user alone.

    Raises UsageError where nothing can be written; R2 reports that later.
    """
    if not where.bucket:
        folder = Path(where.store_url) / where.key
        _try_folder(folder, option, make_folder if private else partial(Path.mkdir, parents=True, exist_ok=True))


def check_ledger(paid: LedgerSettings) -> None:
    """Opens and closes the ledger, so that what is wrong with it is reported before any call.

    Raises UsageError for a place where nothing can be written, and LedgerError.
    """
    if paid.ledger.startswith(SQLITE_SCHEME):
        folder = whole_path(paid.ledger.removeprefix(SQLITE_SCHEME)).parent
        _try_folder(folder, "--ledger", own_folder if _is_own(folder) else make_folder)
    recall = paid.open()
    if recall is not None:
        asyncio.run(recall.aclose())


def _is_own(folder: Path) -> bool:
    with suppress(MissingSettings):  # no home folder, so it is another one
        return folder == state_folder()
    return False


def _try_folder(folder: Path, option: str, make: Callable[[Path], None]) -> None:
    try:
        make(folder)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = "a file is in its way" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        said = f"{option} {folder}: nothing can be written there ({why})"
        raise UsageError([f"{said}: name a folder in which this user may write"]) from None


def check_configuration(options: RunOptions, is_alive: Callable[[str], bool]) -> None:
    """Raises UsageError if the output holds answers by another model or other parameters."""
    where = options.output_location
    try:
        other = agree(open_store(where.store_url), where.key, options.configuration, options.decisive, is_alive)
    except ValueError as error:
        raise UsageError([str(error)]) from None
    if other is not None:
        ours = options.decisive
        differences = [
            f"{name} {other.get(name)!r} there, {ours.get(name)!r} now"
            for name in dict.fromkeys((*ours, *other))
            if other.get(name) != ours.get(name) and name != "fingerprint"
        ]
        said = f"{options.output} is for answers of another configuration ({'; '.join(differences)})"
        raise UsageError([f"{said}: use another --output"])
