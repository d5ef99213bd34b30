"""The data directory of a local Cloudflare, and the credentials that it demands."""

from __future__ import annotations

import hashlib
import json
import secrets
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path

from llmdo.settings.private import make_folder, own_folder, write

HOST = "127.0.0.1"
BUCKET = "llmdo"
QUEUE = "llmdo-input"
DEAD_LETTERS = "llmdo-input-dlq"
OPENAI_BASE = "/openai/v1"
ANTHROPIC_BASE = "/anthropic"  # without /v1, as ANTHROPIC_BASE_URL is written


class CannotServe(Exception):
    """The server cannot start: the port is taken, or the data directory cannot be used; the message names it."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """One account with one API token. As on R2, the S3 secret is the SHA-256 of the token, and the key id its id
    (developers.cloudflare.com/r2/api/tokens).
    """

    account_id: str
    token_id: str
    token: str = field(repr=False)

    @property
    def secret(self) -> str:
        """The secret access key of R2's S3 API."""
        return hashlib.sha256(self.token.encode()).hexdigest()


def credentials(data: Path) -> Credentials:
    """The credentials of a data directory, created on first use and kept over restarts. Raises CannotServe."""
    path = data / "credentials.json"
    try:
        make_folder(data)
        if path.exists():
            own_folder(data)
            return Credentials(**json.loads(path.read_text()))
        made = Credentials(secrets.token_hex(16), secrets.token_hex(16), secrets.token_urlsafe(30))
        write(path, json.dumps(asdict(made)).encode())
    except (OSError, ValueError, TypeError) as error:
        raise CannotServe(f"{path} cannot be used ({error}): correct or remove it, or choose another --data") from error
    return made


def environment(own: Credentials, url: str) -> dict[str, str]:
    """The variables that make clients talk to the server at ``url`` (http://host:port)."""
    return {
        "CLOUDFLARE_ACCOUNT_ID": own.account_id,
        "CLOUDFLARE_API_TOKEN": own.token,
        "CLOUDFLARE_BASE_URL": f"{url}/client/v4",
        "R2_ENDPOINT_URL": url,
        "R2_ACCESS_KEY_ID": own.token_id,
        "R2_SECRET_ACCESS_KEY": own.secret,
        "LLMDO_BUCKET": BUCKET,
        "LLMDO_QUEUE": QUEUE,
        "OPENAI_BASE_URL": f"{url}/client/v4/accounts/{own.account_id}/ai/v1",
        "OPENAI_API_KEY": own.token,
        "LOCAL_OPENAI_BASE_URL": f"{url}{OPENAI_BASE}",
        "LOCAL_ANTHROPIC_BASE_URL": f"{url}{ANTHROPIC_BASE}",
    }


def write_environment(data: Path, variables: dict[str, str]) -> Path:
    """Writes DIR/env for ``source``, readable by its owner only, as a whole."""
    path = data / "env"
    lines = (f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
    write(path, "".join(lines).encode())
    return path
