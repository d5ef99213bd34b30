from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from tests.local.clients import OURS, rest, s3_client
from tests.local.cloudflare import Running

ODD_KEYS = ("a b/c d.txt", "plus+and%25.txt", "per%2Fcent", "ünï/日本.jsonl", "a=b&c?d#e", "~tilde'(x)*!", "a//b", "x/")


@pytest.fixture(params=[Config(), OURS], ids=["default", "ours"])
def s3(cloudflare: Running, request: pytest.FixtureRequest) -> Iterator[Any]:
    client = s3_client(cloudflare, request.param)
    yield client
    client.close()


def code_of(error: pytest.ExceptionInfo[ClientError]) -> tuple[int, str]:
    response = error.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


def test_an_object_comes_back_with_its_metadata_and_a_date(s3: Any) -> None:
    put = s3.put_object(Bucket="llmdo", Key="a", Body=b"hello", Metadata={"tiles": "0+5", "a_b": "c"})
    got = s3.get_object(Bucket="llmdo", Key="a")
    assert got["Body"].read() == b"hello"
    assert got["ETag"] == put["ETag"] == '"5d41402abc4b2a76b9719d911017c592"'
    assert got["Metadata"] == {"tiles": "0+5", "a_b": "c"}
    date = datetime.strptime(got["ResponseMetadata"]["HTTPHeaders"]["date"], "%a, %d %b %Y %H:%M:%S GMT")
    assert abs(date.replace(tzinfo=UTC) - datetime.now(UTC)) < timedelta(minutes=1)
    head = s3.head_object(Bucket="llmdo", Key="a")
    assert (head["ContentLength"], head["Metadata"]) == (5, got["Metadata"])


@pytest.mark.parametrize("key", ODD_KEYS)
def test_signatures_hold_for_odd_keys(s3: Any, key: str) -> None:
    s3.put_object(Bucket="llmdo", Key=key, Body=key.encode())
    assert s3.get_object(Bucket="llmdo", Key=key)["Body"].read() == key.encode()
    listed = s3.list_objects_v2(Bucket="llmdo", Prefix=key[:3])
    assert [entry["Key"] for entry in listed["Contents"]] == [key]
    s3.delete_object(Bucket="llmdo", Key=key)
    assert "Contents" not in s3.list_objects_v2(Bucket="llmdo")


def test_ranges_and_conditions(s3: Any) -> None:
    etag = s3.put_object(Bucket="llmdo", Key="a", Body=b"0123456789")["ETag"]
    part = s3.get_object(Bucket="llmdo", Key="a", Range="bytes=2-4", IfMatch=etag)
    assert (part["Body"].read(), part["ContentRange"]) == (b"234", "bytes 2-4/10")
    assert s3.get_object(Bucket="llmdo", Key="a", Range="bytes=8-99")["Body"].read() == b"89"
    assert s3.get_object(Bucket="llmdo", Key="a", Range="bytes=-3")["Body"].read() == b"789"
    for condition, expected in (
        ({"Range": "bytes=10-"}, (416, "InvalidRange")),
        ({"IfMatch": '"0"'}, (412, "PreconditionFailed")),
        ({"IfNoneMatch": etag}, (304, "304")),
    ):
        with pytest.raises(ClientError) as error:
            s3.get_object(Bucket="llmdo", Key="a", **condition)
        assert code_of(error) == expected


def test_conditional_puts(s3: Any) -> None:
    etag = s3.put_object(Bucket="llmdo", Key="a", Body=b"1", IfNoneMatch="*")["ETag"]
    newer = s3.put_object(Bucket="llmdo", Key="a", Body=b"2", IfMatch=etag)["ETag"]
    refused = [("a", {"IfNoneMatch": "*"}), ("a", {"IfMatch": etag}), ("absent", {"IfMatch": newer})]
    for key, condition in refused:
        with pytest.raises(ClientError) as error:
            s3.put_object(Bucket="llmdo", Key=key, Body=b"3", **condition)
        assert code_of(error) == (412, "PreconditionFailed")
    assert s3.get_object(Bucket="llmdo", Key="a")["Body"].read() == b"2"


