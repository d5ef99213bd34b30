"""All environment variables, each named once. Secrets come from nowhere else."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from llmdo.settings.network import network_problems
from llmdo.settings.telemetry import OTEL_PLAIN

PUBLIC_API = "https://api.cloudflare.com/client/v4"
OPENAI_API = "https://api.openai.com/v1"
BRAINTRUST_API = "https://api.braintrust.dev/v1"
ANTHROPIC_API = "https://api.anthropic.com"
# Not secret: these may be in a job's description.
_PLAIN = (
    *("CLOUDFLARE_ACCOUNT_ID", "CLOUDFLARE_BASE_URL", "R2_ENDPOINT_URL", "OPENAI_BASE_URL", "BRAINTRUST_PROJECT_ID"),
    "ANTHROPIC_BASE_URL",
    *("OPENAI_ORG_ID", "OPENAI_ORGANIZATION", "OPENAI_PROJECT_ID", "OPENAI_PROJECT"),
    *("LLMDO_GATEWAY", "LLMDO_LOG_LEVEL", "STORE_ID", "STORE_IDS", "LIVESTORE_SYNC_URL"),
    *OTEL_PLAIN,
)
_R2 = ("R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY", "R2_ENDPOINT_URL", "CLOUDFLARE_ACCOUNT_ID")
_FITTING = re.compile(r"[!-~]*")
# The path that the dashboard gives (ai-gateway/get-started); another host is a proxy, or a server for tests.
_GATEWAY_URL = re.compile(r"https?://[^/]+/(?:.*/)?v1/[^/]+/[^/]+/?")


class MissingSettings(Exception):
    """Variables that the run needs are missing or wrong; ``problems`` has a sentence for each of them."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems

    def __reduce__(self) -> tuple[type[MissingSettings], tuple[list[str]]]:
        return type(self), (self.problems,)


@dataclass(frozen=True)
class CloudflareAccount:
    """Account, token and base URL of Cloudflare's REST API (Queues and Workers AI)."""

    account_id: str
    token: str = field(repr=False)
    base_url: str = PUBLIC_API

    @property
    def url(self) -> str:
        """The account's root, without a slash at its end."""
        return f"{self.base_url.rstrip('/')}/accounts/{self.account_id}"


@dataclass(frozen=True)
class AiGateway:
    """An AI Gateway: its id, or the URL that the dashboard shows, and its own token if it requires one."""

    name: str
    token: str = field(repr=False, default="")


@dataclass(frozen=True)
class OpenAIAccess:
    """Base URL and key of OpenAI, or of a server with its API, where the key may be empty.

    ``organization``, ``project``: OpenAI's ids of the account and the project that pay, or "".
    """

    base_url: str = field(repr=False)
    key: str = field(repr=False)
    organization: str = ""
    project: str = ""


@dataclass(frozen=True)
class BraintrustAccess:
    """Key and project of Braintrust; the proxy logs each call to the project."""

    project_id: str
    key: str = field(repr=False)


@dataclass(frozen=True)
class AnthropicAccess:
    """Base URL, without ``/v1``, and key of Anthropic's API; the key may be empty for another server."""

    base_url: str = field(repr=False)
    key: str = field(repr=False)


@dataclass(frozen=True)
class R2Access:
    """Endpoint and keys of R2's S3 API."""

    endpoint: str
    key_id: str = field(repr=False)
    secret: str = field(repr=False)


def cloudflare_account() -> CloudflareAccount:
    """Reads CLOUDFLARE_ACCOUNT_ID, CLOUDFLARE_API_TOKEN and CLOUDFLARE_BASE_URL. Raises MissingSettings."""
    problems = _unusable("CLOUDFLARE_ACCOUNT_ID", "CLOUDFLARE_API_TOKEN")
    account = os.environ.get("CLOUDFLARE_ACCOUNT_ID", "")
    if account and not _is_account_id(account):
        # If account id and token are swapped, the error would otherwise be "7003 Could not route", and much later.
        problems.append("CLOUDFLARE_ACCOUNT_ID is not 32 hexadecimal characters: copy it from the dashboard's URL")
    base_url = os.environ.get("CLOUDFLARE_BASE_URL") or PUBLIC_API
    if "?" in base_url or "@" in base_url:
        problems.append("CLOUDFLARE_BASE_URL has a user or a query in it: write https://HOST/client/v4")
    problems += network_problems(base_url)
    if problems:
        raise MissingSettings(problems)
    return CloudflareAccount(account, os.environ["CLOUDFLARE_API_TOKEN"], base_url)


def check_gateway(name: str) -> None:
    """Raises ValueError for a URL of an AI Gateway that lacks a part: ``…/v1/ACCOUNT/GATEWAY``."""
    if "://" in name and not _GATEWAY_URL.fullmatch(name):
        raise ValueError(
            "the URL of a gateway ends in /v1/ACCOUNT_ID/GATEWAY_ID: copy it from the dashboard, or write the id alone"
        )


