"""How a service is reached: base URLs as users write them, proxies, certificates, redirects, headers; on loopback."""

import asyncio
import base64
import json
import os
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest
from aiohttp.http_writer import StreamWriter

from llmdo.backends.errors import ConnectionFailed, StopRun, Unauthorized
from llmdo.backends.http.base_url import base_url
from llmdo.backends.http.network_errors import network_errors
from llmdo.backends.openai.backend import open_backend
from llmdo.backends.requests import ChatRequest, Message
from llmdo.settings import network
from llmdo.settings.environment import CloudflareAccount, MissingSettings, R2Access, r2_access
from llmdo.settings.network import proxy_for
from llmdo.settings.secrets import check_header, header_values, secrets_in_url, without_secrets
from llmdo.storage.errors import QueueError, StorageUnavailable
from llmdo.storage.objects.r2 import R2Store
from llmdo.storage.objects.r2_client import r2_client
from llmdo.storage.queues.client import QueueClient
from tests.company_network import Proxy, Service, authority, clean, completion, listening

QUESTION = ChatRequest("m", (Message("user", "hi"),))


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    clean(monkeypatch)
    for name in ("OPENAI_ORG_ID", "OPENAI_ORGANIZATION", "OPENAI_PROJECT_ID", "OPENAI_PROJECT", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def ask(monkeypatch, url, key="sk-test-0123456789", headers=()):
    """One answer of the service that OPENAI_BASE_URL names."""
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    if key:
        monkeypatch.setenv("OPENAI_API_KEY", key)

    async def scenario():
        backend = open_backend(headers)
        try:
            return (await backend.execute(QUESTION)).text
        finally:
            await backend.aclose()

    return asyncio.run(scenario())


# Base URLs.


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("/v1", "/v1/chat/completions"),
        ("/v1///", "/v1/chat/completions"),
        ("/openai/v1?api-version=preview", "/openai/v1/chat/completions?api-version=preview"),
        ("/openai/v1/?api-version=preview&a=b%20c", "/openai/v1/chat/completions?api-version=preview&a=b%20c"),
        (
            "/openai/deployments/d-1?api-version=2024-10-21",
            "/openai/deployments/d-1/chat/completions?api-version=2024-10-21",
        ),
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/embeddings/?x=1", "/v1/chat/completions?x=1"),
        ("/models", "/models/chat/completions"),
        (" ", "/chat/completions"),
        ("/v1#part", "/v1/chat/completions"),
    ],
)
def test_a_route_comes_below_the_path_and_before_the_query(monkeypatch, written, path):
    with listening(Service) as (url, server):
        assert ask(monkeypatch, f"{url}{written}") == "ok"
    assert [(method, where) for method, where, *_ in server.seen] == [("POST", path)]


def test_the_list_of_models_and_health_keep_the_query_too(monkeypatch):
    with listening(Service, reply=lambda *_: (200, {}, b'{"data": []}')) as (url, server):
        monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1?api-version=1")

        async def scenario():
            backend = open_backend()
            await backend.list_models()
            await backend.health()
            await backend.aclose()

        asyncio.run(scenario())
    assert [path for _, path, *_ in server.seen] == ["/v1/models?api-version=1"] * 2


@pytest.mark.parametrize("key", ["", "sk-test-0123456789"])
def test_a_user_in_the_base_url_is_sent_as_openais_own_client_sends_it(monkeypatch, key):
    with listening(Service) as (url, server):
        ask(monkeypatch, url.replace("//", "//some%40body:pass%2Fword@"), key)
    _, _, headers, _ = server.seen[0]
    assert headers["authorization"] == "Basic " + base64.b64encode(b"some@body:pass/word").decode()
    assert "@" not in headers["host"]


@pytest.mark.parametrize(
    "url", ["ftp://me:hush-hush-1@a.example", "me:hush-hush-1@a.example", "http://me:hush-hush-1@?key=hush-hush-2"]
)
def test_what_is_said_of_a_wrong_base_url_holds_no_secret_of_it(url):
    with pytest.raises(StopRun, match="correct the base URL") as caught:
        base_url("openai", url)
    assert "hush" not in caught.value.message
    assert "hush" not in repr(base_url("openai", "http://me:hush-hush-1@a.example/v1?key=hush-hush-2"))


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("127.0.0.1", "localhost"),
        ("::1", "localhost"),
        ("::1", "LocalHost"),
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "[::1]"),
    ],
)
def test_a_server_is_found_by_its_name_and_by_its_address(monkeypatch, host, name):
    with listening(Service, host=host) as (url, _):
        assert ask(monkeypatch, f"http://{name}:{url.rpartition(':')[2]}/v1") == "ok"