def test_of_many_puts_if_absent_one_wins(cloudflare: Running) -> None:
    s3, together = s3_client(cloudflare, OURS), threading.Barrier(8)

    def put(number: int) -> bool:
        together.wait()
        try:
            s3.put_object(Bucket="llmdo", Key="a", Body=b"%d" % number, IfNoneMatch="*")
        except ClientError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(put, range(8))) == 1


def test_list_is_paged_and_folded(s3: Any) -> None:
    for number in range(7):
        s3.put_object(Bucket="llmdo", Key=f"in/{number}", Body=b"")
    s3.put_object(Bucket="llmdo", Key="in/deep/x", Body=b"")
    pages = s3.get_paginator("list_objects_v2").paginate(
        Bucket="llmdo", Prefix="in/", Delimiter="/", PaginationConfig={"PageSize": 3}
    )
    pages = list(pages)
    assert len(pages) == 3
    assert [entry["Key"] for page in pages for entry in page.get("Contents", ())] == [f"in/{n}" for n in range(7)]
    assert [p["Prefix"] for page in pages for p in page.get("CommonPrefixes", ())] == ["in/deep/"]


def test_copy_and_deletes(s3: Any) -> None:
    s3.put_object(Bucket="llmdo", Key="a b+c", Body=b"hello")
    s3.copy_object(Bucket="other-bucket", Key="copy", CopySource={"Bucket": "llmdo", "Key": "a b+c"})
    assert s3.get_object(Bucket="other-bucket", Key="copy")["Body"].read() == b"hello"
    gone = s3.delete_objects(Bucket="llmdo", Delete={"Objects": [{"Key": "a b+c"}, {"Key": "never & there"}]})
    assert {entry["Key"] for entry in gone["Deleted"]} == {"a b+c", "never & there"}
    s3.delete_object(Bucket="llmdo", Key="a b+c")
    with pytest.raises(ClientError) as error:
        s3.get_object(Bucket="llmdo", Key="a b+c")
    assert code_of(error) == (404, "NoSuchKey")
    with pytest.raises(ClientError) as error:
        s3.head_object(Bucket="llmdo", Key="a b+c")
    assert code_of(error) == (404, "404")


def test_multipart_upload(s3: Any) -> None:
    parts = [b"a" * (5 << 20), b"b" * (5 << 20), b"end"]
    upload = s3.create_multipart_upload(Bucket="llmdo", Key="big", Metadata={"m": "1"})["UploadId"]
    at = {"Bucket": "llmdo", "Key": "big", "UploadId": upload}
    etags = [s3.upload_part(**at, PartNumber=n, Body=part)["ETag"] for n, part in enumerate(parts, start=1)]
    assert [part["PartNumber"] for part in s3.list_parts(**at)["Parts"]] == [1, 2, 3]
    whole = {"Parts": [{"PartNumber": n, "ETag": etag} for n, etag in enumerate(etags, start=1)]}
    etag = s3.complete_multipart_upload(**at, MultipartUpload=whole)["ETag"]
    assert re.fullmatch(r'"[0-9a-f]{32}-3"', etag)
    middle = s3.get_object(Bucket="llmdo", Key="big", Range=f"bytes={(5 << 20) - 2}-{(5 << 20) + 1}")
    assert (middle["Body"].read(), middle["Metadata"]["m"]) == (b"aabb", "1")
    got = s3.get_object(Bucket="llmdo", Key="big", IfMatch=etag)
    assert got["Body"].read() == b"".join(parts)
    assert got["Metadata"]["m"] == "1"


def test_parts_of_different_sizes_are_refused_as_on_r2(cloudflare: Running) -> None:
    s3 = s3_client(cloudflare, OURS)
    upload = s3.create_multipart_upload(Bucket="llmdo", Key="big")["UploadId"]
    at = {"Bucket": "llmdo", "Key": "big", "UploadId": upload}
    bodies = [b"a" * (5 << 20), b"b" * (6 << 20), b"end"]
    etags = [s3.upload_part(**at, PartNumber=n, Body=part)["ETag"] for n, part in enumerate(bodies, start=1)]
    whole = {"Parts": [{"PartNumber": n, "ETag": etag} for n, etag in enumerate(etags, start=1)]}
    with pytest.raises(ClientError) as error:
        s3.complete_multipart_upload(**at, MultipartUpload=whole)
    assert code_of(error) == (400, "InvalidPart")


