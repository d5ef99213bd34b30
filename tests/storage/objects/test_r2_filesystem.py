import gzip
import json
import logging
import os
import subprocess
import sys

import apache_beam as beam
import pytest
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.utils.plugin import BeamPlugin

from llmdo.storage.errors import AccessDenied, BucketNotFound, InvalidLocation, ObjectChanged, ObjectNotFound
from llmdo.storage.objects.r2_filesystem import R2FileSystem
from llmdo.storage.objects.r2_parts import PART_SIZE
from tests.storage.conftest import CREDENTIALS


def keys(store):
    return [info.key for info in store.list("")]


def written(path, body):
    with FileSystems.create(path) as file:
        file.write(body)


def test_importing_the_module_is_enough_for_beam(bucket):
    assert isinstance(FileSystems.get_filesystem("r2://bucket/key"), R2FileSystem)
    assert "llmdo.storage.objects.r2_filesystem.R2FileSystem" in BeamPlugin.get_all_plugin_paths()


def test_a_worker_gets_it_by_the_name_that_the_documentation_gives(bucket):
    code = (
        "from apache_beam.runners.worker.sdk_worker_main import _import_beam_plugins\n"
        "from apache_beam.io.filesystems import FileSystems\n"
        "_import_beam_plugins(['llmdo.storage.objects.r2_filesystem'])\n"
        "print(type(FileSystems.get_filesystem('r2://bucket/key')).__name__)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=240)
    assert run.stdout.strip() == "R2FileSystem"


@pytest.mark.parametrize("size", [0, 10, PART_SIZE + 1, 2 * PART_SIZE])
def test_what_is_written_is_read_back(store, size):
    body = os.urandom(1 << 16) * (size >> 16) + b"x" * (size % (1 << 16))
    written(f"{store.url}/a/file", body)
    with FileSystems.open(f"{store.url}/a/file") as file:
        assert file.read() == body


def test_twenty_mebibytes_go_in_equal_parts(store, server):
    body = os.urandom(1 << 20) * 20
    written(f"{store.url}/big", body)
    parts = [seen.size for seen in server.seen if "partNumber" in seen.path]
    assert parts == [PART_SIZE, PART_SIZE, 4 << 20]
    assert store.read("big")[0] == body


def test_a_reader_seeks_and_asks_for_ranges_only(store, server):
    body = bytes(range(256)) * (1 << 16)  # 16 MiB
    store.put("big", body)
    server.seen.clear()
    with FileSystems.open(f"{store.url}/big") as file:
        assert file.seekable()
        file.seek(-5, os.SEEK_END)
        assert file.read() == body[-5:]
        file.seek(1_000_000)
        assert file.read(7) == body[1_000_000:1_000_007]
        assert file.tell() == 1_000_007
    assert [seen.method for seen in server.seen] == ["HEAD", "GET", "GET"]
    assert all(seen.headers["range"].startswith("bytes=") for seen in server.seen[1:])


def test_reading_it_all_is_few_requests(store, server):
    store.put("big", b"x" * (20 << 20))
    server.seen.clear()
    with FileSystems.open(f"{store.url}/big") as file:
        assert len(file.read()) == 20 << 20
    assert len(server.seen) == 4  # one HEAD, and 8 MiB a GET


def test_a_file_that_changes_while_it_is_read_fails(store):
    store.put("big", b"x" * (20 << 20))
    with FileSystems.open(f"{store.url}/big") as file:
        assert file.read(10) == b"x" * 10
        store.put("big", b"y" * (20 << 20))
        with pytest.raises(BeamIOError) as raised:
            file.read()
    assert isinstance(raised.value.exception_details[f"{store.url}/big"], ObjectChanged)


def test_compression_follows_the_name(store):
    written(f"{store.url}/lines.jsonl.gz", b"one\ntwo\n")
    assert gzip.decompress(store.read("lines.jsonl.gz")[0]) == b"one\ntwo\n"
    with FileSystems.open(f"{store.url}/lines.jsonl.gz") as file:
        assert file.read(100) == b"one\ntwo\n"
    with FileSystems.open(f"{store.url}/lines.jsonl.gz", compression_type=CompressionTypes.UNCOMPRESSED) as file:
        assert file.read(2) == b"\x1f\x8b"


def test_patterns_match_as_in_every_other_file_system(store):
    for key in ("in/a.jsonl", "in/b.jsonl", "in/b.txt", "in/deep/c.jsonl", "in2/d.jsonl"):
        store.put(key, key.encode())

    def match(pattern, limit=None):
        found = FileSystems.match([store.url + pattern], [limit])[0].metadata_list
        return [meta.path.removeprefix(store.url) for meta in found]

    assert match("/in/*.jsonl") == ["/in/a.jsonl", "/in/b.jsonl"]
    assert match("/in/**.jsonl") == ["/in/a.jsonl", "/in/b.jsonl", "/in/deep/c.jsonl"]
    assert match("/in*/[bd].jsonl") == ["/in/b.jsonl", "/in2/d.jsonl"]
    assert match("/in/") == ["/in/a.jsonl", "/in/b.jsonl", "/in/b.txt"]
    assert match("/in/b.txt") == ["/in/b.txt"]
    assert match("/in/**", 2) == ["/in/a.jsonl", "/in/b.jsonl"]
    assert match("/nothing/*") == match("/nothing") == []


def test_the_properties_are_the_objects(store):
    etag = store.put("key", b"four")
    path = f"{store.url}/key"
    modified = store.stat("key").modified.timestamp()
    files = R2FileSystem(None)
    assert (files.size(path), files.checksum(path), files.last_updated(path)) == (4, etag, modified)
    meta = files.metadata(path)
    assert (meta.path, meta.size_in_bytes, meta.last_updated_in_seconds) == (path, 4, modified)
    assert files.exists(path)
    assert not files.exists(f"{store.url}/no")
    assert not files.exists(store.url)
    assert not files.exists("r2://no-such-bucket/key")
    assert not files.has_dirs()


def test_copy_rename_and_delete(store):
    store.put("a", b"A", {"tiles": "0+1"})
    store.put("b", b"B")
    at = store.url
    FileSystems.copy([f"{at}/a"], [f"{at}/x/a"])
    FileSystems.rename([f"{at}/b", f"{at}/a"], [f"{at}/x/b", f"{at}/a"])
    assert keys(store) == ["a", "x/a", "x/b"]
    assert store.stat("x/a").metadata == {"tiles": "0+1"}
    store.put("x/y/z", b"")
    store.put("xx", b"")
    FileSystems.mkdirs(f"{at}/empty")
    FileSystems.delete([f"{at}/x/", f"{at}/not-there"])
    assert keys(store) == ["a", "xx"]


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        (lambda files, at: files.open(f"{at}/no"), ObjectNotFound),
        (lambda files, at: files.size(f"{at}/no"), ObjectNotFound),
        (lambda files, at: files.open(at), InvalidLocation),
        (lambda files, at: files.create(f"{at}/"), InvalidLocation),
        (lambda files, at: files.delete([f"{at}/"]), InvalidLocation),
        (lambda files, at: files.copy([f"{at}/no"], [f"{at}/x"]), ObjectNotFound),
        (lambda files, at: files.rename([f"{at}/no"], [f"{at}/x"]), ObjectNotFound),
        (lambda files, at: files.size("r2://no-such-bucket/x"), BucketNotFound),
        (lambda files, at: files.match(["r2://no-such-bucket/*"])[0], BucketNotFound),
    ],
)
def test_a_failure_is_a_beam_error_with_the_cause_by_path(store, operation, kind):
    with pytest.raises(BeamIOError) as raised:
        operation(R2FileSystem(None), store.url)
    causes = list(raised.value.exception_details.values())
    while isinstance(causes[0], BeamIOError):  # match wraps what the listing raised
        causes = list(causes[0].exception_details.values())
    assert [type(cause) for cause in causes] == [kind]