# Headers.


def test_organization_and_project_are_sent_as_openais_own_client_sends_them(monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_ORGANIZATION", "org-2")
    monkeypatch.setenv("OPENAI_PROJECT", "proj_1")
    with listening(Service) as (url, server):
        ask(monkeypatch, url)
    sent = server.seen[0][2]
    assert (sent["openai-organization"], sent["openai-project"]) == ("org-1", "proj_1")
    monkeypatch.setenv("OPENAI_ORG_ID", "org 1")
    with pytest.raises(MissingSettings, match="OPENAI_ORG_ID has a space"):
        open_backend()


def test_headers_have_the_values_of_variables(monkeypatch):
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "azure-key-1234")
    monkeypatch.setenv("GATE", "Token gate-key-5678")
    with listening(Service) as (url, server):
        ask(monkeypatch, url, "", ["api-key=AZURE_OPENAI_API_KEY", "Authorization=GATE"])
        ask(monkeypatch, url, "sk-test-0123456789", ["X-Key=AZURE_OPENAI_API_KEY"])
    first, second = (headers for _, _, headers, _ in server.seen)
    assert (first["api-key"], first["authorization"]) == ("azure-key-1234", "Token gate-key-5678")
    assert (second["x-key"], second["authorization"]) == ("azure-key-1234", "Bearer sk-test-0123456789")
    told = "it was azure-key-1234 and gate-key-5678, or Token gate-key-5678"
    assert without_secrets(told) == "it was <AZURE_OPENAI_API_KEY> and <GATE>, or <GATE>"


@pytest.mark.parametrize(
    "text", ["api-key", "api-key=", "=KEY", "api key=KEY", "api-key=sk-hush-hush", "Host=KEY", "content-length=KEY"]
)
def test_a_header_that_cannot_be_sent_is_refused_and_what_may_be_a_secret_not_quoted(text):
    with pytest.raises(ValueError, match=r"write HEADER=VARIABLE|name another one") as caught:
        check_header(text)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(("value", "said"), [("", "LLM_KEY is not set"), ("a\nb", "LLM_KEY has a line break")])
def test_a_header_without_a_value_is_told_before_any_call(monkeypatch, value, said):
    monkeypatch.setenv("LLM_KEY", value)
    with pytest.raises(MissingSettings, match=said):
        header_values(["api-key=LLM_KEY"])


@pytest.mark.parametrize(
    ("url", "hidden"),
    [
        ("http://a.example/v1", ()),
        ("http://a.example/@cf/x?api-version=preview", ()),
        ("http://u:p%40ss@a.example", ("u:p%40ss", "dTpwQHNz", "p%40ss", "p@ss")),
        ("https://token-1@a.example?sig=s1&x=2&api_key=k%2F2", ("token-1", "dG9rZW4tMTo=", "s1", "k%2F2", "k/2")),
        ("u:p@proxy:3128", ("u:p", "dTpw", "p")),
    ],
)
def test_the_secrets_in_a_url_are_known(url, hidden):
    assert secrets_in_url(url) == hidden


# Replies' heads.


@pytest.mark.parametrize("headers", [{"x-big": "x" * 65_000}, {f"x-{n}": "y" for n in range(600)}])
def test_a_reply_with_large_or_many_headers_is_read(monkeypatch, headers):
    reply = (200, {"content-type": "application/json", **headers}, json.dumps(completion()).encode())
    with listening(Service, reply=lambda *_: reply) as (url, server):
        assert ask(monkeypatch, url) == "ok"
    assert len(server.seen) == 1


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "text/html", "application/octet-stream", ""])
@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf", b"\n  \n\n", b"\r\n\t "])
def test_a_json_reply_is_read_whatever_its_type_and_what_keeps_the_connection_open_before_it(monkeypatch, kind, before):
    reply = (200, {"content-type": kind} if kind else {}, before + json.dumps(completion()).encode())
    with listening(Service, reply=lambda *_: reply) as (url, _):
        assert ask(monkeypatch, url) == "ok"


