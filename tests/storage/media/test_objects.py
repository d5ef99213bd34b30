"""Objects at web addresses and in folders: exactly what was named, within a bound, in one version."""

from __future__ import annotations

import gzip
import os
from http.server import BaseHTTPRequestHandler

import pytest

from llmdo.storage.errors import (
    AccessDenied,
    ObjectChanged,
    ObjectNotFound,
    StorageError,
    StorageUnavailable,
    TooManyBytes,
)
from llmdo.storage.media.objects import MediaObjects
from tests.company_network import clean, listening

LIMIT = 1000


class Web(BaseHTTPRequestHandler):
    """Serves ``server.objects``: path → status, headers, body; ``server.heads`` False: it refuses HEAD."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(whole=False)

    def do_GET(self):
        self.answer(whole=True)

    def answer(self, *, whole):
        self.server.seen.append((self.command, self.path))
        status, headers, body = self.server.objects.get(self.path, (404, {}, b""))
        if not whole and not self.server.heads:
            status, headers, body = 405, {}, b""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "no-length" not in headers:
            self.send_header("content-length", str(len(body)))
        else:
            self.send_header("connection", "close")
        self.end_headers()
        if whole:
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def web(monkeypatch):
    clean(monkeypatch)
    with listening(Web, objects={}, heads=True) as (url, server):
        server.url = url
        yield server


def test_a_head_is_enough_for_a_version_and_one_get_reads_it(web):
    web.objects["/a.png"] = (200, {"etag": '"one"'}, b"pixels")
    objects = MediaObjects(LIMIT)
    assert objects.look("", f"{web.url}/a.png") == ('"one"', 6)
    assert web.seen == [("HEAD", "/a.png")]
    assert objects.read("", f"{web.url}/a.png", '"one"') == b"pixels"
    web.objects["/a.png"] = (200, {"etag": '"two"'}, b"others")
    with pytest.raises(ObjectChanged):
        objects.read("", f"{web.url}/a.png", '"one"')


def test_without_an_etag_the_time_and_the_length_name_a_version(web):
    web.objects["/a"] = (200, {"last-modified": "Mon, 30 Nov 2026 10:00:00 GMT"}, b"pixels")
    version, size = MediaObjects(LIMIT).look("", f"{web.url}/a")
    assert (version, size) == ("Mon, 30 Nov 2026 10:00:00 GMT 6", 6)
    assert MediaObjects(LIMIT).read("", f"{web.url}/a", version) == b"pixels"


@pytest.mark.parametrize("headers", [{}, {"no-length": "1"}, {"no-length": "1", "etag": ""}])
@pytest.mark.parametrize("heads", [True, False])
def test_where_no_header_names_a_version_the_content_does(web, headers, heads):
    web.heads = heads
    web.objects["/a"] = (200, headers, b"pixels")
    objects = MediaObjects(LIMIT)
    version, size = objects.look("", f"{web.url}/a")
    assert version.startswith("sha256-")
    assert size == 6
    assert objects.read("", f"{web.url}/a", version) == b"pixels"
    web.objects["/a"] = (200, headers, b"others")
    with pytest.raises(ObjectChanged):
        objects.read("", f"{web.url}/a", version)


@pytest.mark.parametrize("headers", [{"etag": '"e"'}, {}, {"no-length": "1"}])
def test_what_is_too_large_is_never_read_to_its_end(web, headers):
    web.objects["/a"] = (200, headers, bytes(LIMIT + 1))
    with pytest.raises(TooManyBytes):
        MediaObjects(LIMIT).look("", f"{web.url}/a")
    with pytest.raises(TooManyBytes):
        MediaObjects(LIMIT).read("", f"{web.url}/a", '"e"')
    web.objects["/a"] = (200, headers, bytes(LIMIT))
    assert MediaObjects(LIMIT).look("", f"{web.url}/a")[1] == LIMIT


@pytest.mark.parametrize(
    ("status", "headers", "kind"),
    [
        (301, {"location": "http://127.0.0.1:1/x"}, StorageError),
        (302, {"location": "/b"}, StorageError),
        (307, {"location": "file:///etc/passwd"}, StorageError),
        (401, {}, AccessDenied),
        (404, {}, ObjectNotFound),
        (410, {}, ObjectNotFound),
        (418, {}, StorageError),
        (429, {}, StorageUnavailable),
        (500, {}, StorageUnavailable),
        (503, {}, StorageUnavailable),
        (206, {}, StorageError),
        (200, {"content-encoding": "gzip"}, StorageError),
    ],
)
def test_anything_but_the_object_is_an_error_and_no_redirect_is_followed(web, status, headers, kind):
    web.objects["/a"] = (status, headers, gzip.compress(b"x"))
    web.objects["/b"] = (200, {}, b"elsewhere")
    for ask in (lambda o: o.look("", f"{web.url}/a?signature=secret"), lambda o: o.read("", f"{web.url}/a?s", "v")):
        web.objects[f"/a?{'signature=secret'}"] = web.objects["/a?s"] = web.objects["/a"]
        with pytest.raises(StorageError) as raised:
            ask(MediaObjects(LIMIT))
        assert type(raised.value) is kind
        assert "secret" not in str(raised.value)
    assert not any(path == "/b" for _, path in web.seen)


def test_an_etag_without_a_length_names_a_version_whose_size_is_bounded(web):
    web.objects["/a"] = (200, {"no-length": "1", "etag": '"e"'}, b"pixels")
    assert MediaObjects(LIMIT).look("", f"{web.url}/a") == ('"e"', LIMIT)
    assert MediaObjects(LIMIT).read("", f"{web.url}/a", '"e"') == b"pixels"
    web.heads = False
    assert MediaObjects(LIMIT).look("", f"{web.url}/a") == ('"e"', LIMIT)


def test_a_server_that_is_away_may_come_back(monkeypatch):
    clean(monkeypatch)
    with pytest.raises(StorageUnavailable):
        MediaObjects(LIMIT).look("", "http://127.0.0.1:1/a")


def test_a_file_has_the_version_of_its_content(tmp_path):
    objects = MediaObjects(LIMIT)
    (tmp_path / "a.png").write_bytes(b"pixels")
    version, size = objects.look(str(tmp_path), "a.png")
    assert size == 6
    os.utime(tmp_path / "a.png", (1, 1))
    assert objects.look(str(tmp_path), "a.png")[0] == version
    assert objects.read(str(tmp_path), "a.png", version) == b"pixels"
    (tmp_path / "a.png").write_bytes(b"others")
    assert objects.look(str(tmp_path), "a.png")[0] != version
    with pytest.raises(ObjectChanged):
        objects.read(str(tmp_path), "a.png", version)
    (tmp_path / "a.png").write_bytes(bytes(LIMIT + 1))
    with pytest.raises(TooManyBytes):
        objects.look(str(tmp_path), "a.png")


def test_a_link_may_lead_about_in_the_folder_and_not_out_of_it(tmp_path):
    folder, outside = tmp_path / "photos", tmp_path / "outside"
    (folder / "sub").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (folder / "sub" / "a").write_bytes(b"pixels")
    (folder / "here").symlink_to(folder / "sub" / "a")
    (folder / "there").symlink_to(outside / "secret")
    (folder / "up").symlink_to("..")
    (folder / "away").symlink_to(outside)
    (tmp_path / "alias").symlink_to(folder)
    (tmp_path / "photos-of-others").mkdir()
    (tmp_path / "photos-of-others" / "b").write_bytes(b"secret")
    (folder / "beside").symlink_to(tmp_path / "photos-of-others" / "b")
    objects = MediaObjects(LIMIT)
    for store in (folder, tmp_path / "alias"):
        assert objects.read(str(store), "here", objects.look(str(store), "here")[0]) == b"pixels"
        for key in ("there", "up/outside/secret", "away/secret", "beside", "sub", "none"):
            with pytest.raises(ObjectNotFound):
                objects.look(str(store), key)
            with pytest.raises(ObjectNotFound):
                objects.read(str(store), key, "0-0")


def test_a_pipe_is_no_object(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ObjectNotFound):
        MediaObjects(LIMIT).look(str(tmp_path), "pipe")
    with pytest.raises(StorageError):
        MediaObjects(LIMIT).read(str(tmp_path), "pipe", "0-0")
