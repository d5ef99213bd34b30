"""The services with OpenAI's Batch API, one row each: what they take, and in what they differ. Found by the base URL.

Where a row has a smaller number than its service publishes, its comment says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from llmdo.backends.openai_batches.jobs import LISTED_AT_ONCE

_CHAT = "/v1/chat/completions"
_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class BatchService:
    """A service, or all those that are not known by their address.

    Attributes:
        name: for people.
        hosts: of its base URLs; hosts below them count too.
        items, size: of one batch: requests, and bytes of their file.
        window_s: the longest time that it gives for answers, in seconds: what is asked for.
        routes: whose bodies a batch may hold.
        enqueued: input tokens of a model that may wait at once; None: it depends on the account, and refusals tell it.
        purpose, upload: the word and the route by which a batch's file is uploaded.
        jobs: the route of its batches.
        own_jobs: they have the fields of Mistral's jobs.
        keeps_metadata: whether a batch can be found by its metadata, else by the name of its file; None: not known.
        source: where all this is published.
    """

    name: str
    hosts: tuple[str, ...]
    source: str
    items: int = 50_000
    size: int = 200_000_000
    window_s: float = _DAY_S
    routes: frozenset[str] = frozenset({_CHAT})
    enqueued: int | None = None
    purpose: str = "batch"
    upload: str = "files"
    jobs: str = "batches"
    own_jobs: bool = False
    keeps_metadata: bool | None = True

    def creation(self, file: str, route: str, model: str, nonce: str) -> dict[str, Any]:
        """The body that makes a batch of an uploaded file; all its lines name one model."""
        hours = int(self.window_s // 3600)
        if self.own_jobs:
            made: dict[str, Any] = {"input_files": [file], "endpoint": route, "model": model, "timeout_hours": hours}
        else:
            made = {"input_file_id": file, "endpoint": route, "completion_window": f"{hours}h"}
        return made if self.keeps_metadata is False else {**made, "metadata": {"llmdo": nonce}}

    def line(self, custom_id: str, route: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """A line of a batch's file."""
        if self.own_jobs:
            return {"custom_id": custom_id, "body": {name: body[name] for name in body if name != "model"}}
        return {"custom_id": custom_id, "method": "POST", "url": route, "body": body}

    def page(self, last: str, number: int) -> dict[str, str]:
        """The query of a page of the list of batches, the newest first: after the ``last`` batch, the ``number``-th."""
        if self.own_jobs:
            return {"page": str(number), "page_size": str(LISTED_AT_ONCE), "order_by": "-created"}
        return {"limit": str(LISTED_AT_ONCE), **({"after": last} if last else {})}


_OPENAI = BatchService(
    name="OpenAI",
    hosts=("api.openai.com",),
    source="developers.openai.com/api/docs/guides/batch",
    routes=frozenset({_CHAT, "/v1/responses", "/v1/embeddings", "/v1/completions", "/v1/moderations"}),
)
_GROQ = BatchService(
    name="Groq",
    hosts=("api.groq.com",),
    source="console.groq.com/docs/batch",
    size=100_000_000,  # 24 hours is the shortest window; up to 7 days can be asked for
)
_TOGETHER = BatchService(
    name="Together",
    hosts=("api.together.xyz", "api.together.ai"),
    source="docs.together.ai/docs/inference/batch/overview",
    size=100_000_000,
    enqueued=30_000_000_000,
    purpose="batch-api",
    upload="files/upload",
    keeps_metadata=False,
)
_MISTRAL = BatchService(
    name="Mistral",
    hosts=("api.mistral.ai",),
    source="docs.mistral.ai/capabilities/batch",
    # A million requests in 512 MB can be handed over at once, but would stand in memory meanwhile.
    routes=frozenset({_CHAT, "/v1/embeddings", "/v1/moderations"}),
    jobs="batch/jobs",
    own_jobs=True,
)
_DOUBLEWORD = BatchService(
    name="Doubleword",
    hosts=("api.doubleword.ai",),
    source="docs.doubleword.ai/inference-api",
    routes=frozenset({_CHAT, "/v1/embeddings"}),
    keeps_metadata=None,
)
# AIBrix takes files of 100 MiB; LiteLLM, and whatever else a company runs, pass on what their providers take.
_OTHERS = BatchService(
    name="other services",
    hosts=(),
    source="aibrix.readthedocs.io, docs.litellm.ai/docs/batches",
    size=100_000_000,
    routes=_OPENAI.routes,
    keeps_metadata=None,
)
BATCH_SERVICES = (_OPENAI, _GROQ, _TOGETHER, _MISTRAL, _DOUBLEWORD, _OTHERS)


def batch_service(base_url: str) -> BatchService:
    """The row of the service at a base URL."""
    host = urlsplit(base_url).hostname or ""
    known = (row for row in BATCH_SERVICES if any(host == one or host.endswith(f".{one}") for one in row.hosts))
    return next(known, _OTHERS)
