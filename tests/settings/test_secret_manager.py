"""Against a small HTTP fake of Google's metadata server and of Secret Manager: neither can be had here."""

import base64
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llmdo.settings.environment import MissingSettings
from llmdo.settings.secret_manager import take_secrets
from tests.runners.google_packages import google_packages_or_skip

ROOT = Path(__file__).parents[2]
NAME = "CLOUDFLARE_API_TOKEN"
PLACE = "projects/p/secrets/token/versions/latest"


class FakeGoogle:
    """``secrets``: place → text; ``refusals``: statuses that are answered first when a secret is asked for."""

    def __init__(self, secrets, refusals=()):
        self.secrets = secrets
        self.refusals = list(refusals)
        self.asked = []

    def answer(self, path, headers):
        self.asked.append(path)
        if not path.startswith("/v1/"):
            return self.metadata(path, headers)
        if self.refusals:
            return self.refusals.pop(0), {"error": {"message": "top-secret-detail"}}
        if headers.get("Authorization") != "Bearer token-of-the-machine":
            return 401, {}
        place, _, what = path.partition("?")[0].removeprefix("/v1/").rpartition(":")
        if what != "access" or place not in self.secrets:
            return 404, {}
        data = base64.b64encode(self.secrets[place]).decode()
        return 200, {"name": place, "payload": {"data": data, "dataCrc32c": "1"}}

    def metadata(self, path, headers):
        """The metadata server: whether it is one, the machine's service account, and a token of it."""
        if headers.get("Metadata-Flavor") != "Google":
            return 403, {}
        path = path.partition("?")[0]
        if path.endswith("/token"):
            return 200, {"access_token": "token-of-the-machine", "expires_in": 3599, "token_type": "Bearer"}
        if path.endswith("/service-accounts/default/"):
            return 200, {
                "email": "worker@p.iam.gserviceaccount.com",
                "scopes": ["cloud-platform"],
                "aliases": ["default"],
            }
        return (200, {}) if path == "/" else (404, {})


@contextmanager
def serving(fake):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, body = fake.answer(self.path, self.headers)
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.send_header("Content-Type", "application/json")
            self.send_header("Metadata-Flavor", "Google")
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


def addresses(address):
    """What makes Google's libraries ask this host and port."""
    return {
        "GCE_METADATA_HOST": address,
        "GCE_METADATA_IP": address,
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER": f"http://{address}/",
    }


TAKES = """
import json, os, sys
from llmdo.settings.environment import MissingSettings
from llmdo.settings.secret_manager import take_secrets
from tests.runners.google_packages import google_packages_or_skip

problems = []
try:
    take_secrets(sys.argv[1:])
except MissingSettings as error:
    problems = error.problems
names = [one.partition("=")[0] for one in sys.argv[1:]]
print(json.dumps([{name: os.environ.get(name) for name in names}, problems]))
"""


def taken(env_from, address):
    """What a process with Google's packages takes: its variables, and the problems."""
    done = subprocess.run(
        [sys.executable, "-c", TAKES, *env_from],
        env={
            **{name: value for name, value in os.environ.items() if name in ("PATH", "LANG")},
            **addresses(address),
            "PYTHONPATH": f"{google_packages_or_skip()}{os.pathsep}{ROOT}",
            "HOME": "/nowhere",  # where Google's libraries look for credentials first
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_a_secret_becomes_a_setting_of_this_process_without_its_last_line_break():
    with serving(FakeGoogle({PLACE: b"cf-token-1\n"})) as address:
        assert taken([f"{NAME}={PLACE}"], address) == [{NAME: "cf-token-1"}, []]


def test_what_is_set_stays_and_nobody_is_asked_for_it(monkeypatch):
    monkeypatch.setenv(NAME, "mine")
    monkeypatch.setitem(sys.modules, "google.cloud.secretmanager", None)  # whoever imports it fails
    take_secrets([f"{NAME}={PLACE}"])
    assert os.environ[NAME] == "mine"


def test_a_service_that_is_late_is_asked_again():
    fake = FakeGoogle({PLACE: b"v"}, refusals=[503, 429])
    with serving(fake) as address:
        assert taken([f"{NAME}={PLACE}"], address) == [{NAME: "v"}, []]
    assert len([path for path in fake.asked if ":access" in path]) == 3


def test_all_secrets_that_are_not_to_be_had_are_named_with_the_remedy():
    fake = FakeGoogle({f"{PLACE}3": b"\xff\xfe"})
    with serving(fake) as address:
        found, problems = taken([f"{NAME}={PLACE}", f"OTHER={PLACE}2", f"THIRD={PLACE}3"], address)
    assert set(found.values()) == {None}
    assert problems == [
        f"{NAME}: {PLACE} answers HTTP 404: create it, or correct --env-from",
        f"OTHER: {PLACE}2 answers HTTP 404: create it, or correct --env-from",
        f"THIRD: {PLACE}3 is not text: write the setting's value into it",
    ]
    assert len([path for path in fake.asked if ":access" in path]) == 3  # a wrong name stays wrong


def test_a_refusal_shows_nothing_of_what_was_answered():
    with serving(FakeGoogle({PLACE: b"v"}, refusals=[403])) as address:
        [_, [problem]] = taken([f"{NAME}={PLACE}"], address)
    assert problem == (
        f"{NAME}: {PLACE} answers HTTP 403: give the workers' service account the role "
        "roles/secretmanager.secretAccessor for it"
    )


def test_elsewhere_than_on_google_cloud_that_is_said():
    [_, problems] = taken([f"{NAME}={PLACE}", f"OTHER={PLACE}"], "127.0.0.1:9")
    assert problems == [
        f"{NAME} and OTHER: the metadata server of Google Cloud cannot be reached (DefaultCredentialsError): secrets "
        "can be read on machines of Google Cloud, or with GOOGLE_APPLICATION_CREDENTIALS"
    ]


def test_a_worker_without_googles_client_is_told_what_to_install(monkeypatch):
    monkeypatch.delenv(NAME, raising=False)
    monkeypatch.setitem(sys.modules, "google.cloud.secretmanager", None)
    remedy = r".* pip install 'apache-beam\[gcp\].*', and put .* workers' image"
    with pytest.raises(MissingSettings, match=f"^{NAME}: {remedy}"):
        take_secrets([f"{NAME}={PLACE}"])
