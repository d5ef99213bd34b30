"""``r2://`` in Beam's own IOs, in pipelines of others: read, written, matched, and watched for new objects."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import apache_beam as beam
import pyarrow as pa
from apache_beam.io import fileio
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.utils.timestamp import Timestamp

import llmdo.storage.objects.r2_filesystem  # noqa: F401  as ``import llmdo`` does where Beam is imported
from tests.integration.cloud import Cloud

ROOT = "r2://llmdo"


def test_texts_are_written_and_read(cloud: Cloud) -> None:
    lines = [f"line {number}" for number in range(1_000)]
    with TestPipeline(runner="FnApiRunner") as pipeline:
        _ = pipeline | beam.Create(lines) | beam.io.WriteToText(f"{ROOT}/texts/part", ".txt", num_shards=3)
    assert len(cloud.keys("texts/")) == 3
    with TestPipeline(runner="FnApiRunner") as pipeline:
        assert_that(pipeline | beam.io.ReadFromText(f"{ROOT}/texts/part-*.txt"), equal_to(lines))


def test_tables_are_written_and_read(cloud: Cloud) -> None:
    rows = [{"id": number, "text": f"row {number}"} for number in range(100)]
    schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
    with TestPipeline(runner="FnApiRunner") as pipeline:
        _ = pipeline | beam.Create(rows) | beam.io.WriteToParquet(f"{ROOT}/tables/part", schema)
    with TestPipeline(runner="FnApiRunner") as pipeline:
        assert_that(pipeline | beam.io.ReadFromParquet(f"{ROOT}/tables/part*"), equal_to(rows))


def test_objects_are_matched_and_read(cloud: Cloud) -> None:
    for name in ("a.txt", "b.txt", "c.csv"):
        cloud.upload(name, name.encode())
    with TestPipeline(runner="FnApiRunner") as pipeline:
        files = pipeline | fileio.MatchFiles(f"{ROOT}/input/*.txt") | fileio.ReadMatches()
        found = files | beam.Map(lambda file: (file.metadata.path, file.read_utf8()))
        assert_that(found, equal_to([(f"{ROOT}/input/{name}", name) for name in ("a.txt", "b.txt")]))


def test_a_prefix_is_watched_for_new_objects(cloud: Cloud) -> None:
    for name in ("a.txt", "b.txt"):
        cloud.upload(name, name.encode())
    now = time.time()
    with TestPipeline(runner="FnApiRunner") as pipeline:
        files = pipeline | fileio.MatchContinuously(
            f"{ROOT}/input/*.txt", interval=0.1, start_timestamp=Timestamp(now), stop_timestamp=Timestamp(now + 0.25)
        )
        # It looks three times, and knows what it has found.
        assert_that(files | beam.Map(lambda file: file.path), equal_to([f"{ROOT}/input/a.txt", f"{ROOT}/input/b.txt"]))


def test_a_program_that_imports_beam_first_needs_nothing_else(cloud: Cloud) -> None:
    cloud.upload("a.txt", b"hello")
    program = (
        "import apache_beam as beam\nimport llmdo\n"
        "with beam.Pipeline(runner='FnApiRunner') as p:\n"
        "    _ = p | beam.io.ReadFromText('r2://llmdo/input/a.txt') | beam.Map(print)\n"
    )
    environment = os.environ | cloud.env
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "hello\n"
