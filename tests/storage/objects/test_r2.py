import logging
import os
import pickle
import threading
import time
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from apache_beam.internal import pickler

from llmdo.settings import environment
from llmdo.settings.environment import MissingSettings, R2Access
from llmdo.storage import errors
from llmdo.storage.chat import reading as chat_reading
from llmdo.storage.errors import (
    AccessDenied,
    AlreadyExists,
    BucketNotFound,
    InvalidLocation,
    ObjectChanged,
    ObjectNotFound,
    StorageError,
    StorageUnavailable,
)
from llmdo.storage.ledger import objects as ledger_objects
from llmdo.storage.objects import r2_client as client_module
from llmdo.storage.objects import r2_parts
from llmdo.storage.objects.r2 import R2Store
from llmdo.storage.objects.r2_client import ATTEMPTS, CONNECTIONS, R2Client, r2_client
from llmdo.storage.objects.r2_connections import WholeReply
from llmdo.storage.objects.r2_errors import R2Refused, r2_errors
from llmdo.storage.objects.r2_parts import PART_SIZE
from llmdo.storage.objects.store import READ_CHUNK
from llmdo.transforms.chat import conversations
from llmdo.transforms.chat import intake as chat_intake
from tests.storage.conftest import CREDENTIALS

BODY = bytes(range(256)) * 4096 * 3  # 3 MiB


def calls(server, method):
    return [seen for seen in server.seen if seen.method == method]


def test_a_connection_is_kept_for_every_thread_that_may_have_a_call_under_way():
    threads = (
        conversations.BLOCKING_THREADS + chat_intake._AT_ONCE + chat_reading._AT_ONCE + ledger_objects.LEDGER_THREADS
    )
    assert threads < CONNECTIONS
    assert r2_client(R2Access("https://r2.test", "id", "secret"))._pool.pool.maxsize == CONNECTIONS


def test_a_write_is_one_plain_request(store, server):
    store.put("key", b"body", {"tiles": "0+4"})
    [put] = server.seen
    assert (put.method, put.size, put.headers["content-length"]) == ("PUT", 4, "4")
    assert put.path == f"{store.url.removeprefix('r2:/')}/key"  # path style
    assert "/auto/s3/aws4_request" in put.headers["authorization"]
    assert put.headers["x-amz-meta-tiles"] == "0+4"
    unwanted = {"expect", "content-encoding", "transfer-encoding", "x-amz-trailer"}
    assert not unwanted & put.headers.keys()
    assert not [name for name in put.headers if "checksum" in name]
    assert len(put.headers["x-amz-content-sha256"]) == 64


def test_conditions_are_sent_as_r2_wants_them(store, server):
    etag = store.put_if_absent("key", b"one")
    store.put_if_match("key", b"two", etag)
    absent, match = server.seen
    assert absent.headers["if-none-match"] == "*"
    assert match.headers["if-match"] == f'"{etag}"'


AWS_FILE = """[default]
region = eu-west-7
endpoint_url = http://127.0.0.1:1
services = own
ca_bundle = /nowhere.pem
s3 =
    addressing_style = virtual
    use_accelerate_endpoint = true
[services own]
s3 =
    endpoint_url = http://127.0.0.1:1
"""