# Proxies.


@pytest.mark.parametrize(
    ("no_proxy", "url", "by"),
    [
        ("", "http://a.example", True),
        ("*", "http://a.example", False),
        ("b.example,a.example", "http://a.example", False),
        ("a.example", "http://x.a.example", False),
        (".a.example", "http://x.a.example", False),
        (".a.example", "http://a.example", False),
        ("*.a.example", "http://x.a.example", False),
        ("a.example", "http://ba.example", True),
        ("A.Example", "http://a.EXAMPLE./v1", False),
        ("10.0.0.0/8", "http://10.1.2.3:8000/v1", False),
        ("10.0.0.0/8", "http://11.1.2.3", True),
        ("10.0.0.0/8", "http://a.example", True),
        ("192.168.1.5", "http://192.168.1.5", False),
        ("a.example:8443", "https://a.example:8443/v1", False),
        ("a.example:8443", "https://a.example", True),
        ("a.example:443", "https://a.example", False),
        ("10.0.0.0/8 a.example", "http://a.example", False),
        ("http://a.example", "http://a.example", False),
        ("::1", "http://[::1]:8000", False),
        ("[::1]", "http://[::1]:8000", False),
        ("[::1]:8000", "http://[::1]:8000", False),
        ("fd00::/8", "http://[fd12::1]", False),
        ("localhost", "http://localhost:11434/v1", False),
    ],
)
def test_no_proxy_names_hosts_domains_networks_and_ports(monkeypatch, no_proxy, url, by):
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert proxy_for(url) == ("http://proxy.example:3128" if by else None)


@pytest.mark.parametrize(
    ("variables", "url", "proxy"),
    [
        ({"HTTP_PROXY": "p.example:3128"}, "http://a.example", "http://p.example:3128"),
        ({"HTTP_PROXY": "p.example:3128"}, "https://a.example", None),
        ({"https_proxy": "https://p.example"}, "https://a.example", "https://p.example"),
        ({"ALL_PROXY": "http://p.example"}, "https://a.example", "http://p.example"),
        ({"all_proxy": "socks5://p.example", "HTTPS_PROXY": "q:1"}, "https://a.example", "http://q:1"),
        ({"HTTPS_PROXY": "me:it@p.example:1"}, "https://a.example", "http://me:it@p.example:1"),
    ],
)
def test_a_proxy_is_named_by_the_scheme_or_for_all(monkeypatch, variables, url, proxy):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxy_for(url) == proxy


@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "socks4"])
def test_a_socks_proxy_is_told_before_any_call_with_what_to_do(monkeypatch, scheme):
    monkeypatch.setenv("ALL_PROXY", f"{scheme}://me:hush-hush@127.0.0.1:1080")
    with listening(Service) as (url, _):
        with pytest.raises(MissingSettings, match=r"ALL_PROXY names a SOCKS proxy.*into NO_PROXY") as caught:
            ask(monkeypatch, url)
        assert "hush" not in str(caught.value)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert ask(monkeypatch, url) == "ok"


@pytest.mark.parametrize("proxy", ["http://me:hu#sh@p:1", "http://p:port", "ftp://p", "http://"])
def test_a_proxy_that_cannot_be_used_is_told_without_its_password(monkeypatch, proxy):
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(ValueError, match="HTTP_PROXY cannot be used: write http://HOST:PORT") as caught:
        proxy_for("http://a.example")
    assert "sh@" not in str(caught.value)


WANTED = "Basic " + base64.b64encode(b"me:pass@word").decode()


def test_calls_go_by_a_proxy_that_wants_a_password(monkeypatch):
    with listening(Service) as (url, service), listening(Proxy, wants=WANTED, behind=url[7:]) as (proxy, at_proxy):
        monkeypatch.setenv("http_proxy", proxy.replace("//", "//me:pass%40word@"))
        assert ask(monkeypatch, "http://llm.company.example/v1") == "ok"
        assert at_proxy.seen == [("POST", "http://llm.company.example/v1/chat/completions", WANTED)]
        assert "proxy-authorization" not in service.seen[0][2]


