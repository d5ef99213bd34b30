import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdo.storage.objects.store import locate
from llmdo.storage.queues.notifications import ObjectCreated, is_input, parse_notification

# The documented example: developers.cloudflare.com/r2/buckets/event-notifications
COPY = {
    "account": "3f4b7e3dcab231cbfdaa90a6a28bd548",
    "action": "CopyObject",
    "bucket": "my-bucket",
    "object": {"key": "my-new-object", "size": 65536, "eTag": "c846ff7a18f28c2e262116d6e8719ef0"},
    "eventTime": "2024-05-24T19:36:44.379Z",
    "copySource": {"bucket": "my-bucket", "object": "my-original-object"},
}


def event(**changes):
    return copy.deepcopy(COPY) | changes


def test_the_documented_example_is_read():
    created = parse_notification(COPY)
    assert created == ObjectCreated("my-bucket", "my-new-object", "c846ff7a18f28c2e262116d6e8719ef0", 65536, COPY)


@pytest.mark.parametrize("action", ["PutObject", "CopyObject", "CompleteMultipartUpload"])
def test_each_action_that_creates_is_read_without_its_optional_fields(action):
    body = {"action": action, "bucket": "b-1", "object": {"key": "k", "size": 0, "eTag": "e-2"}}
    assert parse_notification(body) == ObjectCreated("b-1", "k", "e-2", 0, body)


@pytest.mark.parametrize("action", ["DeleteObject", "LifecycleDeletion"])
def test_a_deletion_is_nothing_new(action):
    assert parse_notification({"action": action, "bucket": "b-1", "object": {"key": "k"}}) is None


@pytest.mark.parametrize("key", ["a%20b+c.jsonl", "ä/ö ü.jsonl", "a//b", " ", '"quoted"'])
def test_the_key_is_taken_literally(key):
    created = parse_notification(event(object={"key": key, "size": 1, "eTag": "e"}))
    assert isinstance(created, ObjectCreated)
    assert created.key == key


@pytest.mark.parametrize(("sent", "etag"), [('"abc"', "abc"), ("abc-2", "abc-2"), (None, None), ("", None)])
def test_the_etag_has_no_quotes_and_may_be_missing(sent, etag):
    created = parse_notification(event(object={"key": "k", "eTag": sent}))
    assert isinstance(created, ObjectCreated)
    assert (created.etag, created.size) == (etag, None)


@pytest.mark.parametrize(
    "body",
    [
        event(action="AbortMultipartUpload"),
        event(action=None),
        event(bucket=""),
        event(object={"size": 1}),
        event(object={"key": ""}),
        event(object={"key": "k", "size": -1}),
        event(object="k"),
        {},
        {"type": "cf.r2.bucket.created", "source": {}, "payload": {}, "metadata": {}},
        "hello",
        [COPY],
        None,
        b"\x00",
    ],
)
def test_other_messages_are_not_about_a_new_object(body):
    assert parse_notification(body) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(json_values, st.sampled_from(["action", "bucket", "object", "type", "eventTime"]))
def test_nothing_in_a_queue_raises(value, field):
    assert isinstance(parse_notification(value), ObjectCreated | None)
    assert isinstance(parse_notification(event(**{field: value})), ObjectCreated | None)


def created(key, bucket="bucket"):
    return ObjectCreated(bucket, key, "e", 1, {})


SUFFIXES = (".jsonl", ".jsonl.gz")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("input/a.jsonl", True),
        ("input/a.JSONL", True),
        ("input/a/b.jsonl.gz", True),
        ("input/output/a.jsonl", True),
        ("input/a.txt", False),
        ("input/.a/b.jsonl", False),
        ("Input/a.jsonl", False),
        ("output/bucket/input/a.jsonl/etag/shard-000000000000-0.jsonl", False),
    ],
)
def test_what_is_an_input(key, expected):
    assert is_input(created(key), "input/", SUFFIXES, locate("r2://bucket/output/")) is expected


@pytest.mark.parametrize("output", ["r2://bucket/output", "r2://bucket/output/"])
def test_own_shards_are_never_wanted_and_names_alike_are(output):
    assert not is_input(created("output/a.jsonl"), "", SUFFIXES, locate(output))
    assert is_input(created("output-2/a.jsonl"), "", SUFFIXES, locate(output))
    assert is_input(created("output/a.jsonl", "other"), "", SUFFIXES, locate(output))


def test_in_a_bucket_that_is_all_output_nothing_is_wanted():
    assert not is_input(created("input/a.jsonl"), "input/", SUFFIXES, locate("r2://bucket/"))


def test_a_local_output_excludes_no_bucket(tmp_path):
    assert is_input(created("input/a.jsonl"), "input/", SUFFIXES, locate(str(tmp_path)))
