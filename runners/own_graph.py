"""Runs a graph with steps of the user's own, as ``llmdo run`` and ``llmdo stream`` run theirs."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from llmdo.pipelines.graph.own import BuildGraph, OwnOptions, built_by
from llmdo.pipelines.options import check_options
from llmdo.runners.running.run import run
from llmdo.runners.running.stream import stream
from llmdo.runners.showing.summary import Summary


def run_graph(build: BuildGraph, *, own_steps: str, **options: Any) -> Summary:
    """Answers files by a graph with steps of your own, and returns how it ended.

    All that ``llmdo run`` promises holds: what a kill leaves open the next call resumes, each line comes to one end,
    and no answer is paid for twice. SIGINT and SIGTERM drain the run where this is the main thread. An error ends it
    with ``problem`` in the summary.

    Args:
        build: puts the graph into the pipeline that it gets, by the steps that it gets, and returns what
            ``steps.settle_files()`` emits. It is called anew for each attempt.
        own_steps: what your steps do, in words of yours, such as "no spam, 2". An output has one value of it: change it
            when your steps would give other answers, and take another output.
        options: those of ``llmdo run`` with underscores: ``files=["in/"]``, or ``queue=``, ``output=``, ``model=``,
            ``prompt=``, ``runner=``, ``concurrency=`` ...; those of Flink are in ``flink={"parallelism": 2}``. With
            ``continuous=True`` it is ``llmdo stream``.

    Raises:
        UsageError: options that do not fit, or a graph in which lines could be lost, with a sentence for each problem.
        StorageError: a service that refuses, before any call was made.
    """
    checked = check_options(OwnOptions, own_steps=own_steps, **options)
    command = stream if checked.continuous else run
    return command(checked, lambda _: nullcontext(), built_by(build))