@pytest.mark.parametrize("secure", [False, True])
def test_a_proxy_that_refuses_the_password_stops_the_run_with_what_to_write(monkeypatch, tmp_path, secure):
    ca, tls = authority(tmp_path)
    with listening(Service, tls if secure else None) as (url, service), listening(Proxy, wants=WANTED) as (proxy, _):
        monkeypatch.setenv("ALL_PROXY", proxy.replace("//", "//me:hush-hush-1@"))
        monkeypatch.setenv("SSL_CERT_FILE", ca)
        with pytest.raises(Unauthorized, match="the proxy wants a user and a password: write HTTPS_PROXY") as caught:
            ask(monkeypatch, url)
        assert not service.seen
        assert "hush" not in caught.value.message


@pytest.mark.parametrize("secure", [False, True])
def test_a_proxy_that_does_not_answer_is_named_with_what_to_do(monkeypatch, secure):
    with listening(Proxy) as (proxy, _):
        pass
    monkeypatch.setenv("ALL_PROXY", proxy)
    said = rf"the proxy {proxy[7:]}, by which a\.example is reached, does not answer .*NO_PROXY"
    with pytest.raises(ConnectionFailed, match=said) as caught:
        ask(monkeypatch, f"http{'s' if secure else ''}://a.example/v1")
    assert caught.value.lost is False


# Certificates.


def test_https_where_the_server_speaks_http_stops_the_run_with_what_to_write(monkeypatch):
    with listening(Service) as (url, service):
        with pytest.raises(StopRun, match=r"127\.0\.0\.1 does not speak TLS there: write http:// in the base URL"):
            ask(monkeypatch, url.replace("http://", "https://"))
        assert service.seen == []
        assert ask(monkeypatch, url) == "ok"


@pytest.mark.fast("False-SSL_CERT_FILE", "True-REQUESTS_CA_BUNDLE")
@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
@pytest.mark.parametrize("by_proxy", [False, True])
def test_a_companys_own_ca_is_trusted_for_models_queues_and_r2_alike(monkeypatch, tmp_path, variable, by_proxy):
    ca, tls = authority(tmp_path)
    xml = b'<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>'

    def reply(path, _):
        if path.startswith("/client"):
            return 200, {}, b'{"success": true, "result": []}'
        return (200, {}, xml) if "list-type" in path else (200, {}, json.dumps(completion()).encode())

    with listening(Service, tls, reply=reply) as (url, service), listening(Proxy, wants=WANTED) as (proxy, at_proxy):
        account = CloudflareAccount("0" * 32, "cf-token-1", f"{url}/client/v4")
        if by_proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.replace("//", "//me:pass%40word@"))
        with pytest.raises(StopRun, match=r"certificate of 127\.0\.0\.1 is not trusted.*SSL_CERT_FILE"):
            ask(monkeypatch, f"{url}/v1")
        with QueueClient(account, "1" * 32) as queue, pytest.raises(QueueError, match="set SSL_CERT_FILE to a PEM"):
            queue.consumers()
        assert service.seen == []
        monkeypatch.setenv(variable, ca)
        assert ask(monkeypatch, f"{url}/v1") == "ok"
        with QueueClient(account, "1" * 32) as queue:
            assert queue.consumers() == ()
        assert list(R2Store("bucket", r2_client(R2Access(url, "key-id-1", "secret-1"))).list("x/")) == []
    assert [method for method, *_ in service.seen] == ["POST", "GET", "GET"]
    asked = {(method, path, key) for method, path, key in at_proxy.seen}
    assert asked == ({("CONNECT", url[8:], WANTED)} if by_proxy else set())


@pytest.mark.parametrize("by_proxy", [False, True])
def test_r2_over_http_is_asked_for_a_path_and_a_proxy_for_a_whole_url(monkeypatch, by_proxy):
    xml = b'<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>'
    with listening(Service, reply=lambda *_: (200, {}, xml)) as (url, service), listening(Proxy) as (proxy, at_proxy):
        if by_proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy)
        assert list(R2Store("bucket", r2_client(R2Access(url, "key-id-3", "secret-3"))).list("x/")) == []
    assert [path.partition("?")[0] for _, path, *_ in service.seen] == ["/bucket"]
    assert [path.partition("?")[0] for _, path, _ in at_proxy.seen] == ([f"{url}/bucket"] if by_proxy else [])


