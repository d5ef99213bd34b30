import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdo.storage.objects.store import locate
from llmdo.storage.queues.notifications import (
    NotAnEvent,
    ObjectCreated,
    ObjectDeleted,
    parse_notification,
    why_passed_over,
)

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
def test_a_deletion_has_neither_size_nor_etag(action):
    body = {"action": action, "bucket": "b-1", "object": {"key": "k"}}
    assert parse_notification(body) == ObjectDeleted("b-1", "k", body)


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
    ("body", "reason"),
    [
        (event(action="AbortMultipartUpload"), "'AbortMultipartUpload' creates no object"),
        (event(action=None), "action"),
        (event(bucket=""), "bucket"),
        (event(object={"size": 1}), "object.key"),
        (event(object={"key": ""}), "object.key"),
        (event(object={"key": "k", "size": -1}), "object.size"),
        (event(object="k"), "object"),
        ({}, "action"),
        ({"type": "cf.r2.bucket.created", "source": {}, "payload": {}, "metadata": {}}, "event subscription"),
        ("hello", "str, not a JSON object"),
        ([COPY], "list, not a JSON object"),
        (None, "NoneType"),
        (b"\x00", "bytes"),
    ],
)
def test_what_is_no_event_says_why(body, reason):
    result = parse_notification(body)
    assert isinstance(result, NotAnEvent)
    assert reason in result.reason


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(json_values, st.sampled_from(["action", "bucket", "object", "type", "eventTime"]))
def test_nothing_in_a_queue_raises(value, field):
    assert isinstance(parse_notification(value), NotAnEvent | ObjectCreated | ObjectDeleted)
    assert isinstance(parse_notification(event(**{field: value})), NotAnEvent | ObjectCreated | ObjectDeleted)


def created(key, bucket="bucket"):
    return ObjectCreated(bucket, key, "e", 1, {})


SUFFIXES = (".jsonl", ".jsonl.gz")


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("input/a.jsonl", None),
        ("input/a/b.jsonl.gz", None),
        ("input/output/a.jsonl", None),
        ("input/a.txt", "does not end with '.jsonl' or '.jsonl.gz'"),
        ("Input/a.jsonl", "does not begin with 'input/'"),
        ("output/bucket/input/a.jsonl/etag/shard-000000000000-0.jsonl", "lies in the output, r2://bucket/output"),
    ],
)
def test_what_is_passed_over_says_why(key, why):
    found = why_passed_over(created(key), "input/", SUFFIXES, locate("r2://bucket/output/"))
    assert found is None if why is None else why in found


@pytest.mark.parametrize("output", ["r2://bucket/output", "r2://bucket/output/"])
def test_own_shards_are_never_wanted_and_names_alike_are(output):
    assert why_passed_over(created("output/a.jsonl"), "", (), locate(output)) is not None
    assert why_passed_over(created("output-2/a.jsonl"), "", (), locate(output)) is None
    assert why_passed_over(created("output/a.jsonl", "other"), "", (), locate(output)) is None


def test_in_a_bucket_that_is_all_output_nothing_is_wanted():
    assert why_passed_over(created("input/a.jsonl"), "input/", SUFFIXES, locate("r2://bucket/")) is not None


def test_a_local_output_excludes_no_bucket(tmp_path):
    assert why_passed_over(created("input/a.jsonl"), "input/", SUFFIXES, locate(str(tmp_path))) is None
