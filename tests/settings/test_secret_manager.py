"""Against a small HTTP fake of Google's metadata server and of Secret Manager: neither can be had here."""

import base64
import json
import os
import threading
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from llmdo.settings.environment import MissingSettings
from llmdo.settings.secret_manager import take_secrets

PLACE = "projects/p/secrets/token/versions/latest"


class FakeGoogle:
    """``secrets``: place → text; ``refusals``: statuses that are answered first, whatever is asked."""

    def __init__(self, secrets, refusals=()):
        self.secrets = secrets
        self.refusals = list(refusals)
        self.asked = []

    def answer(self, path, headers):
        self.asked.append(path)
        if self.refusals:
            return self.refusals.pop(0), {"error": {"message": "top-secret-detail"}}
        if path.startswith("/computeMetadata/"):
            if headers.get("Metadata-Flavor") != "Google":
                return 403, {}
            return 200, {"access_token": "token-of-the-machine", "expires_in": 3599, "token_type": "Bearer"}
        if headers.get("Authorization") != "Bearer token-of-the-machine":
            return 401, {}
        place = path.removeprefix("/v1/").removesuffix(":access")
        if not path.endswith(":access") or place not in self.secrets:
            return 404, {}
        data = base64.b64encode(self.secrets[place]).decode()
        return 200, {"name": place, "payload": {"data": data, "dataCrc32c": "1"}}


@contextmanager
def serving(fake):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, body = fake.answer(self.path, self.headers)
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def google(monkeypatch):
    """Makes a FakeGoogle the one that is asked."""
    with ExitStack() as servers:

        def start(secrets, refusals=()):
            fake = FakeGoogle(secrets, refusals)
            address = servers.enter_context(serving(fake))
            monkeypatch.setenv("GCE_METADATA_HOST", address)
            monkeypatch.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER", f"http://{address}/")
            return fake

        yield start


@pytest.fixture
def unset(monkeypatch):
    """The variable that is taken; gone again after the test, though it was no fixture that set it."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    os.environ.pop("CLOUDFLARE_API_TOKEN", None)
    return "CLOUDFLARE_API_TOKEN"


def waits():
    slept = []
    return slept, slept.append


def test_a_secret_becomes_a_setting_of_this_process_without_its_last_line_break(google, unset):
    google({PLACE: b"cf-token-1\n"})
    take_secrets([f"{unset}={PLACE}"])
    assert os.environ[unset] == "cf-token-1"


def test_what_is_set_stays_and_nobody_is_asked_for_it(google, unset):
    fake = google({PLACE: b"other"})
    os.environ[unset] = "mine"
    take_secrets([f"{unset}={PLACE}"])
    assert os.environ[unset] == "mine"
    assert fake.asked == []


def test_a_service_that_is_late_is_asked_again(google, unset):
    slept, sleep = waits()
    google({PLACE: b"v"}, refusals=[503, 429])
    take_secrets([f"{unset}={PLACE}"], sleep)
    assert os.environ[unset] == "v"
    assert slept == [0.5, 1.0]


def test_all_secrets_that_are_not_to_be_had_are_named_with_the_remedy(google, unset):
    slept, sleep = waits()
    google({})
    with pytest.raises(MissingSettings) as caught:
        take_secrets([f"{unset}={PLACE}", f"LLMDO_TEST_OTHER={PLACE}2"], sleep)
    assert caught.value.problems == [
        f"{unset}: {PLACE} answers HTTP 404: create it, or correct --env-from",
        f"LLMDO_TEST_OTHER: {PLACE}2 answers HTTP 404: create it, or correct --env-from",
    ]
    assert slept == []  # a wrong name stays wrong


def test_a_refusal_shows_nothing_of_what_was_answered(google, unset):
    fake = google({PLACE: b"v"})
    fake.answer = lambda path, headers: (
        (403, {"error": "top-secret-detail"}) if ":access" in path else FakeGoogle.answer(fake, path, headers)
    )
    with pytest.raises(MissingSettings, match="secretAccessor") as caught:
        take_secrets([f"{unset}={PLACE}"])
    assert "top-secret" not in str(caught.value)
    assert "token-of-the-machine" not in str(caught.value)


def test_a_secret_that_is_no_text_is_named(google, unset):
    google({PLACE: b"\xff\xfe"})
    with pytest.raises(MissingSettings, match="holds no text"):
        take_secrets([f"{unset}={PLACE}"])


def test_elsewhere_than_on_google_cloud_that_is_said(unset, monkeypatch):
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:9")
    slept, sleep = waits()
    with pytest.raises(MissingSettings, match="on machines of Google Cloud only"):
        take_secrets([f"{unset}={PLACE}"], sleep)
    assert len(slept) == 4
