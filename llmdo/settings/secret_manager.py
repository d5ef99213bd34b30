"""Settings from Google Cloud's Secret Manager, read by Google's own client as this machine's service account."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from llmdo.settings.environment import MissingSettings, secret_manager_url
from llmdo.settings.installing import install_command

_TRY_FOR = 30.0  # seconds: a new machine's network and metadata server may be late
_FIRST_WAIT = 0.5  # seconds, doubled each time, with a random part
_METADATA = "the metadata server of Google Cloud"
_REMEDY = {
    403: "give the workers' service account the role roles/secretmanager.secretAccessor for it",
    404: "create it, or correct --env-from",
}


def take_secrets(env_from: Sequence[str]) -> None:
    """Sets each NAME of ``NAME=projects/…/versions/…`` in this process's environment to the secret's value.

    A NAME that is already set stays as it is. A trailing line break, as editors leave it, is removed. Raises
    MissingSettings, which names all secrets that could not be read.
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
        # From the extra [gcp].
        from google.auth.exceptions import GoogleAuthError  # noqa: PLC0415
        from google.cloud.secretmanager import SecretManagerServiceClient  # noqa: PLC0415
    except ImportError:
        remedy = f"run {install_command('[gcp]')}, and put the extra [gcp] into the workers' image, too"
        problem = f"google-cloud-secret-manager is not installed: {remedy}"
        raise MissingSettings([f"{names}: {problem}"]) from None
    try:
        return SecretManagerServiceClient(transport="rest", client_options={"api_endpoint": secret_manager_url()})
    except GoogleAuthError as error:
        raise MissingSettings([f"{names}: {_unreachable(_METADATA, error)}"]) from None


def _text_of(client: Any, place: str) -> tuple[str, str]:
    """A secret's value, or "" and why it cannot be read: of a reply the status alone."""
    from google.api_core import exceptions, retry  # noqa: PLC0415  see _client
    from google.auth.exceptions import GoogleAuthError  # noqa: PLC0415

    again = retry.Retry(retry.if_transient_error, initial=_FIRST_WAIT, timeout=_TRY_FOR)
    try:
        payload = client.access_secret_version(name=place, retry=again).payload
        return payload.data.decode().rstrip("\r\n"), ""
    except UnicodeDecodeError:
        return "", f"{place} is not text: write the setting's value into it"
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
        f"{what} cannot be reached ({type(error).__name__}): secrets can be read on machines of Google Cloud, or with "
        "GOOGLE_APPLICATION_CREDENTIALS"
    )
