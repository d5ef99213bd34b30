"""Official clients of the services, pointed at a local server."""

from __future__ import annotations

import base64
import json
from typing import Any

import boto3
import httpx
from botocore.config import Config
from cloudflare import Cloudflare
from openai import OpenAI

from tests.local.cloudflare import Running

SESSION = boto3.session.Session()  # loads the models of the API once
OURS = Config(request_checksum_calculation="when_required", response_checksum_validation="when_required")


def s3_client(server: Running, config: Config | None = None, **other: str) -> Any:
    env = server.env
    keys = {"aws_access_key_id": env["R2_ACCESS_KEY_ID"], "aws_secret_access_key": env["R2_SECRET_ACCESS_KEY"], **other}
    once = Config(retries={"total_max_attempts": 1})
    return SESSION.client(
        "s3", endpoint_url=env["R2_ENDPOINT_URL"], region_name="auto", config=once.merge(config or Config()), **keys
    )


def cloudflare_client(server: Running, **other: Any) -> Cloudflare:
    settings = {"api_token": server.env["CLOUDFLARE_API_TOKEN"], "base_url": server.env["CLOUDFLARE_BASE_URL"]}
    return Cloudflare(**{**settings, "max_retries": 0, **other})


def openai_client(server: Running) -> OpenAI:
    return OpenAI(api_key=server.env["OPENAI_API_KEY"], base_url=server.env["OPENAI_BASE_URL"], max_retries=0)


def account(server: Running) -> str:
    return server.env["CLOUDFLARE_ACCOUNT_ID"]


def rest(server: Running, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
    """One call below the account, with the right token unless another is given."""
    base = f"{server.env['CLOUDFLARE_BASE_URL']}/accounts/{account(server)}"
    headers = {"Authorization": f"Bearer {server.env['CLOUDFLARE_API_TOKEN']}", **headers}
    return httpx.request(method, base + path, json=body, headers=headers, trust_env=False, timeout=60)


def queue_id(server: Running, name: str = "llmdo-input") -> str:
    found: str = next(
        queue["queue_id"] for queue in rest(server, "GET", "/queues").json()["result"] if queue["queue_name"] == name
    )
    return found


def events(server: Running, name: str = "llmdo-input") -> list[dict[str, Any]]:
    """Pulls and acknowledges all events of a queue."""
    path = f"/queues/{queue_id(server, name)}/messages"
    messages = rest(server, "POST", f"{path}/pull", {"batch_size": 100}).json()["result"]["messages"]
    rest(server, "POST", f"{path}/ack", {"acks": [{"lease_id": message["lease_id"]} for message in messages]})
    return [json.loads(base64.b64decode(message["body"])) for message in messages]
