"""The network of a company, on loopback: a proxy that may want a password, and servers whose CA is its own."""

from __future__ import annotations

import contextlib
import datetime
import http.client
import ipaddress
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ROOT = Path(__file__).parents[1]
VARIABLES = (
    *("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE"),
)


def clean(monkeypatch):
    """Takes all that says how other machines are reached out of the environment."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@contextlib.contextmanager
def listening(handler, tls=None, host="127.0.0.1", **said):
    """A server of this handler on a free port; its URL, and the server with what it has ``seen``."""
    kind = ThreadingHTTPServer
    if ":" in host:
        kind = type("Six", (ThreadingHTTPServer,), {"address_family": socket.AF_INET6})
    server = kind((host, 0), handler)
    server.daemon_threads = True
    server.seen = []
    vars(server).update(said)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        name = f"[{host}]" if ":" in host else host
        yield f"{'https' if tls else 'http'}://{name}:{server.server_port}", server
    finally:
        server.shutdown()
        server.server_close()


def completion(text="ok", model="m"):
    """A whole answer of OpenAI's chat completions."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": model, "choices": [choice], "usage": usage}


class Service(BaseHTTPRequestHandler):
    """Answers each POST with ``server.reply(path, body) -> (status, headers, bytes)``, else with an answer."""

    protocol_version = "HTTP/1.1"

    def answer(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.seen.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        reply = getattr(self.server, "reply", None)
        whole = (200, {"content-type": "application/json"}, json.dumps(completion()).encode())
        status, headers, content = reply(self.path, body) if reply else whole
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(OSError):  # nobody waits any more
                self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

    def log_message(self, *args):
        pass


class Proxy(BaseHTTPRequestHandler):
    """An HTTP proxy: CONNECT, and requests in absolute form. ``server.wants``: its Proxy-Authorization, if any."""

    protocol_version = "HTTP/1.1"

    def _let_in(self):
        said = self.headers.get("proxy-authorization")
        self.server.seen.append((self.command, self.path, said))
        if said == getattr(self.server, "wants", said):
            return True
        self.send_response(407)
        self.send_header("Proxy-Authenticate", "Basic")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False

    def do_CONNECT(self):
        if not self._let_in():
            return
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host.strip("[]"), int(port))) as there:
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=_pump, args=(there, self.connection), daemon=True)
            back.start()
            _pump(self.connection, there)
            back.join()
        self.close_connection = True

    def forward(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if not self._let_in():
            return
        parts = urlsplit(self.path)
        # A name that nobody knows stands for the service behind the proxy.
        place = getattr(self.server, "behind", parts.netloc)
        there = http.client.HTTPConnection(place, timeout=60)
        path = parts._replace(scheme="", netloc="").geturl()
        headers = {k: v for k, v in self.headers.items() if not k.lower().startswith("proxy-")}
        there.request(self.command, path, body, headers)
        reply = there.getresponse()
        content = reply.read()
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.headers.get("content-type", ""))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        there.close()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

    def log_message(self, *args):
        pass


def _pump(one, other):
    with contextlib.suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
    with contextlib.suppress(OSError):
        other.shutdown(socket.SHUT_WR)


def authority(folder):
    """A CA of our own: the file with its certificate, and what a server on loopback proves itself with."""
    now = datetime.datetime.now(datetime.UTC)
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Our own CA")])

    def certificate(name, public, *extensions):
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(root).public_key(public)
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(hours=1))
        builder = builder.not_valid_after(now + datetime.timedelta(days=1))
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(root_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    usage = x509.KeyUsage(
        **dict.fromkeys(
            "content_commitment key_encipherment data_encipherment key_agreement encipher_only decipher_only".split(),
            False,
        ),
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
    )
    subject = x509.SubjectKeyIdentifier.from_public_key(root_key.public_key())
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key())
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    ca = certificate(
        root,
        root_key.public_key(),
        (x509.BasicConstraints(ca=True, path_length=None), True),
        (usage, True),
        (subject, False),
    )
    own = certificate(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]),
        key.public_key(),
        (x509.SubjectAlternativeName(names), False),
        (issuer, False),
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "ca.pem").write_bytes(ca)
    (folder / "server.pem").write_bytes(own + secret)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return str(folder / "ca.pem"), context


def llmdo(place, url, *words, **more):
    left_out = {*VARIABLES, *(name.lower() for name in VARIABLES), "OPENAI_API_KEY"}
    env = {name: value for name, value in os.environ.items() if name not in left_out}
    env |= {
        "OPENAI_BASE_URL": url,
        "XDG_STATE_HOME": str(place / "state"),
        "XDG_CACHE_HOME": str(place / "cache"),
        "PYTHONPATH": str(ROOT),
        **more,
    }
    command = [sys.executable, "-m", "llmdo", *words]
    done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout, done.stderr


def rows(place, kind):
    return [
        json.loads(line)
        for path in (place / "out").rglob(f"{kind}-*.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
