"""A backend is reached as all other services are: by the company's proxy, with the company's certificates."""

from __future__ import annotations

import base64

import pytest

from llmdo.storage.errors import StorageError
from tests import company_network
from tests.company_network import Proxy, authority, listening
from tests.storage.livestore.fake_backend import FakeBackend
from tests.storage.livestore.store_client import SECRET, Client


@pytest.fixture
def backend(tmp_path, monkeypatch):
    """One whose certificate is of the company's own CA."""
    company_network.clean(monkeypatch)
    ca, tls = authority(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", ca)
    backend = FakeBackend(payload=SECRET, tls=tls)
    backend.write("s", "Message", {"id": "m1"})
    yield backend
    backend.stop()


@pytest.fixture
def reader(backend):
    made = []

    def start():
        made.append(Client(backend))
        return made[-1]

    yield start
    for one in made:
        one.stores.close()


def test_the_companys_certificates_are_trusted(reader):
    assert reader().read(1) == ["m1"]


def test_an_unknown_certificate_is_not_trusted(reader, monkeypatch):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    one = reader()
    while one.stores.problem is None:
        one.stores.take(1, 0.05)
    assert "certificate verify failed" in str(one.stores.problem)


def test_the_proxy_is_asked_with_its_password_unless_the_host_is_excepted(backend, reader, monkeypatch, caplog):
    wants = "Basic " + base64.b64encode(b"me:hush hush").decode()
    with listening(Proxy, wants=wants) as (url, proxy):
        monkeypatch.setenv("HTTPS_PROXY", url.replace("//", "//me:hush%20hush@"))
        assert reader().read(1) == ["m1"]
        assert proxy.seen[0] == ("CONNECT", f"127.0.0.1:{backend.port}", wants)
        monkeypatch.setenv("HTTPS_PROXY", url.replace("//", "//me:wrong@"))
        with caplog.at_level("DEBUG"):
            one = reader()
            while one.stores.problem is None:
                one.stores.take(1, 0.05)
        assert "HTTP 407" in str(one.stores.problem) and "wrong" not in str(one.stores.problem) + caplog.text
        seen = len(proxy.seen)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert reader().read(1) == ["m1"]
        assert len(proxy.seen) >= seen


def test_certificates_that_cannot_be_used_end_the_stores(reader, monkeypatch, tmp_path):
    (tmp_path / "none.pem").write_text("no certificate")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(StorageError, match="holds no certificates"):
        reader().stores.take(1, 55.0)