def test_one_failure_of_many_does_not_stop_the_others(store):
    store.put("a", b"A")
    with pytest.raises(BeamIOError) as raised:
        FileSystems.copy([f"{store.url}/no", f"{store.url}/a"], [f"{store.url}/x", f"{store.url}/y"])
    assert list(raised.value.exception_details) == [(f"{store.url}/no", f"{store.url}/x")]
    assert keys(store) == ["a", "y"]
    with pytest.raises(BeamIOError, match="2 sources for 1 destinations"):
        FileSystems.copy([f"{store.url}/a"] * 2, [f"{store.url}/z"])


def test_a_write_that_is_refused_says_so_and_leaves_nothing(store, server):
    file = FileSystems.create(f"{store.url}/key")
    file.write(b"x")
    server.refuse(403, "AccessDenied")
    with pytest.raises(BeamIOError) as raised:
        file.close()
    assert isinstance(raised.value.exception_details[f"{store.url}/key"], AccessDenied)
    assert keys(store) == []


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("r2://bucket/a/b", ("r2://bucket/a", "b")),
        ("r2://bucket/a/", ("r2://bucket/a", "")),
        ("r2://bucket/a", ("r2://bucket", "a")),
        ("r2://bucket", ("r2://bucket", "")),
    ],
)
def test_a_path_splits_at_its_last_slash(path, parts):
    assert R2FileSystem(None).split(path) == parts


def test_parts_are_joined_with_one_slash():
    assert R2FileSystem(None).join("r2://bucket/", "/a/", "b", "c/") == "r2://bucket/a/b/c/"


def test_beams_text_io_reads_and_writes_r2(store):
    lines = [json.dumps({"prompt": f"line {number}"}) for number in range(300)]
    store.put("in/one.jsonl", "\n".join(lines[:200]).encode())
    store.put("in/two.jsonl.gz", gzip.compress("\n".join(lines[200:]).encode()))
    with TestPipeline(runner="FnApiRunner") as root:
        read = root | "Read" >> beam.io.ReadFromText(f"{store.url}/in/*")
        assert_that(read, equal_to(lines))
        read | "Write" >> beam.io.WriteToText(f"{store.url}/out/part", ".jsonl", num_shards=2)
    parts = ["out/part-00000-of-00002.jsonl", "out/part-00001-of-00002.jsonl"]
    assert keys(store) == ["in/one.jsonl", "in/two.jsonl.gz", *parts]
    assert sorted(b"".join(store.read(part)[0] for part in parts).decode().splitlines()) == sorted(lines)


def test_neither_the_pipeline_nor_a_log_line_holds_the_credentials(store, caplog):
    caplog.set_level(logging.DEBUG)
    store.put("in.jsonl", b"one\n")
    pipeline = beam.Pipeline(runner="FnApiRunner")
    read = pipeline | "Read" >> beam.io.ReadFromText(f"{store.url}/in.jsonl")
    read | "Write" >> beam.io.WriteToText(f"{store.url}/out")
    proto = pipeline.to_runner_api().SerializeToString()
    assert store.url.encode() in proto
    pipeline.run().wait_until_finish()
    assert len(keys(store)) == 2
    assert "urllib3" in {record.name.partition(".")[0] for record in caplog.records}
    for hidden in (CREDENTIALS.token_id, CREDENTIALS.secret):
        assert hidden.encode() not in proto
        assert hidden not in caplog.text
