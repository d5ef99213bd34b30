"""Settings that a process takes from Google Cloud's Secret Manager, by Google's own client, as its service account."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from llmdo.settings.environment import MissingSettings, secret_manager_url

_TRY_FOR = 30.0  # a new machine's network and metadata server may come late. Seconds.
_FIRST_WAIT = 0.5  # doubles, with a random part. Seconds.
_METADATA = "the metadata server of Google Cloud"
_REMEDY = {
    403: "give the workers' service account the role roles/secretmanager.secretAccessor for it",
    404: "create it, or correct --env-from",
}


def take_secrets(env_from: Sequence[str]) -> None:
    """Sets each NAME of ``NAME=projects/…/versions/…`` in this process's environment to what the secret holds.

    A NAME that is set already stays as it is. A line break at a secret's end, as an editor leaves it, is not taken.
    Raises MissingSettings, which names all that could not be had.
    """
    wanted = [(name, place) for name, _, place in (one.partition("=") for one in env_from) if not os.environ.get(name)]
    if not wanted:
        return
    client = _client(" and ".join(name for name, _ in wanted))
    problems = []
    for name, place in wanted:
        text, problem = _text_of(client, place)
        if problem:
            problems.append(f"{name}: {problem}")
        else:
            os.environ[name] = text
    if problems:
        raise MissingSettings(problems)


def _client(names: str) -> Any:
    try:
        # The extra [gcp] has them.
        from google.auth.exceptions import GoogleAuthError  # noqa: PLC0415
        from google.cloud.secretmanager import SecretManagerServiceClient  # noqa: PLC0415
    except ImportError:
        problem = "google-cloud-secret-manager is not installed: pip install 'llm.do[gcp]', also in the workers' image"
        raise MissingSettings([f"{names}: {problem}"]) from None
    try:
        return SecretManagerServiceClient(transport="rest", client_options={"api_endpoint": secret_manager_url()})
    except GoogleAuthError as error:
        raise MissingSettings([f"{names}: {_unreachable(_METADATA, error)}"]) from None


def _text_of(client: Any, place: str) -> tuple[str, str]:
    """What a secret holds, or "" and why it cannot be had: of what was answered the status alone."""
    from google.api_core import exceptions, retry  # noqa: PLC0415  see _client
    from google.auth.exceptions import GoogleAuthError  # noqa: PLC0415

    again = retry.Retry(retry.if_transient_error, initial=_FIRST_WAIT, timeout=_TRY_FOR)
    try:
        payload = client.access_secret_version(name=place, retry=again).payload
        return payload.data.decode().rstrip("\r\n"), ""
    except UnicodeDecodeError:
        return "", f"{place} holds no text: write the setting's value into it"
    except GoogleAuthError as error:
        return "", _unreachable(_METADATA, error)
    except exceptions.RetryError as error:
        return "", _refusal(place, error.cause)
    except (exceptions.GoogleAPICallError, OSError) as error:
        return "", _refusal(place, error)


def _refusal(place: str, error: Any) -> str:
    status = getattr(error, "code", None)
    if not isinstance(status, int):
        return _unreachable(place, error)
    late = "try again later" if status >= 429 else "look at its IAM page and at its audit log"
    return f"{place} answers HTTP {status}: {_REMEDY.get(status, late)}"


def _unreachable(what: str, error: Any) -> str:
    return (
        f"{what} cannot be reached ({type(error).__name__}): secrets are taken on machines of Google Cloud, or with "
        "GOOGLE_APPLICATION_CREDENTIALS"
    )