def test_a_bucket_is_made_by_its_first_write_not_by_reading(s3: Any) -> None:
    with pytest.raises(ClientError) as error:
        s3.list_objects_v2(Bucket="not-there")
    assert code_of(error) == (404, "NoSuchBucket")
    s3.put_object(Bucket="not-there", Key="a", Body=b"")
    assert s3.list_objects_v2(Bucket="not-there")["KeyCount"] == 1
    assert {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]} == {"llmdo", "not-there"}


def test_two_servers_share_no_bucket(cloudflare: Running, tmp_path: Any) -> None:
    from tests.local.cloudflare import running

    s3_client(cloudflare).put_object(Bucket="llmdo", Key="a", Body=b"1")
    with running(tmp_path / "second") as second:
        assert s3_client(second).list_objects_v2(Bucket="llmdo")["KeyCount"] == 0


def test_wrong_keys_are_refused_in_r2s_words(cloudflare: Running) -> None:
    with pytest.raises(ClientError) as error:
        s3_client(cloudflare, aws_access_key_id="0" * 32).list_objects_v2(Bucket="llmdo")
    assert code_of(error) == (401, "Unauthorized")
    with pytest.raises(ClientError) as error:
        s3_client(cloudflare, aws_secret_access_key="0" * 64).put_object(Bucket="llmdo", Key="a", Body=b"")
    assert code_of(error) == (403, "SignatureDoesNotMatch")
    assert "we calculated does not match" in str(error.value)
    plain = httpx.get(f"{cloudflare.url}/llmdo/a", trust_env=False, timeout=60)
    assert (plain.status_code, "<Code>InvalidArgument</Code>" in plain.text) == (400, True)
    assert "RequestId" not in plain.text


def signed(server: Running, method: str, url: str, body: bytes, headers: dict[str, str]) -> AWSRequest:
    """A request signed as botocore signs for https, where the body is not part of the signature."""
    request = AWSRequest(method, url, headers, data=body)
    keys = Credentials(server.env["R2_ACCESS_KEY_ID"], server.env["R2_SECRET_ACCESS_KEY"])
    signer = S3SigV4Auth(keys, "s3", "auto")
    signer.payload = lambda _: headers["X-Amz-Content-SHA256"]
    signer.add_auth(request)
    return request


def test_an_aws_chunked_body_is_decoded(cloudflare: Running) -> None:
    wire = b"5\r\nhello\r\n6\r\n world\r\n0\r\nx-amz-checksum-crc32:DUoRhQ==\r\n\r\n"
    headers = {
        "X-Amz-Content-SHA256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        "Content-Encoding": "aws-chunked",
        "x-amz-decoded-content-length": "11",
        "x-amz-trailer": "x-amz-checksum-crc32",
        "x-amz-sdk-checksum-algorithm": "CRC32",
    }
    request = signed(cloudflare, "PUT", f"{cloudflare.url}/llmdo/input/x.jsonl", wire, headers)
    sent = httpx.put(request.url, content=wire, headers=dict(request.headers.items()), trust_env=False, timeout=60)
    assert sent.status_code == 200
    got = s3_client(cloudflare).get_object(Bucket="llmdo", Key="input/x.jsonl")
    assert got["Body"].read() == b"hello world"
    assert "ContentEncoding" not in got


def test_a_body_that_is_not_the_signed_one_is_refused(cloudflare: Running) -> None:
    headers = {"X-Amz-Content-SHA256": "0" * 64}
    request = signed(cloudflare, "PUT", f"{cloudflare.url}/llmdo/a", b"other", headers)
    sent = httpx.put(request.url, content=b"other", headers=dict(request.headers.items()), trust_env=False, timeout=60)
    assert (sent.status_code, "XAmzContentSHA256Mismatch" in sent.text) == (400, True)


def test_a_gzip_body_stays_as_it_was_sent(cloudflare: Running) -> None:
    s3 = s3_client(cloudflare)
    body = b"\x1f\x8b\x08\x00not really gzip"
    s3.put_object(Bucket="llmdo", Key="a.jsonl.gz", Body=body, ContentEncoding="gzip")
    assert s3.head_object(Bucket="llmdo", Key="a.jsonl.gz")["ContentLength"] == len(body)


