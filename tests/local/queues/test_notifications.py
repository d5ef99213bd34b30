from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from llmdo.local.queues.notifications import ObjectEvent, Rule
from tests.local.clients import OURS, account, events, queue_id, rest, s3_client
from tests.local.cloudflare import Running, running


def put_rules(server: Running, bucket: str, *rules: dict[str, Any], queue: str = "llmdo-input") -> int:
    path = f"/event_notifications/r2/{bucket}/configuration/queues/{queue_id(server, queue)}"
    return rest(server, "PUT", path, {"rules": list(rules)}).status_code


def test_an_upload_below_input_rings_the_bell(cloudflare: Running) -> None:
    etag = s3_client(cloudflare).put_object(Bucket="llmdo", Key="input/ä b.jsonl", Body=b"hello")["ETag"]
    (event,) = events(cloudflare)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event.pop("eventTime"))
    assert event == {
        "account": account(cloudflare),
        "action": "PutObject",
        "bucket": "llmdo",
        "object": {"key": "input/ä b.jsonl", "size": 5, "eTag": etag.strip('"')},
    }


@pytest.mark.parametrize("key", ["output/input/a.jsonl", "input/a.txt", "a.jsonl", "inputs.jsonl", "input/a.jsonl.zst"])
def test_other_keys_ring_no_bell(cloudflare: Running, key: str) -> None:
    s3_client(cloudflare).put_object(Bucket="llmdo", Key=key, Body=b"hello")
    assert events(cloudflare) == []


def test_any_bucket_and_gzip_ring_too(cloudflare: Running) -> None:
    s3_client(cloudflare).put_object(Bucket="another", Key="input/deep/a.jsonl.gz", Body=b"")
    (event,) = events(cloudflare)
    assert (event["bucket"], event["object"]["key"], event["object"]["size"]) == ("another", "input/deep/a.jsonl.gz", 0)


def test_a_refused_put_rings_no_bell(cloudflare: Running) -> None:
    s3 = s3_client(cloudflare)
    s3.put_object(Bucket="llmdo", Key="input/a.jsonl", Body=b"1")
    with pytest.raises(s3.exceptions.ClientError):
        s3.put_object(Bucket="llmdo", Key="input/a.jsonl", Body=b"2", IfNoneMatch="*")
    assert len(events(cloudflare)) == 1


def test_a_multipart_upload_is_one_event_with_its_own_etag(cloudflare: Running) -> None:
    s3 = s3_client(cloudflare, OURS)
    at = {"Bucket": "llmdo", "Key": "input/a.jsonl"}
    at["UploadId"] = s3.create_multipart_upload(**at)["UploadId"]
    etag = s3.upload_part(**at, PartNumber=1, Body=b"x" * 100)["ETag"]
    whole = s3.complete_multipart_upload(**at, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etag}]})
    (event,) = events(cloudflare)
    assert event["action"] == "CompleteMultipartUpload"
    assert event["object"] == {"key": "input/a.jsonl", "size": 100, "eTag": whole["ETag"].strip('"')}


def test_a_copy_names_its_source(cloudflare: Running) -> None:
    s3 = s3_client(cloudflare)
    s3.put_object(Bucket="llmdo", Key="old/ä+b", Body=b"hello")
    s3.copy_object(Bucket="llmdo", Key="input/b.jsonl", CopySource={"Bucket": "llmdo", "Key": "old/ä+b"})
    (event,) = events(cloudflare)
    assert event["action"] == "CopyObject"
    assert event["object"]["size"] == 5
    assert event["copySource"] == {"bucket": "llmdo", "object": "old/ä+b"}


def test_deletions_ring_when_a_rule_asks_for_them(cloudflare: Running) -> None:
    s3 = s3_client(cloudflare)
    assert put_rules(cloudflare, "llmdo", {"prefix": "input/", "actions": ["DeleteObject"]}) == 200
    for name in "abc":
        s3.put_object(Bucket="llmdo", Key=f"input/{name}&<", Body=b"1")
    assert events(cloudflare) == []
    s3.delete_object(Bucket="llmdo", Key="input/a&<")
    s3.delete_objects(Bucket="llmdo", Delete={"Objects": [{"Key": f"input/{n}&<"} for n in "abc"], "Quiet": True})
    s3.delete_object(Bucket="llmdo", Key="input/never")
    found = events(cloudflare)
    assert [(event["action"], event["object"]) for event in found] == [
        ("DeleteObject", {"key": f"input/{name}&<"}) for name in "abc"
    ]


def test_rules_are_shown_refused_when_they_overlap_and_removed(cloudflare: Running) -> None:
    path = "/event_notifications/r2/mine/configuration"
    default = rest(cloudflare, "GET", path).json()["result"]
    assert [rule["suffix"] for rule in default["queues"][0]["rules"]] == [
        *(".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".tsv", ".json", ".parquet", ".pq")
    ]
    create = ["PutObject", "CopyObject"]
    assert put_rules(cloudflare, "mine", {"prefix": "a/", "actions": create, "description": "d"}) == 200
    assert put_rules(cloudflare, "mine", {"prefix": "a/b/", "suffix": ".x", "actions": ["PutObject"]}) == 409
    assert put_rules(cloudflare, "mine", {"prefix": "b/", "actions": create}, queue="llmdo-input-dlq") == 200
    own = rest(cloudflare, "GET", path).json()["result"]
    assert own["bucketName"] == "mine"
    assert [(entry["queueName"], entry["rules"][0]["prefix"]) for entry in own["queues"]] == [
        ("llmdo-input", "a/"),
        ("llmdo-input-dlq", "b/"),
    ]
    s3_client(cloudflare).put_object(Bucket="mine", Key="b/x", Body=b"")
    assert len(events(cloudflare, "llmdo-input-dlq")) == 1
    for entry in own["queues"]:
        ids = {"ruleIds": [rule["ruleId"] for rule in entry["rules"]]}
        assert rest(cloudflare, "DELETE", f"{path}/queues/{entry['queueId']}", ids).status_code == 200
    assert rest(cloudflare, "GET", path).json()["result"] == {**default, "bucketName": "mine"}


def test_rules_outlive_a_restart(tmp_path: Path) -> None:
    with running(tmp_path) as before:
        assert put_rules(before, "mine", {"prefix": "x/", "actions": ["PutObject"]}) == 200
    with running(tmp_path) as after:
        s3_client(after).put_object(Bucket="mine", Key="x/1", Body=b"")
        s3_client(after).put_object(Bucket="mine", Key="input/1.jsonl", Body=b"")
        assert [event["object"]["key"] for event in events(after)] == ["x/1"]


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        (("", ""), ("a/", ".x"), True),
        (("a/", ""), ("a/b/", ""), True),
        (("a/", ""), ("b/", ""), False),
        (("a/", ".jsonl"), ("a/", ".gz"), False),
        (("a/", ".gz"), ("a/", ".jsonl.gz"), True),
    ],
)
def test_rules_overlap_when_one_event_could_fit_both(
    one: tuple[str, str], other: tuple[str, str], overlap: bool
) -> None:
    def rule(prefix: str, suffix: str, *actions: Any) -> Rule:
        return Rule("id", "bucket", "queue", prefix, suffix, actions or ("PutObject",), "", 0)

    assert rule(*one).overlaps(rule(*other)) is overlap
    assert rule(*other).overlaps(rule(*one)) is overlap
    assert not rule(*one).overlaps(rule(*other, "DeleteObject"))
    assert rule("", "").fits(ObjectEvent("PutObject", "bucket", "any"))