def test_r2_says_that_a_certificate_is_not_trusted(monkeypatch, tmp_path):
    _, tls = authority(tmp_path)
    monkeypatch.setattr("llmdo.storage.objects.r2_client.ATTEMPTS", 1)
    with listening(Service, tls) as (url, _), pytest.raises(StorageUnavailable, match="set SSL_CERT_FILE to a PEM"):
        list(R2Store("bucket", r2_client(R2Access(url, "key-id-2", "secret-2"))).list("x/"))


@pytest.mark.parametrize(("content", "said"), [(None, "names no file"), (b"no PEM", "holds no certificates")])
def test_certificates_that_cannot_be_read_are_told_before_any_call(monkeypatch, tmp_path, content, said):
    place = tmp_path / "ca.pem"
    if content:
        place.write_bytes(content)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(place))
    monkeypatch.setenv("R2_ACCESS_KEY_ID", "r2-key-id")
    monkeypatch.setenv("R2_SECRET_ACCESS_KEY", "r2-secret")
    monkeypatch.setenv("R2_ENDPOINT_URL", "https://r2.example")
    for read in (lambda: ask(monkeypatch, "https://a.example"), r2_access):
        with pytest.raises(MissingSettings, match=said):
            read()


def test_a_file_of_certificates_is_read_once_however_often_the_settings_are(monkeypatch, tmp_path):
    place, _ = authority(tmp_path)
    read, read_context = [], network._context_of
    monkeypatch.setattr(network, "_context_of", lambda place: (read.append(place), read_context(place)))
    monkeypatch.setenv("SSL_CERT_FILE", place)
    monkeypatch.setenv("R2_ACCESS_KEY_ID", "r2-key-id")
    monkeypatch.setenv("R2_SECRET_ACCESS_KEY", "r2-secret")
    monkeypatch.setenv("R2_ENDPOINT_URL", "https://r2.example")
    for _ in range(3):
        assert r2_access().endpoint == "https://r2.example"
    assert read == [place]
    Path(place).write_bytes(b"no PEM")
    os.utime(place, (1, 1))
    with pytest.raises(MissingSettings, match="holds no certificates"):
        r2_access()


# Redirects.


def redirect(status, where):
    return lambda path, _: (status, {"location": where}, b"") if path.startswith("/v1") else _answer()


def _answer():
    return 200, {}, json.dumps(completion()).encode()


@pytest.mark.parametrize("status", [307, 308])
def test_a_call_follows_to_another_path_of_its_host_with_body_and_key(monkeypatch, status):
    with listening(Service, reply=redirect(status, "/v2/chat/completions?a=1")) as (url, server):
        assert ask(monkeypatch, f"{url}/v1") == "ok"
    first, second = server.seen
    assert (first[1], second[1]) == ("/v1/chat/completions", "/v2/chat/completions?a=1")
    assert (second[3], second[2]["authorization"]) == (first[3], "Bearer sk-test-0123456789")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_key_follows_to_another_host_and_the_new_base_url_is_told(monkeypatch, status):
    with listening(Service) as (other, elsewhere):
        reply = redirect(status, f"{other}/v2/chat/completions?token=hush-hush")
        with listening(Service, reply=reply) as (url, server):
            with pytest.raises(StopRun, match=f"set the base URL to {other}/v2 if") as caught:
                ask(monkeypatch, f"{url}/v1")
            assert len(server.seen) == 1
        assert elsewhere.seen == []
        assert "hush" not in caught.value.message
        assert ask(monkeypatch, f"{other}/v2") == "ok"


def test_redirects_in_a_circle_end(monkeypatch):
    with listening(Service, reply=redirect(307, "/v1/chat/completions")) as (url, server):
        with pytest.raises(StopRun, match="redirects to"):
            ask(monkeypatch, f"{url}/v1")
        assert len(server.seen) == 4


# Connections.


@pytest.mark.parametrize(("message", "lost"), [(None, False), ("Connection lost", None)])
def test_a_request_that_did_not_go_out_whole_is_not_counted_as_a_paid_call(message, lost):
    """As a write to a kept connection ends that its server has closed."""

    async def scenario():
        with network_errors("http://a.example"):
            if message:
                raise aiohttp.ClientConnectionResetError(message)
            await StreamWriter(SimpleNamespace(transport=None), asyncio.get_running_loop()).write(b"{}")

    with pytest.raises(ConnectionFailed) as caught:
        asyncio.run(scenario())
    assert caught.value.lost is lost