def test_presigned_urls_work_until_they_expire(cloudflare: Running) -> None:
    s3 = s3_client(cloudflare, Config(signature_version="s3v4"))
    s3.put_object(Bucket="llmdo", Key="a b", Body=b"hello")
    at = {"Bucket": "llmdo", "Key": "a b"}
    url = s3.generate_presigned_url("get_object", at, ExpiresIn=60)
    assert httpx.get(url, trust_env=False, timeout=60).text == "hello"
    assert httpx.get(url.replace("Expires=60", "Expires=61"), trust_env=False, timeout=60).status_code == 403
    late = s3.generate_presigned_url("get_object", at, ExpiresIn=0)
    late = re.sub(r"X-Amz-Date=\d{8}", "X-Amz-Date=20200101", re.sub(r"%2F\d{8}%2F", "%2F20200101%2F", late))
    assert "ExpiredRequest" in httpx.get(late, trust_env=False, timeout=60).text


def test_what_r2_does_not_have_is_not_implemented(cloudflare: Running) -> None:
    s3 = s3_client(cloudflare)
    with pytest.raises(ClientError) as error:
        s3.put_object(Bucket="llmdo", Key="a", Body=b"", Tagging="a=b")
    assert code_of(error) == (501, "NotImplemented")
    with pytest.raises(ClientError) as error:
        s3.get_bucket_policy(Bucket="llmdo")
    assert code_of(error) == (501, "NotImplemented")


def test_metadata_up_to_r2s_limit_fits_in_one_header(cloudflare: Running) -> None:
    s3 = s3_client(cloudflare)
    s3.put_object(Bucket="llmdo", Key="a", Body=b"", Metadata={"t": "x" * 8191})
    assert s3.head_object(Bucket="llmdo", Key="a")["Metadata"] == {"t": "x" * 8191}
    with pytest.raises(ClientError) as error:
        s3.put_object(Bucket="llmdo", Key="a", Body=b"", Metadata={"t": "x" * 8192})
    assert code_of(error) == (400, "MetadataTooLarge")


def test_objects_do_not_answer_to_the_api_token(cloudflare: Running) -> None:
    assert rest(cloudflare, "GET", "/r2").json()["errors"][0]["code"] == 7000


def test_a_listing_has_each_key_once_in_order_whatever_came_and_went(s3: Any) -> None:
    for key in ("n/b", "n/ü", "n/a", "n/b", "n/c", "n/a/1", "m", "o"):
        s3.put_object(Bucket="llmdo", Key=key, Body=b"1")
    s3.delete_object(Bucket="llmdo", Key="n/c")
    s3.delete_object(Bucket="llmdo", Key="n/never")
    listed = s3.list_objects_v2(Bucket="llmdo", Prefix="n/")["Contents"]
    assert [found["Key"] for found in listed] == ["n/a", "n/a/1", "n/b", "n/ü"]
    assert s3.list_objects_v2(Bucket="llmdo", Prefix="n/c")["KeyCount"] == 0


def test_each_operation_is_counted_by_its_name(cloudflare: Running, s3: Any) -> None:
    cloudflare.reset_stats()
    s3.put_object(Bucket="llmdo", Key="counted/a", Body=b"1")
    s3.get_object(Bucket="llmdo", Key="counted/a")
    s3.head_object(Bucket="llmdo", Key="counted/a")
    s3.list_objects_v2(Bucket="llmdo", Prefix="counted/")
    s3.copy_object(Bucket="llmdo", Key="counted/b", CopySource={"Bucket": "llmdo", "Key": "counted/a"})
    s3.delete_object(Bucket="llmdo", Key="counted/b")
    s3.delete_objects(Bucket="llmdo", Delete={"Objects": [{"Key": "counted/a"}]})
    upload = s3.create_multipart_upload(Bucket="llmdo", Key="counted/c")["UploadId"]
    part = s3.upload_part(Bucket="llmdo", Key="counted/c", UploadId=upload, PartNumber=1, Body=b"1")
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    s3.complete_multipart_upload(Bucket="llmdo", Key="counted/c", UploadId=upload, MultipartUpload=parts)
    s3.head_bucket(Bucket="llmdo")
    counted = cloudflare.stats()["r2"]["by_operation"]
    assert counted == dict.fromkeys(
        "PutObject GetObject HeadObject ListObjects CopyObject DeleteObject DeleteObjects CreateMultipartUpload "
        "UploadPart CompleteMultipartUpload HeadBucket".split(),
        1,
    )