def default_gateway() -> str | None:
    """LLMDO_GATEWAY (an AI Gateway's id or URL), or None."""
    return os.environ.get("LLMDO_GATEWAY") or None


def ai_gateway(name: str | None = None) -> AiGateway | None:
    """This gateway, else LLMDO_GATEWAY, with CLOUDFLARE_AI_GATEWAY_TOKEN; None without a gateway.

    Raises MissingSettings.
    """
    name, token = name or default_gateway() or "", os.environ.get("CLOUDFLARE_AI_GATEWAY_TOKEN", "")
    problems = [
        _unfit(variable)
        for variable, text in (("LLMDO_GATEWAY", name), ("CLOUDFLARE_AI_GATEWAY_TOKEN", token))
        if text and not fits_a_header(text)
    ]
    if name and not problems:
        try:
            check_gateway(name)
        except ValueError as error:
            problems = [f"the gateway {name!r} cannot be called: {error}"]
    if name and problems:
        raise MissingSettings(problems)
    return AiGateway(name, token) if name else None


def openai_access() -> OpenAIAccess:
    """OPENAI_BASE_URL (default: OpenAI's), OPENAI_API_KEY (optional for other servers), OPENAI_ORG_ID and
    OPENAI_PROJECT_ID, also by their older names OPENAI_ORGANIZATION and OPENAI_PROJECT. Raises MissingSettings.
    """
    base_url = openai_base_url()
    key = os.environ.get("OPENAI_API_KEY", "")
    problems = _unusable("OPENAI_API_KEY") if key or base_url == OPENAI_API else []
    payers = []
    for names in (("OPENAI_ORG_ID", "OPENAI_ORGANIZATION"), ("OPENAI_PROJECT_ID", "OPENAI_PROJECT")):
        name = next((name for name in names if os.environ.get(name)), "")
        payers.append(os.environ.get(name, ""))
        problems += [_unfit(name)] if not fits_a_header(payers[-1]) else []
    problems += network_problems(base_url)
    if problems:
        raise MissingSettings(problems)
    return OpenAIAccess(base_url, key, *payers)


def openai_base_url() -> str:
    """OPENAI_BASE_URL, or OpenAI's own API."""
    return (os.environ.get("OPENAI_BASE_URL") or OPENAI_API).strip().rstrip("/")


def is_openai_itself() -> bool:
    """Whether OPENAI_BASE_URL is unset, or OpenAI's own API."""
    return openai_base_url() == OPENAI_API


def braintrust_access() -> BraintrustAccess:
    """BRAINTRUST_API_KEY and BRAINTRUST_PROJECT_ID. Raises MissingSettings."""
    problems = _unusable("BRAINTRUST_API_KEY", "BRAINTRUST_PROJECT_ID") + network_problems(BRAINTRUST_API)
    if problems:
        raise MissingSettings(problems)
    return BraintrustAccess(os.environ["BRAINTRUST_PROJECT_ID"], os.environ["BRAINTRUST_API_KEY"])


def anthropic_access() -> AnthropicAccess:
    """ANTHROPIC_BASE_URL (default: Anthropic's own) and ANTHROPIC_API_KEY (optional for other servers).

    Raises MissingSettings.
    """
    base_url = anthropic_base_url()
    key = os.environ.get("ANTHROPIC_API_KEY", "")
    problems = _unusable("ANTHROPIC_API_KEY") if key or base_url == ANTHROPIC_API else []
    problems += network_problems(base_url)
    if problems:
        raise MissingSettings(problems)
    return AnthropicAccess(base_url, key)


def anthropic_base_url() -> str:
    """ANTHROPIC_BASE_URL, or Anthropic's own API, without the ``/v1`` that each call adds."""
    base_url = (os.environ.get("ANTHROPIC_BASE_URL") or ANTHROPIC_API).strip().rstrip("/")
    return base_url.removesuffix("/messages").removesuffix("/v1")


def r2_access(*, way: bool = True) -> R2Access:
    """R2_ACCESS_KEY_ID, R2_SECRET_ACCESS_KEY, R2_ENDPOINT_URL (default: the account's). Raises MissingSettings.

    ``way``: also checks the settings by which R2 is reached, proxies and certificates, which takes ten times as long.
    """
    access, found = _r2_access(*map(os.environ.get, _R2))
    problems = [*found, *(network_problems(access.endpoint) if way else ())]
    if problems:
        raise MissingSettings(problems)
    return access


