from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to

from llmdo.pipelines.options import JsonlOptions
from llmdo.runners.direct import launch

OPTIONS = JsonlOptions(files=("in/",), output="out/", model="@cf/a/b")


def test_the_runner_is_fn_api_runner_and_no_other() -> None:
    with launch(OPTIONS) as arguments:
        pipeline = beam.Pipeline(options=PipelineOptions(arguments))
    assert type(pipeline.runner) is FnApiRunner


def test_a_batch_that_never_fills_comes_out() -> None:
    with launch(OPTIONS) as arguments, beam.Pipeline(options=PipelineOptions(arguments)) as pipeline:
        batches = (
            pipeline
            | beam.Create([("key", n) for n in range(5)])
            | beam.GroupIntoBatches(3, max_buffering_duration_secs=60)
        )
        assert_that(batches | beam.MapTuple(lambda _, batch: sorted(batch)), equal_to([[0, 1, 2], [3, 4]]))


def test_batches_are_written_in_this_process_while_input_is_still_read(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def tell(what: str) -> None:
        with log.open("a") as file:
            file.write(f"{os.getpid()} {what}\n")

    def read(_: bytes) -> Iterator[tuple[str, int]]:
        for n in range(4):
            tell(f"read {n}")
            yield "key", n

    with launch(OPTIONS) as arguments, beam.Pipeline(options=PipelineOptions(arguments)) as pipeline:
        _ = (
            pipeline
            | beam.Impulse()
            | beam.FlatMap(read).with_output_types(tuple[str, int])
            | beam.GroupIntoBatches(2, max_buffering_duration_secs=60)
            | beam.MapTuple(lambda _, batch: tell(f"wrote {len(batch)}"))
        )
    here = os.getpid()
    told = ("read 0", "read 1", "wrote 2", "read 2", "read 3", "wrote 2")
    assert log.read_text().splitlines() == [f"{here} {what}" for what in told]
