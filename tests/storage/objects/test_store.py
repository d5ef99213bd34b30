"""What both stores promise, the local folder and R2, on the same cases."""

import pickle
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import llmdo.storage.errors
from llmdo.settings.environment import MissingSettings
from llmdo.storage.errors import AlreadyExists, InvalidLocation, ObjectChanged, ObjectNotFound, QueueError, StorageError
from llmdo.storage.objects.local import LocalStore
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.r2 import R2Store
from llmdo.storage.objects.store import READ_CHUNK, locate


@pytest.fixture(params=["local", "r2"])
def either(request, tmp_path):
    return LocalStore(tmp_path) if request.param == "local" else request.getfixturevalue("store")


def test_what_was_put_is_read_back(either):
    etag = either.put("a/b c/ü%20+.jsonl", b"one\ntwo\n", {"tiles": "0+8"})
    assert either.read("a/b c/ü%20+.jsonl") == (b"one\ntwo\n", etag)
    info = either.stat("a/b c/ü%20+.jsonl")
    assert (info.key, info.etag, info.size) == ("a/b c/ü%20+.jsonl", etag, 8)
    assert '"' not in etag
    assert abs(info.modified - datetime.now(UTC)) < timedelta(minutes=1)
    assert info.metadata == ({"tiles": "0+8"} if either.keeps_metadata else {})


def test_many_objects_are_removed_and_missing_ones_are_no_error(either):
    for name in ("a", "b", "c"):
        either.put(f"many/{name}", b"x")
    either.delete_many(["many/a", "many/none", "many/c"])
    assert [info.key for info in either.list("many/")] == ["many/b"]


def test_an_empty_object_is_an_object(either):
    etag = either.put("empty", b"")
    assert either.read("empty") == (b"", etag)
    assert list(either.stream("empty", etag)) == []
    assert either.stat("empty").size == 0


def test_a_put_replaces_and_gives_another_etag(either):
    first = either.put("key", b"old")
    assert either.put("key", b"new") != first
    assert either.read("key")[0] == b"new"


def test_put_if_absent_writes_once(either):
    etag = either.put_if_absent("a/key", b"first")
    with pytest.raises(AlreadyExists, match="a/key"):
        either.put_if_absent("a/key", b"second")
    assert either.read("a/key") == (b"first", etag)


def test_put_if_match_replaces_only_the_version_that_was_read(either):
    first = either.put("key", b"one")
    second = either.put_if_match("key", b"two", first)
    with pytest.raises(ObjectChanged, match="key"):
        either.put_if_match("key", b"three", first)
    assert either.read("key") == (b"two", second)


def test_put_if_match_of_something_gone_is_a_change(either):
    etag = either.put("key", b"one")
    either.delete("key")
    with pytest.raises(ObjectChanged, match="key"):
        either.put_if_match("key", b"two", etag)
    with pytest.raises(ObjectNotFound):
        either.stat("key")


def test_what_is_not_there_is_not_found_by_name(either):
    for call in (either.stat, either.read, lambda key: list(either.stream(key, "etag"))):
        with pytest.raises(ObjectNotFound, match="no/such"):
            call("no/such")


def test_deleting_nothing_is_no_error(either):
    either.put("key", b"x")
    either.delete("key")
    either.delete("key")
    either.delete("no/such/key")
    assert list(either.list("")) == []


def test_a_listing_is_every_key_with_the_prefix_in_order(either):
    keys = ["a", "a.b", "a/b", "a/c/d", "ab", "b/x", "é"]
    etags = {key: either.put(key, key.encode()) for key in reversed(keys) if key != "a"}
    assert [info.key for info in either.list("")] == keys[1:]
    assert [info.key for info in either.list("a")] == ["a.b", "a/b", "a/c/d", "ab"]
    assert [info.key for info in either.list("a/")] == ["a/b", "a/c/d"]
    assert list(either.list("c/")) == list(either.list("a/b/")) == []
    assert {info.key: info.etag for info in either.list("")} == etags
    assert next(iter(either.list("é"))).size == 2
    for prefix in ("", "a", "a/", "c/", "a/b/"):
        shown = list(either.versions(prefix))
        assert [key for key, _ in shown] == [info.key for info in either.list(prefix)]
        assert all(etag in ("", etags[key]) for key, etag in shown)