@functools.lru_cache(maxsize=16)
def _r2_access(
    key_id: str | None, secret: str | None, endpoint: str | None, account: str | None
) -> tuple[R2Access, tuple[str, ...]]:
    """What these values of _R2 mean, and what is wrong with them. A run asks for it with each call."""
    problems = [problem for name, text in zip(_R2, (key_id, secret), strict=False) for problem in _problems(name, text)]
    if not endpoint and not _is_account_id(account or ""):
        problems.append("set R2_ENDPOINT_URL, or CLOUDFLARE_ACCOUNT_ID (32 hexadecimal characters), to say where R2 is")
    endpoint = endpoint or f"https://{account}.r2.cloudflarestorage.com"
    return R2Access(endpoint, key_id or "", secret or ""), tuple(problems)


def secrets_of(read: Callable[[], object] | None) -> tuple[str, ...]:
    """The secret variables that a function of this module reads."""
    return SECRETS_READ_BY.get(read, ()) if read is not None else ()


def plain_settings() -> dict[str, str]:
    """This process's settings that are not secret, for workers on other machines."""
    return {name: os.environ[name] for name in _PLAIN if os.environ.get(name)}


def secret_manager_url() -> str | None:
    """An address of Secret Manager's API other than the public one, by gcloud's variable for it."""
    return os.environ.get("CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER", "").rstrip("/") or None


def default_queue() -> str | None:
    """LLMDO_QUEUE (a queue's id or name), or None."""
    return os.environ.get("LLMDO_QUEUE") or None


def default_store() -> str | None:
    """STORE_ID (the event store whose conversations are answered), or None."""
    return os.environ.get("STORE_ID") or None


def default_stores() -> tuple[str, ...]:
    """STORE_IDS, several with commas between them, or STORE_ID alone."""
    names = (os.environ.get("STORE_IDS") or os.environ.get("STORE_ID") or "").split(",")
    return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))


def default_sync_url() -> str | None:
    """LIVESTORE_SYNC_URL (the address of LiveStore's sync backend), or None."""
    return os.environ.get("LIVESTORE_SYNC_URL") or None


def livestore_payload() -> object:
    """LIVESTORE_PAYLOAD: what the sync backend asks of its clients, as JSON; None if it is not set.

    Raises MissingSettings.
    """
    text = os.environ.get("LIVESTORE_PAYLOAD")
    try:
        payload = json.loads(text) if text else None
        json.dumps(payload, ensure_ascii=False, allow_nan=False).encode()
        return payload
    except (ValueError, RecursionError):
        raise MissingSettings(
            ['LIVESTORE_PAYLOAD is not JSON: write what the app sends as its syncPayload, such as {"authToken": "…"}']
        ) from None


def state_folder() -> Path:
    """$XDG_STATE_HOME/llmdo, by default ~/.local/state/llmdo; it need not exist. Raises MissingSettings."""
    return _users_folder("XDG_STATE_HOME", ".local/state") / "llmdo"


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/llmdo, by default ~/.cache/llmdo; it need not exist. Raises MissingSettings."""
    return _users_folder("XDG_CACHE_HOME", ".cache") / "llmdo"


def _users_folder(variable: str, default: str) -> Path:
    try:
        return Path(os.environ.get(variable) or Path.home() / default)
    except RuntimeError:  # no HOME, and no line in /etc/passwd, as in many containers
        raise MissingSettings(
            [f"this user has no home folder: set {variable} to a folder in which llmdo may write, or HOME"]
        ) from None


def whole_path(path: str) -> Path:
    """The absolute path, with ``~`` expanded. Raises MissingSettings for an unknown home folder."""
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:
        raise MissingSettings([f"{path}: this ~ does not name a home folder: write the whole path"]) from None


def _unusable(*names: str) -> list[str]:
    return [problem for name in names for problem in _problems(name, os.environ.get(name))]


def _problems(name: str, text: str | None) -> list[str]:
    if not text:
        return [f"{name} is not set: export it in the environment"]
    return [] if fits_a_header(text) else [_unfit(name)]


def fits_a_header(text: str) -> bool:
    """Whether a header may hold it. HTTP libraries quote a value that they refuse, even a secret."""
    return _FITTING.fullmatch(text) is not None


def _unfit(name: str) -> str:
    return f"{name} has a space, a line break or a special character in it: copy it again"


def _is_account_id(text: str) -> bool:
    return len(text) == 32 and all(c in "0123456789abcdefABCDEF" for c in text)


# What must never be shown: see llmdo.settings.secrets.
SECRETS_READ_BY: dict[Callable[[], object], tuple[str, ...]] = {
    cloudflare_account: ("CLOUDFLARE_API_TOKEN",),
    ai_gateway: ("CLOUDFLARE_AI_GATEWAY_TOKEN",),
    openai_access: ("OPENAI_API_KEY",),
    braintrust_access: ("BRAINTRUST_API_KEY",),
    anthropic_access: ("ANTHROPIC_API_KEY",),
    r2_access: ("R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY"),
    livestore_payload: ("LIVESTORE_PAYLOAD",),
}
