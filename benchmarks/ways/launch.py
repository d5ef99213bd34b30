"""``llmdo`` with settings that a benchmark needs and a user does not have.

    python -m benchmarks.ways.launch CHECKPOINT URL SAMPLES ARGUMENTS…

CHECKPOINT replaces PRISM_CHECKPOINT of ``llmdo.pipelines.runner_options``, in seconds, scaled down like the latencies.
URL is that of the model, which is separate from the queue, so that neither slows the other. SAMPLES is a file that
gets, at the end, samples of the calls that the engine had in flight: JSON, pairs of time.monotonic() and calls.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from llmdo.backends.engine.registry import calls_in_flight
from llmdo.backends.workers_ai import backend as workers_ai
from llmdo.pipelines import runner_options
from llmdo.runners.cli import main as cli
from llmdo.settings.environment import cloudflare_account

EVERY_S = 0.05


def main() -> None:
    """The command."""
    checkpoint, url, path, *arguments = sys.argv[1:]
    samples: list[tuple[float, int]] = []
    threading.Thread(target=_sample, args=(samples,), daemon=True).start()
    model = replace(cloudflare_account(), base_url=url)
    with (
        patch.object(runner_options, "PRISM_CHECKPOINT", float(checkpoint)),
        patch.object(workers_ai, "cloudflare_account", lambda: model),
    ):
        try:
            cli.main(arguments)
        finally:
            Path(path).write_text(json.dumps(samples))


def _sample(samples: list[tuple[float, int]]) -> None:
    while True:
        samples.append((time.monotonic(), calls_in_flight()))
        time.sleep(EVERY_S)


if __name__ == "__main__":
    main()