@pytest.mark.parametrize(
    "settings",
    [
        {"AWS_PROFILE": "no-such-profile"},
        {"AWS_DEFAULT_PROFILE": "no-such-profile"},
        {"AWS_CONFIG_FILE": "{file}"},
        {"AWS_SHARED_CREDENTIALS_FILE": "{broken}", "AWS_CONFIG_FILE": "{broken}"},
        {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"},
        {"AWS_USE_FIPS_ENDPOINT": "true"},
        {"AWS_USE_DUALSTACK_ENDPOINT": "true"},
        {"AWS_DEFAULTS_MODE": "nonsense", "AWS_RETRY_MODE": "nonsense", "AWS_MAX_ATTEMPTS": "nonsense"},
        {"AWS_REGION": "mars", "AWS_DEFAULT_REGION": "mars", "AWS_SESSION_TOKEN": "of-aws"},
        {"AWS_REQUEST_CHECKSUM_CALCULATION": "when_supported", "AWS_SIGV4A_SIGNING_REGION_SET": "*"},
    ],
    ids="+".join,
)
def test_the_users_settings_for_aws_have_no_effect_on_r2(server, bucket, tmp_path, monkeypatch, settings):
    places = {"file": tmp_path / "config", "broken": tmp_path / "broken"}
    places["file"].write_text(AWS_FILE)
    places["broken"].write_text("not = an [ini\nfile")
    for name, value in settings.items():
        monkeypatch.setenv(name, value.format(**places))
    store = R2Store(bucket, R2Client(R2Access(server.url, CREDENTIALS.token_id, CREDENTIALS.secret)))
    server.reset()
    store.put("key", b"body")
    assert store.read("key")[0] == b"body"
    assert len(server.seen) == 2
    for seen in server.seen:
        assert (
            seen.path.partition("?")[0] == f"/{bucket}/key" and "/auto/s3/aws4_request" in seen.headers["authorization"]
        )
        assert "x-amz-security-token" not in seen.headers


def test_one_client_serves_a_process_and_threads_share_it(server):
    access = R2Access(server.url, "other-key-id", "other-secret")
    found = []
    threads = [threading.Thread(target=lambda: found.append(r2_client(access))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1
    assert r2_client(R2Access(server.url, "other-key-id", "rotated")) is not found[0]


def test_the_way_to_r2_is_checked_once_for_a_client_and_not_for_each_store(server, monkeypatch):
    checked = []
    monkeypatch.setattr(client_module, "network_problems", lambda url: checked.append(url) or [])
    monkeypatch.setattr(environment, "network_problems", lambda url: checked.append(url) or [])
    monkeypatch.setenv("R2_ENDPOINT_URL", server.url)
    monkeypatch.setenv("R2_ACCESS_KEY_ID", "a-new-key")
    monkeypatch.setenv("R2_SECRET_ACCESS_KEY", "a-new-secret")
    for _ in range(5):
        R2Store.open("bucket")
    assert checked == [server.url]


def test_a_way_to_r2_that_is_not_usable_is_said_before_any_call(server, monkeypatch):
    monkeypatch.setattr(client_module, "network_problems", lambda _: ["the proxy is not one"])
    with pytest.raises(MissingSettings, match="the proxy is not one"):
        r2_client(R2Access(server.url, "yet-another-key", "secret"))


def test_a_broken_connection_is_taken_up_at_the_same_byte(store, server, waits):
    etag = store.put("key", BODY)
    server.cuts.extend([READ_CHUNK + 100, READ_CHUNK + 5])
    assert b"".join(store.stream("key", etag)) == BODY
    gets = calls(server, "GET")
    starts = [int(get.headers["range"].removeprefix("bytes=").removesuffix("-")) for get in gets[1:]]
    assert READ_CHUNK <= starts[0] <= READ_CHUNK + 100  # what came before the break is not asked for again
    assert starts[0] + READ_CHUNK <= starts[1] <= starts[0] + READ_CHUNK + 5
    assert {get.headers["if-match"] for get in gets} == {f'"{etag}"'}
    assert len(waits) == 2


def test_a_broken_range_ends_where_it_should(store, server, waits):
    etag = store.put("key", BODY)
    server.cuts.append(READ_CHUNK + 1)
    assert b"".join(store.stream("key", etag, 10, 2 * READ_CHUNK)) == BODY[10 : 2 * READ_CHUNK]
    assert [get.headers["range"].partition("-")[2] for get in calls(server, "GET")] == [f"{2 * READ_CHUNK - 1}"] * 2


def test_an_object_overwritten_in_the_middle_is_changed(store, server, waits):
    etag = store.put("key", BODY)
    server.cuts.append(READ_CHUNK + 1)
    server.at_cut = lambda: store.put("key", b"another")
    stream = store.stream("key", etag)
    assert next(stream) == BODY[:READ_CHUNK]
    with pytest.raises(ObjectChanged, match=f"{store.url}/key"):
        list(stream)


def test_an_object_deleted_in_the_middle_is_not_found(store, server, waits):
    etag = store.put("key", BODY)
    server.cuts.append(READ_CHUNK + 1)
    server.at_cut = lambda: store.delete("key")
    with pytest.raises(ObjectNotFound, match=f"{store.url}/key"):
        list(store.stream("key", etag))


@pytest.mark.parametrize(
    ("read", "problem", "tries"),
    [
        (lambda s, etag: list(s.stream("key", etag)), "the connection broke 6 times", 6),
        (lambda s, etag: s.read("key"), "R2 cannot be reached", ATTEMPTS),
    ],
)
def test_a_connection_that_breaks_at_one_byte_is_given_up(store, server, waits, read, problem, tries):
    etag = store.put("key", BODY)
    server.cuts.extend([0] * 100)
    with pytest.raises(StorageUnavailable, match=rf"{store.url}/key: {problem}"):
        read(store, etag)
    assert len(calls(server, "GET")) == tries


def test_a_whole_read_survives_a_broken_connection(store, server, waits):
    etag = store.put("key", BODY)
    server.cuts.extend([10, 20])
    assert store.read("key") == (BODY, etag)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (429, "TooManyRequests"),
        (500, "InternalError"),
        (503, "ServiceUnavailable"),
        (400, "ClientDisconnect"),
        (502, ""),
    ],
)
def test_what_passes_is_tried_again(store, server, waits, status, code):
    server.refuse(status, code, times=3)
    store.put("key", b"x")
    assert len(calls(server, "PUT")) == 4
    assert len(waits) == 3
    assert store.read("key")[0] == b"x"


@pytest.mark.parametrize(
    ("status", "code"), [(429, "TooManyRequests"), (503, "ServiceUnavailable"), (400, "ClientDisconnect")]
)
def test_what_does_not_pass_is_given_up(store, server, waits, status, code):
    server.refuse(status, code, times=50)
    with pytest.raises(StorageUnavailable, match=f"{store.url}/key: .*{status} {code}"):
        store.put("key", b"x")
    assert len(server.seen) == ATTEMPTS


@pytest.mark.parametrize(
    ("status", "code", "kind", "remedy"),
    [
        (401, "Unauthorized", AccessDenied, "R2_ACCESS_KEY_ID"),
        (403, "AccessDenied", AccessDenied, "R2_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", AccessDenied, "R2_SECRET_ACCESS_KEY"),
        (403, "RequestTimeTooSkewed", AccessDenied, "clock"),
        (403, "ExpiredRequest", AccessDenied, "clock"),
        (403, "NotEntitled", AccessDenied, "enable it"),
        (403, "ObjectLockedByBucketPolicy", AccessDenied, "another prefix"),
        (403, "SomethingNew", AccessDenied, "R2_ACCESS_KEY_ID"),
        (404, "NoSuchBucket", BucketNotFound, "create it"),
        (404, "NoSuchKey", ObjectNotFound, "literal"),
        (412, "PreconditionFailed", ObjectChanged, "read it again"),
        (400, "InvalidObjectName", InvalidLocation, "1,024 bytes"),
        (400, "MetadataTooLarge", StorageError, "8,192 bytes"),
        (400, "EntityTooLarge", StorageError, "5 GiB"),
        (400, "BadDigest", StorageError, "refused"),
        (501, "NotImplemented", StorageUnavailable, "later"),
    ],
)
def test_every_refusal_names_the_object_and_the_remedy_and_is_not_tried_again(
    store, server, status, code, kind, remedy
):
    server.refuse(status, code)
    with pytest.raises(kind, match=f"^{store.url}/a/key: .*{remedy}.*{status} {code}") as raised:
        store.put("a/key", b"x")
    assert type(raised.value) is kind
    assert len(server.seen) == 1


@pytest.mark.parametrize("call", [lambda s: list(s.list("")), lambda s: s.put("key", b"x"), lambda s: s.read("key")])
@pytest.mark.parametrize("status", [200, 403])
@pytest.mark.parametrize("page", ["<p>Attention<br>", "<p>Log in</p>"])
def test_a_page_of_html_in_place_of_r2_is_neither_nothing_nor_success(store, server, waits, status, page, call):
    server.answers.extend([(status, f"<!DOCTYPE html><html>{page}</html>")] * ATTEMPTS)
    with pytest.raises(StorageUnavailable, match="not R2's, but empty or a web page; check R2_ENDPOINT_URL"):
        call(store)


@pytest.mark.parametrize(
    "call",
    [
        lambda s: list(s.list("")),
        lambda s: s.put("key", b"x"),
        lambda s: s.read("key"),
        lambda s: s.stat("key"),
        lambda s: s.delete_many(["key"]),
    ],
)
def test_a_success_with_nothing_in_it_is_neither_an_empty_bucket_nor_a_write(store, server, waits, call):
    server.answers.extend([(200, "")] * ATTEMPTS)
    with pytest.raises(StorageUnavailable, match="not R2's, but empty or a web page"):
        call(store)
    assert len(server.seen) == ATTEMPTS


def test_many_objects_go_with_one_request(store, server):
    keys = [f"a/{name}" for name in ("ü", "b & <c>", "d%20e")]
    for key in keys:
        store.put(key, b"x")
    server.seen.clear()
    store.delete_many([*keys, "a/never-there"])
    assert [(seen.method, "delete" in seen.path) for seen in server.seen] == [("POST", True)]
    assert list(store.list("a/")) == []


@pytest.mark.parametrize(("status", "code"), [(501, "NotImplemented"), (400, "InvalidRequest")])
def test_where_r2_does_not_remove_several_objects_at_once_they_go_one_by_one(store, server, status, code):
    for key in ("one", "two"):
        store.put(key, b"x")
    server.refuse(status, code)
    store.delete_many(["one", "two"])
    assert list(store.list("")) == []


def test_an_object_that_stays_when_others_go_is_removed_again_or_says_why(store, server):
    store.put("one", b"x")
    left = "<Error><Key>one</Key><Code>AccessDenied</Code><Message>no</Message></Error>"
    server.answers.append((200, f"<DeleteResult>{left}</DeleteResult>"))
    server.refuse(403, "AccessDenied")
    with pytest.raises(AccessDenied, match="one"):
        store.delete_many(["one", "two"])
    server.answers.append((200, f"<DeleteResult>{left}</DeleteResult>"))
    store.delete_many(["one", "two"])
    assert list(store.list("")) == []


ODD_KEYS = [
    *("a//b", "a/./b", "a/../b", "/a", "a/", " a ", "a+b", "a%2Fb", "a%b", "a?b#c", "a&<b>\"'", "ü/日本/😀", "~!*'()"),
    *("a\tb", "a\x01b", "a\nb", "%", "=", "\\"),
]


def test_keys_are_literal_whatever_is_in_them(store, server):
    for key in ODD_KEYS:
        assert store.put_if_absent(key, key.encode())
        assert store.read(key)[0] == key.encode()
        assert store.stat(key).size == len(key.encode())
    assert [info.key for info in store.list("")] == sorted(ODD_KEYS, key=str.encode)
    assert [info.key for info in store.list("a/.")] == ["a/../b", "a/./b"]
    store.copy("a//b", store, "a ?/#")
    store.delete("a ?/#")
    store.delete_many(ODD_KEYS)
    assert list(store.list("")) == []


@pytest.mark.parametrize("key", ["a\ud800b", ""])
def test_a_key_that_cannot_be_encoded_is_an_invalid_location(store, server, key):
    with pytest.raises(InvalidLocation, match="R2 cannot be asked for this"):
        store.put(key, b"x")
    with pytest.raises(InvalidLocation, match="R2 cannot be asked for this"):
        store.put("key", b"x", {"name": "ü"})
    assert server.seen == []


def test_a_server_like_r2_may_be_below_a_path(server):
    client = R2Client(R2Access(f"{server.url}/storage/r2 here/", CREDENTIALS.token_id, CREDENTIALS.secret))
    server.answers.append((403, "<Error><Code>AccessDenied</Code></Error>"))
    with pytest.raises(AccessDenied):
        R2Store("bucket", client).read("a key")
    assert server.seen[0].path == "/storage/r2%20here/bucket/a%20key"


def test_a_forked_child_has_connections_of_its_own(store, server):
    store.put("key", b"body")
    child = os.fork()
    if child == 0:
        os._exit(0 if R2Store.open(store.url.removeprefix("r2://")).read("key")[0] == b"body" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store.read("key")[0] == b"body"
    assert len({seen.client for seen in server.seen}) == 2


@pytest.mark.parametrize("listing", ["<Contents><Key>k</Key></Contents>", "<IsTruncated>true</IsTruncated>"])
def test_a_listing_that_lacks_something_is_not_taken_for_a_whole_one(store, server, listing):
    server.answers.append((200, f"<ListBucketResult>{listing}</ListBucketResult>"))
    with pytest.raises(StorageUnavailable, match="not R2's"):
        list(store.list(""))


TORN = '<?xml version="1.0"?><ListBucketResult><Name>b</Name><IsTruncated>false</IsTruncated><Contents><Key>ke'
LACKING = "<?xml version='1.0'?><Other></Other>"


@pytest.mark.parametrize("answer", ["", "<!DOCTYPE html><html><p>Log in</p></html>", LACKING])
@pytest.mark.parametrize(
    ("call", "result"),
    [
        (lambda s: [info.key for info in s.list("")], ["key"]),
        (lambda s: s.read("key")[0], b"x"),
        (lambda s: b"".join(s.stream("key", s.stat("key").etag)), b"x"),
        (lambda s: s.stat("key").size, 1),
        (lambda s: len(s.put("other", b"y")) > 0, True),
    ],
)
def test_a_reply_that_is_not_r2s_is_asked_for_again(store, server, waits, answer, call, result):
    store.put("key", b"x")
    server.answers.extend([(200, answer)] * 3)
    assert call(store) == result
    assert len(waits) == 3


def test_a_page_of_a_listing_that_is_torn_is_asked_for_again_and_then_given_up(store, server, waits):
    store.put("key", b"x")
    server.answers.extend([(200, TORN)] * 2)
    assert [info.key for info in store.list("")] == ["key"]
    assert len(waits) == 2
    server.answers.extend([(200, TORN)] * ATTEMPTS)
    with pytest.raises(StorageUnavailable, match="R2 kept failing after every retry"):
        list(store.list(""))


@pytest.mark.parametrize("call", [lambda s: s.stat("key"), lambda s: s.read("key"), lambda s: list(s.list("a"))])
def test_a_missing_bucket_is_told_from_a_missing_object(server, call):
    with pytest.raises(BucketNotFound, match="r2://no-such-bucket"):
        call(R2Store.open("no-such-bucket"))


def test_a_token_that_may_not_ask_for_the_bucket_leaves_the_object_missing(store, server):
    server.answers.extend([(404, ""), (403, "")])
    with pytest.raises(ObjectNotFound):
        store.stat("key")


def test_a_wrong_key_stops_at_once_and_is_not_in_the_message(bucket, server, monkeypatch):
    for name, value in (("R2_ACCESS_KEY_ID", "wrong-key-id"), ("R2_SECRET_ACCESS_KEY", "wrong-secret")):
        monkeypatch.setenv(name, value)
        store = R2Store.open(bucket)
        for call in (
            lambda s: s.read("key"),
            lambda s: s.stat("key"),
            lambda s: s.put("key", b""),
            lambda s: list(s.list("")),
        ):
            with pytest.raises(AccessDenied) as raised:
                call(store)
            assert not [
                hidden for hidden in ("wrong-", CREDENTIALS.secret) if hidden in f"{raised.value} {raised.value!r}"
            ]


def test_an_endpoint_where_nothing_listens_is_named(bucket, monkeypatch, waits):
    monkeypatch.setenv("R2_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(
        StorageUnavailable, match=f"r2://{bucket}/key: .*check the network and R2_ENDPOINT_URL.*127.0.0.1:9"
    ):
        R2Store.open(bucket).read("key")
    assert len(waits) == ATTEMPTS - 1


def test_an_endpoint_that_is_no_url_is_named(bucket, monkeypatch):
    monkeypatch.setenv("R2_ENDPOINT_URL", "my endpoint")
    with pytest.raises(InvalidLocation, match="R2_ENDPOINT_URL=my endpoint"):
        R2Store.open(bucket)


@pytest.mark.parametrize(("bucket_name", "key"), [("no bucket's name", "key"), ("bucket", "")])
def test_what_no_request_can_name_is_an_invalid_location(server, bucket_name, key):
    with pytest.raises(InvalidLocation, match="R2 cannot be asked"):
        R2Store.open(bucket_name).put(key, b"x")


def test_a_lost_reply_makes_an_own_success_look_like_anothers(store, server, waits):
    server.lose_replies = 1
    with pytest.raises(AlreadyExists):
        store.put_if_absent("key", b"nonce-1")
    assert store.read("key")[0] == b"nonce-1"


def test_a_lost_reply_to_a_plain_put_is_put_again(store, server, waits):
    server.lose_replies = 1
    etag = store.put("key", b"x")
    assert store.read("key") == (b"x", etag)


def test_a_listing_goes_over_all_pages(store, server):
    keys = [f"k/{number:04d} ü" for number in range(1003)]
    for key in keys:
        store.put(key, b"")
    assert [info.key for info in store.list("k/")] == keys
    assert len(calls(server, "GET")) == 2


def test_folders_that_are_near_take_one_short_page_which_is_believed_only_as_far_as_it_goes(store, server):
    folders = [f"out/in/{number:03d}.jsonl/" for number in range(12)]
    for folder in folders[1:10:2]:
        store.put(f"{folder}shard-1", b"")
    server.reset()
    found = store.list_near(folders[1:11])
    [page] = server.seen
    assert {"max-keys=80", "prefix=out%2Fin%2F0", "start-after=out%2Fin%2F001.jsonl"} < {
        *page.path.split("?")[1].split("&")
    }
    shown = [[*store.list(folder)] for folder in folders[1:11]]
    assert found == shown
    assert [len(infos) for infos in shown] == [1, 0] * 5

    for number in range(40):  # one that fills the rest of the page, and reaches over its end
        store.put(f"{folders[5]}shard-{number:02d}", b"")
    some = [folders[0], *folders[4:8]]
    server.reset()
    found = store.list_near(some)
    assert len(server.seen) == 1
    assert found == [[], [], None, None, None]


def test_a_folder_by_itself_is_shown_with_one_page_if_it_has_no_more(store, server):
    for number in range(30):
        store.put(f"one/{number:02d}", b"")
    server.reset()
    [found] = store.list_near(["one/"])
    assert len(server.seen) == 1
    assert [*found] == [*store.list("one/")]


def test_an_upload_goes_in_equal_parts_and_shows_at_its_end(store, server):
    body = BODY * 7  # 21 MiB
    upload = store.upload("big", "text/plain")
    for at in range(0, len(body), 700_001):
        upload.write(memoryview(body)[at : at + 700_001])
    assert list(store.list("")) == []
    upload.finish()
    parts = [seen.size for seen in calls(server, "PUT")]
    assert parts == [PART_SIZE, PART_SIZE, len(body) - 2 * PART_SIZE]
    assert store.read("big")[0] == body
    assert not [seen for seen in server.seen if "expect" in seen.headers or "x-amz-trailer" in seen.headers]


@pytest.mark.parametrize("size", [0, 1, PART_SIZE])
def test_a_small_upload_is_one_put(store, server, size):
    upload = store.upload("small", "text/plain")
    upload.write(b"x" * size)
    upload.finish()
    assert [(seen.method, seen.size) for seen in server.seen] == [("PUT", size)]
    assert store.stat("small").size == size


def test_an_upload_that_fails_is_removed_and_never_finishes(store, server):
    upload = store.upload("big", "text/plain")
    upload.write(b"x" * (PART_SIZE + 1))
    server.refuse(403, "AccessDenied")
    for call in (lambda: upload.write(b"x" * PART_SIZE), upload.finish, lambda: upload.write(b"")):
        with pytest.raises(AccessDenied, match=f"{store.url}/big"):
            call()
    assert [seen.method for seen in server.seen] == ["POST", "PUT", "PUT", "DELETE"]
    assert list(store.list("")) == []


def test_a_copy_keeps_the_metadata(store, server):
    store.put("a b/ü", b"body", {"tiles": "0+4"})
    server.seen.clear()
    store.copy("a b/ü", store, "c")
    assert store.stat("c").metadata == {"tiles": "0+4"}
    with pytest.raises(ObjectNotFound, match=f"{store.url}/no to {store.url}/d"):
        store.copy("no", store, "d")


def test_a_large_copy_goes_in_equal_parts(store, server, monkeypatch):
    monkeypatch.setattr(r2_parts, "COPIED_AT_ONCE", 6 << 20)  # as above 4 GiB
    monkeypatch.setattr(r2_parts, "COPIED_PART", 5 << 20)
    store.put("big", BODY * 4)
    store.copy("big", store, "copy")
    assert store.read("copy")[0] == BODY * 4
    ranges = [seen.headers["x-amz-copy-source-range"] for seen in server.seen if "partNumber" in seen.path]
    assert ranges == ["bytes=0-5242879", "bytes=5242880-10485759", "bytes=10485760-12582911"]


def test_a_store_is_opened_where_it_is_used_and_never_pickled(store):
    for dumps in (pickle.dumps, pickler.dumps):  # the latter is what Beam does to a DoFn
        with pytest.raises((TypeError, pickle.PicklingError)):
            dumps(store)


def test_no_log_line_holds_the_key_or_the_secret(bucket, server, waits, caplog, monkeypatch):
    monkeypatch.setenv("R2_SECRET_ACCESS_KEY", "a-secret-of-this-test-only")  # a client of its own, made under DEBUG
    caplog.set_level(logging.DEBUG)
    store = R2Store.open(bucket)
    server.refuse(503, "ServiceUnavailable")
    with pytest.raises(AccessDenied):
        store.put("key", b"x")
    monkeypatch.setenv("R2_SECRET_ACCESS_KEY", CREDENTIALS.secret)
    R2Store.open(bucket).put("key", b"x")
    assert "urllib3" in {record.name.partition(".")[0] for record in caplog.records}
    for hidden in ("a-secret-of-this-test-only", CREDENTIALS.secret, CREDENTIALS.token_id, "Signature="):
        assert hidden not in caplog.text


def test_a_secret_in_a_long_message_is_struck_out_before_the_message_is_cut(store, server):
    server.refuse(403, "AccessDenied", message="." * 190 + CREDENTIALS.secret)
    with pytest.raises(AccessDenied) as raised:
        store.put("key", b"x")
    assert CREDENTIALS.secret[:8] not in str(raised.value)


def test_every_kind_of_error_is_one_of_this_rooms():
    refusal = R2Refused(418, "Odd", "")
    with (
        pytest.raises(errors.StorageError, match=r"r2://b/k: R2 refused this request \(418 Odd: \)"),
        r2_errors("r2://b/k"),
    ):
        raise refusal


def test_the_stores_clock_is_that_of_its_replies_whatever_this_machines_says(server, bucket, monkeypatch):
    store = R2Store(bucket, R2Client(R2Access(server.url, CREDENTIALS.token_id, CREDENTIALS.secret)))
    real = time.time()
    monkeypatch.setattr(client_module.time, "time", lambda: real + 1e9)
    assert store.now() == real + 1e9  # before the first reply
    dates = {"date": "Tue, 01 Dec 2026 00:00:00 GMT"}
    monkeypatch.setattr(
        store._client, "_pool", SimpleNamespace(urlopen=lambda *_, **__: WholeReply(404, "", dates, b""))
    )
    with pytest.raises(ObjectNotFound):
        store.read("key")
    assert 0 <= store.now() - datetime(2026, 12, 1, tzinfo=UTC).timestamp() < 600