def test_folders_that_are_near_are_shown_as_they_are_listed_or_not_at_all(either):
    for key in ["in/a/1", "in/a/2", "in/a/b/3", "in/a0", "in/b", "in/b/", "in/b/1", "in/c/1", "in/ü/1", "other/1"]:
        if not (key.endswith("/") or key in ("in/b",)) or either.keeps_metadata:  # a disk has no such names
            either.put(key, key.encode())
    for prefixes in (
        ["in/a/", "in/b/", "in/none/"],
        ["in/c/", "in/a/", "in/ü/"],
        ["in/b/"],
        ["in/ü/"],
        ["none/", "in/b/", "other/"],
        ["in/a/", "in/a/b/", "in/a/"],
    ):
        for prefix, shown in zip(prefixes, either.list_near(prefixes), strict=True):
            assert shown is None or list(shown) == list(either.list(prefix))


@pytest.mark.parametrize(
    ("start", "stop"), [(0, None), (0, 3), (2, 5), (4, None), (9, 99), (10, None), (12, 20), (5, 5)]
)
def test_a_range_is_the_slice(either, start, stop):
    etag = either.put("key", b"0123456789")
    assert b"".join(either.stream("key", etag, start, stop)) == b"0123456789"[start:stop]


def test_a_long_object_comes_in_chunks(either):
    body = bytes(range(256)) * (READ_CHUNK // 256 * 2 + 1)
    etag = either.put("key", body)
    chunks = list(either.stream("key", etag, 7))
    assert max(map(len, chunks)) <= READ_CHUNK
    assert b"".join(chunks) == body[7:]


def test_another_version_is_not_read(either):
    etag = either.put("key", b"one")
    either.put("key", b"two")
    with pytest.raises(ObjectChanged, match="key"):
        list(either.stream("key", etag))


def test_a_stream_left_early_leaves_the_store_usable(either):
    etag = either.put("key", b"x" * (3 * READ_CHUNK))
    stream = either.stream("key", etag)
    assert len(next(stream)) == READ_CHUNK
    stream.close()
    assert either.read("key")[1] == etag


def test_the_url_opens_an_equal_store(either):
    either.put("key", b"x")
    again = open_store(either.url)
    assert type(again) is type(either)
    assert again.url == either.url
    assert again.read("key")[0] == b"x"


def test_r2_without_keys_says_what_to_export(monkeypatch):
    for name in ("R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY", "R2_ENDPOINT_URL", "CLOUDFLARE_ACCOUNT_ID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(MissingSettings, match="R2_SECRET_ACCESS_KEY is not set"):
        open_store("r2://bucket")


def test_a_url_is_a_bucket_and_a_key():
    where = locate("r2://my-bucket/a//b c?.jsonl")
    assert (where.store_url, where.key, where.bucket) == ("r2://my-bucket", "a//b c?.jsonl", "my-bucket")
    assert locate("r2://my-bucket").key == locate("r2://my-bucket/").key == ""


def test_a_local_path_is_the_store_itself(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    where = locate("out/")
    assert (where.store_url, where.key, where.bucket) == (str(tmp_path / "out"), "", "")
    assert locate("~").store_url == str(Path.home())


@pytest.mark.parametrize("url", ["r2://", "r2:///key", "r2://ab/key", "s3://bucket/key", "gs://bucket"])
def test_other_urls_are_refused_with_the_form_that_works(url):
    with pytest.raises(InvalidLocation, match="r2://BUCKET/PREFIX"):
        locate(url)


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_a_location_gives_back_any_key(key):
    where = locate(f"r2://bucket/{key}")
    assert f"{where.store_url}/{where.key}" == f"r2://bucket/{key}"


@pytest.mark.parametrize("kind", [kind for kind in vars(llmdo.storage.errors).values() if isinstance(kind, type)])
def test_every_error_survives_pickling(kind):
    assert issubclass(kind, StorageError)
    again = pickle.loads(pickle.dumps(kind("r2://bucket/key: do this")))
    assert type(again) is kind
    assert str(again) == "r2://bucket/key: do this"


def test_a_queue_error_keeps_its_numbers_when_pickled():
    again = pickle.loads(pickle.dumps(QueueError("wait", 429, 10250, 3.5)))
    assert (str(again), again.status, again.code, again.retry_after) == ("wait", 429, 10250, 3.5)


def test_an_r2_store_tells_nothing_but_its_bucket(store):
    assert repr(store) == f"R2Store({store.url!r})"
    assert isinstance(store, R2Store)
