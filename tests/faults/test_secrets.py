"""Whatever a service does, no secret gets into logs, errors, or anything that is written."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.company_network import Proxy, listening, llmdo

ROOT = Path(__file__).parents[2]
SECRETS = {
    "CLOUDFLARE_API_TOKEN": "cf-token-Zq8vK2mXw4",
    "R2_ACCESS_KEY_ID": "r2keyid5Jh7Tn3Bs9",
    "R2_SECRET_ACCESS_KEY": "r2-secret+Yd6/Lc1Gf0=",
    "OPENAI_API_KEY": "sk-openai-Wm3Qe7Ru5",
    "BRAINTRUST_API_KEY": "sk-braintrust-Ak9Vp2Ox6",
    "ANTHROPIC_API_KEY": "sk-ant-Bx3Lr8Kd1",
}
# In the clear, as a part of a URL or of basic authentication, and as JSON or repr would write it.
FORMS = {
    form
    for secret in SECRETS.values()
    for form in (secret, quote(secret, safe=""), base64.b64encode(secret.encode()).decode(), json.dumps(secret)[1:-1])
}
HTML = b"<!DOCTYPE html><html><title>Sign in</title><body>Who are you?</body></html>"


class _Service(BaseHTTPRequestHandler):
    """Answers every request of any service alike, as its server's ``trouble`` says."""

    protocol_version = "HTTP/1.1"

    def answer(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        said = "; ".join(f"{name}: {value}" for name, value in self.headers.items())
        errors = {"success": False, "errors": [{"code": 5006, "message": f"we do not like {said}"}]}
        xml = f"<Error><Code>InternalError</Code><Message>we do not like {said}</Message></Error>"
        is_r2 = "AWS4-HMAC" in said
        status, kind, body = {
            "401": (401, "application/json", b'{"success": false, "errors": [{"code": 10000, "message": "Who?"}]}'),
            "page": (200, "text/html", HTML),
            "echo": (500, "text/xml" if is_r2 else "application/json", (xml if is_r2 else json.dumps(errors)).encode()),
            "bad": (400, "text/xml" if is_r2 else "application/json", (xml if is_r2 else json.dumps(errors)).encode()),
            "redirect": (302, "text/plain", b"elsewhere"),
        }[self.server.trouble]
        self.server.seen.append(said)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-You-Sent", said)
        if self.server.trouble == "redirect":
            self.send_header("Location", f"http://elsewhere.example{self.path}")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = answer

    def log_message(self, *args):
        pass


@pytest.fixture
def service():
    """Starts a server that answers badly; gives its URL."""
    servers = []

    def start(trouble):
        if trouble == "refused":
            with socket.socket() as closed:
                closed.bind(("127.0.0.1", 0))
                return f"http://127.0.0.1:{closed.getsockname()[1]}", ["nobody is there"]
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Service)
        server.daemon_threads = True
        server.trouble, server.seen = trouble, []
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}", server.seen

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def run(place, where, url):
    """Starts llmdo where one service is the bad one and the others are not used."""
    (place / "in.jsonl").write_bytes(b'{"prompt": "hello"}\n{"prompt": "again"}\n')
    sources = {"ai": ["in.jsonl"], "queue": ["--queue", "some-queue"], "r2": ["--input", "r2://bucket/input/"]}
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "LLMDO_"))},
        **SECRETS,
        "CLOUDFLARE_ACCOUNT_ID": "0123456789abcdef0123456789abcdef",
        "CLOUDFLARE_BASE_URL": f"{url}/client/v4",
        "R2_ENDPOINT_URL": url,
        "LLMDO_LOG_LEVEL": "DEBUG",
        "XDG_STATE_HOME": str(place / "state"),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "llmdo", "run", *sources[where], "--output", "out", "--patience", "3"]
    return subprocess.Popen(command, cwd=place, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.fast("*-it-says-all-it-got")
@pytest.mark.parametrize(
    ("where", "troubles"),
    [
        pytest.param("ai", ["echo", "bad"], id="ai-it-says-all-it-got"),
        pytest.param("queue", ["echo"], id="queue-it-says-all-it-got"),
        pytest.param("r2", ["echo"], id="r2-it-says-all-it-got"),
        pytest.param("ai", ["401", "page", "refused"], id="ai-others"),
        pytest.param("queue", ["401", "page", "refused"], id="queue-others"),
        pytest.param("r2", ["401", "refused"], id="r2-others"),
    ],
)
def test_no_secret_shows_whatever_goes_wrong(service, where, troubles, tmp_path):
    running = {}
    for trouble in troubles:
        url, seen = service(trouble)
        place = tmp_path / trouble
        place.mkdir()
        running[trouble] = run(place, where, url), seen
    for trouble, (process, seen) in running.items():
        out, err = process.communicate(timeout=150)
        written = {str(path): path.read_bytes() for path in (tmp_path / trouble).rglob("*") if path.is_file()}
        assert seen
        assert process.returncode != 0, trouble
        assert b"DEBUG" in err
        if trouble == "echo":
            everything = out + err + b"".join(written.values())
            assert (b"<R2_ACCESS_KEY_ID>" if where == "r2" else b"<CLOUDFLARE_API_TOKEN>") in everything
        if (where, trouble) == ("ai", "bad"):
            rows = [text for name, text in written.items() if "errors-" in name]
            assert b"".join(rows).count(b"<CLOUDFLARE_API_TOKEN>") == 2
        for name, text in {"stdout": out, "stderr": err, **written}.items():
            found = [form for form in FORMS if form.encode() in text]
            context = [text[max(0, text.index(f.encode()) - 300) :][:600] for f in found]
            assert not found, (where, trouble, name, context)


NETWORK_SECRETS = {
    "LLM_KEY": "header-secret-Hq2Zt8Pw",
    "user": "base-user-Fk4Ld9",
    "password": "base/word@Nx7Ru3Cv",
    "query": "query+secret=Bs5Jm1Yg",
    "proxy": "proxy/word@Tg6We0Ki",
}
NETWORK_FORMS = {
    form
    for secret in (
        *NETWORK_SECRETS.values(),
        f"staff:{NETWORK_SECRETS['proxy']}",
        "base-user-Fk4Ld9:base/word@Nx7Ru3Cv",
    )
    for form in (secret, quote(secret, safe=""), base64.b64encode(secret.encode()).decode(), json.dumps(secret)[1:-1])
}


@pytest.mark.fast("False-echo", "False-redirect", "True-refused")
@pytest.mark.parametrize("trouble", ["401", "page", "echo", "bad", "refused", "redirect"])
@pytest.mark.parametrize("by_proxy", [False, True])
def test_no_secret_of_the_network_shows_whatever_goes_wrong(service, trouble, by_proxy, tmp_path):
    """Passwords and keys in base URLs and proxies, and the values of --header."""
    url, seen = service(trouble)
    said = {name: quote(secret, safe="") for name, secret in NETWORK_SECRETS.items()}
    base_url = url.replace("//", f"//{said['user']}:{said['password']}@") + f"/v1?api_key={said['query']}&v=1"
    (tmp_path / "in.jsonl").write_bytes(b'{"prompt": "hello"}\n{"prompt": "again"}\n')
    words = (
        "run",
        "in.jsonl",
        "--output",
        "out",
        "--model",
        "openai/m",
        "--header",
        "x-key=LLM_KEY",
        "--patience",
        "3",
    )
    variables = {"LLM_KEY": NETWORK_SECRETS["LLM_KEY"], "LLMDO_LOG_LEVEL": "DEBUG"}
    with listening(Proxy) as (proxy, at_proxy):
        if by_proxy:
            variables["http_proxy"] = proxy.replace("//", f"//staff:{said['proxy']}@")
        code, out, err = llmdo(tmp_path, base_url, *words, **variables)
        assert bool(at_proxy.seen) == by_proxy
    assert seen
    assert code != 0, (out, err)
    assert "DEBUG" in err
    files = {str(path): path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    if trouble == "echo" and not by_proxy:
        assert b"<LLM_KEY>" in b"".join(files.values()) + err.encode()
    for name, text in {"stdout": out.encode(), "stderr": err.encode(), **files}.items():
        found = [form for form in NETWORK_FORMS if form.encode() in text]
        context = [text[max(0, text.index(f.encode()) - 300) :][:600] for f in found]
        assert not found, (trouble, name, context)
