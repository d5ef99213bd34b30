"""Cloudflare Queues over HTTP: pull, settle, push, and how often to ask.

Source: developers.cloudflare.com/queues/configuration/pull-consumers, /queues/platform/limits and
/queues/reference/error-codes. Calls block; at one pull at a time nothing more is needed.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json, to_json

from storage.environment import CloudflareAccount
from storage.errors import QueueError, QueueNotFound, QueueUnauthorized
from storage.queue_bodies import decode_body

MAX_BATCH = 100  # messages in a pull, a push or an ack
MAX_MESSAGE_BYTES = 128_000 - 100  # about 100 bytes of each message are metadata
MAX_PUSH_BYTES = 256_000
VISIBILITY_TIMEOUT_S = 120.0  # long enough to write 100 job records, short enough that a dead run's messages come back
_TRIES = 4
_LONGEST_WAIT_S = 30.0  # a longer Retry-After is the caller's to wait for

_log = logging.getLogger(__name__)
