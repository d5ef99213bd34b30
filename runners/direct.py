"""Where a graph runs in this very process: FnApiRunner, which comes with Beam and needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llmdo.pipelines.run_options import RunOptions

# The name matters. An unnamed DirectRunner picks another runner for a graph with real-time timers, and that one loses
# batches that never fill (github.com/apache/beam/issues/28716). One worker in memory keeps reading, inference, batches
# and writing one fused stage, so that shards appear during the run.
ARGUMENTS = ("--runner=FnApiRunner", "--direct_running_mode=in_memory", "--direct_num_workers=1")


@contextmanager
def launch(_: RunOptions) -> Iterator[list[str]]:
    """Yields the arguments of a pipeline that runs here; for bounded work: timers of batches fire as bundles end."""
    yield list(ARGUMENTS)
