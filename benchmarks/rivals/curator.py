"""Curator: a column of prompts, with its backend "openai", which uses aiohttp. It also writes answers to files."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from benchmarks.servers.fake_endpoint import TEXT
from benchmarks.ways.measuring import Task, run, stay_on_this_machine


def call_all(task: Task) -> int:
    """Makes all calls, and an empty one before them."""
    from bespokelabs import curator  # type: ignore[import-not-found]  # noqa: PLC0415  after the variables

    limits = {"max_requests_per_minute": 1_000_000, "max_tokens_per_minute": 1_000_000_000}
    model = curator.LLM(
        model_name="gpt-4",
        backend="openai",
        backend_params={"base_url": f"{task.url}/v1", "max_concurrent_requests": task.concurrency, **limits},
    )
    answers = model(task.texts(), working_dir=task.folder).dataset
    return sum(answer == TEXT for answer in answers["response"])


def prepare() -> None:
    """Sets what Curator and its libraries read when they are imported."""
    stay_on_this_machine()
    litellm = find_spec("litellm")
    assert litellm
    assert litellm.origin
    os.environ |= {
        "OPENAI_API_KEY": "key",
        "TELEMETRY_ENABLED": "false",
        "HF_HUB_OFFLINE": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        # The vocabulary that tiktoken counts with; it would download it.
        "TIKTOKEN_CACHE_DIR": str(Path(litellm.origin).parent / "litellm_core_utils" / "tokenizers"),
    }


if __name__ == "__main__":
    prepare()
    run(call_all)
