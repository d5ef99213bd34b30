"""Settings that a process takes from Google Cloud's Secret Manager, as the service account of its machine."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx

from llmdo.settings.environment import MissingSettings, metadata_url, secret_manager_url

_TRIES = 5
_FIRST_WAIT = 0.5  # then twice as long each time; a new machine's network and metadata server may come late. Seconds.
_TIMEOUT = 10.0  # seconds
_TOKEN_PATH = "/computeMetadata/v1/instance/service-accounts/default/token"  # noqa: S105  where one is asked for
_REMEDY = {
    403: "give the workers' service account the role roles/secretmanager.secretAccessor for it",
    404: "create it, or correct --env-from",
}


class _Refused(Exception):
    def __init__(self, sentence: str, again: bool) -> None:
        super().__init__(sentence)
        self.again = again


def take_secrets(env_from: Sequence[str], sleep: Callable[[float], None] = time.sleep) -> None:
    """Sets each NAME of ``NAME=projects/…/versions/…`` in this process's environment to what the secret holds.

    A NAME that is set already stays as it is. A line break at a secret's end, as an editor leaves it, is not taken.
    Raises MissingSettings, which names all that could not be had.

    Sources: https://cloud.google.com/secret-manager/docs/reference/rest/v1/projects.secrets.versions/access and
    https://cloud.google.com/compute/docs/access/authenticate-workloads (the token).
    """
    wanted = [(name, place) for name, _, place in (one.partition("=") for one in env_from) if not os.environ.get(name)]
    if not wanted:
        return
    problems = []
    # No proxy of the environment: the metadata server is on this machine's own link.
    with httpx.Client(timeout=_TIMEOUT, trust_env=False) as client:
        try:
            token = _again(lambda: _token(client), sleep)
        except _Refused as refused:
            raise MissingSettings([f"{' and '.join(n for n, _ in wanted)}: {refused}"]) from None
        for name, place in wanted:
            try:
                os.environ[name] = _again(lambda place=place: _access(client, token, place), sleep)  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            except _Refused as refused:
                problems.append(f"{name}: {refused}")
    if problems:
        raise MissingSettings(problems)


def _again(ask: Callable[[], str], sleep: Callable[[float], None]) -> str:
    for attempt in range(_TRIES):
        try:
            return ask()
        except _Refused as refused:
            if not refused.again or attempt == _TRIES - 1:
                raise
            sleep(_FIRST_WAIT * 2**attempt)
    raise AssertionError("the last try returns or raises")


def _token(client: httpx.Client) -> str:
    body = _get(
        client, metadata_url() + _TOKEN_PATH, {"Metadata-Flavor": "Google"}, "the metadata server of Google Cloud"
    )
    token = body.get("access_token")
    if not isinstance(token, str):
        raise _Refused(
            "the metadata server of Google Cloud gave no token: run on a machine with a service account", False
        )
    return token


def _access(client: httpx.Client, token: str, place: str) -> str:
    body = _get(client, f"{secret_manager_url()}/v1/{place}:access", {"Authorization": f"Bearer {token}"}, place)
    try:
        return base64.b64decode(body["payload"]["data"], validate=True).decode().rstrip("\r\n")
    except (KeyError, TypeError, ValueError):
        raise _Refused(f"{place} holds no text: write the setting's value into it", False) from None


def _get(client: httpx.Client, url: str, headers: dict[str, str], what: str) -> dict[str, Any]:
    """The JSON object at a URL. Raises _Refused; of what was answered it shows the status alone."""
    try:
        response = client.get(url, headers=headers)
    except httpx.HTTPError as error:
        raise _Refused(
            f"{what} cannot be reached ({type(error).__name__}): secrets are taken on machines of Google Cloud only",
            True,
        ) from None
    status = response.status_code
    if status != 200:
        remedy = _REMEDY.get(
            status, "try again later" if status >= 429 else "look at its IAM page and at its audit log"
        )
        raise _Refused(f"{what} answers HTTP {status}: {remedy}", status == 429 or status >= 500)
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise _Refused(f"{what} answers with something else than JSON: is that its address?", False)
    return body
