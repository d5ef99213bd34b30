"""``llmdo`` with what a user cannot set and a benchmark must: ``python -m benchmarks.launch CHECKPOINT URL ARGUMENTS…``

CHECKPOINT stands for ``pipelines.options.PRISM_CHECKPOINT``, in seconds: where latencies are scaled down, so is this.
URL is where the model stands, apart from the queue, so that neither slows the other.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from unittest.mock import patch

from backends import workers_ai
from pipelines import options
from runners import cli
from storage.environment import cloudflare_account


def main() -> None:
    """The command."""
    checkpoint, url, *arguments = sys.argv[1:]
    model = replace(cloudflare_account(), base_url=url)
    with (
        patch.object(options, "PRISM_CHECKPOINT", float(checkpoint)),
        patch.object(workers_ai, "cloudflare_account", lambda: model),
    ):
        cli.main(arguments)


if __name__ == "__main__":
    main()
