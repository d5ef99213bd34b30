from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.local.clients import account, rest
from tests.local.cloudflare import Running

LLAMA = "@cf/meta/llama-3.3-70b-instruct-fp8-fast"


def ask(server: Running, gateway: str, text: str = "a", **headers: str) -> httpx.Response:
    body = {"model": LLAMA, "input": {"prompt": text}}
    return rest(server, "POST", "/ai/run", body, **{"cf-aig-gateway-id": gateway, **headers})


def error(response: httpx.Response) -> tuple[int, int]:
    body = response.json()
    assert (body["success"], body["internalCode"]) == (False, body["error"][0]["code"])
    return response.status_code, body["error"][0]["code"]


def test_a_call_by_a_gateway_tells_its_log_and_its_cache(cloudflare: Running) -> None:
    reply = ask(cloudflare, "default")
    assert reply.json()["result"]["response"] == "echo: a"
    assert reply.headers["cf-aig-cache-status"] == "MISS"
    assert reply.headers["cf-aig-log-id"]
    assert ask(cloudflare, "default").headers["cf-aig-cache-status"] == "MISS"
    assert cloudflare.stats()["paid"]["calls"] == 2


def test_a_gateway_that_caches_pays_for_equal_requests_once_unless_told_to_skip(cloudflare: Running) -> None:
    replies = [ask(cloudflare, "cached"), ask(cloudflare, "cached"), ask(cloudflare, "cached", "b")]
    assert [reply.headers["cf-aig-cache-status"] for reply in replies] == ["MISS", "HIT", "MISS"]
    assert replies[0].json() == replies[1].json()
    assert replies[0].headers["cf-aig-log-id"] != replies[1].headers["cf-aig-log-id"]
    assert cloudflare.stats()["paid"]["calls"] == 2
    skipping = ask(cloudflare, "cached", **{"cf-aig-skip-cache": "true"})
    assert (skipping.headers["cf-aig-cache-status"], cloudflare.stats()["paid"]["calls"]) == ("MISS", 3)


def test_an_error_is_not_cached(cloudflare: Running) -> None:
    cloudflare.fault("ai", status=429, count=1)
    assert ask(cloudflare, "cached").status_code == 429
    assert ask(cloudflare, "cached").status_code == 200


def test_an_unknown_gateway_and_a_private_one_refuse_in_their_own_shape(cloudflare: Running) -> None:
    assert error(ask(cloudflare, "none")) == (400, 2001)
    assert error(ask(cloudflare, "private")) == (401, 2009)
    token = {"cf-aig-authorization": f"Bearer {cloudflare.env['CLOUDFLARE_API_TOKEN']}"}
    assert ask(cloudflare, "private", **token).status_code == 200


@pytest.mark.parametrize("body", [{"model": LLAMA}, {"model": LLAMA, "input": "a"}])
def test_the_universal_endpoint_wants_an_input_and_the_header(cloudflare: Running, body: dict[str, Any]) -> None:
    assert rest(cloudflare, "POST", "/ai/run", body, **{"cf-aig-gateway-id": "default"}).status_code == 400
    whole = {"model": LLAMA, "input": {"prompt": "a"}}
    assert rest(cloudflare, "POST", "/ai/run", whole).json()["errors"][0]["code"] == 5006


def test_a_gateways_own_address_leads_to_the_same_models(cloudflare: Running) -> None:
    headers = {"Authorization": f"Bearer {cloudflare.env['CLOUDFLARE_API_TOKEN']}"}
    root = f"{cloudflare.url}/v1/{account(cloudflare)}/cached/workers-ai"
    for path, body in [
        (f"run/{LLAMA}", {"prompt": "a"}),
        ("v1/chat/completions", {"model": LLAMA, "messages": [{"role": "user", "content": "a"}]}),
    ]:
        reply = httpx.post(f"{root}/{path}", json=body, headers=headers, trust_env=False, timeout=60)
        assert (reply.status_code, reply.headers["cf-aig-cache-status"]) == (200, "MISS")
        assert (
            httpx.post(f"{root}/{path}", json=body, headers=headers, trust_env=False, timeout=60).json() == reply.json()
        )
    assert cloudflare.stats()["paid"]["calls"] == 2
    assert httpx.post(f"{root}/run/{LLAMA}", json={"prompt": "a"}, trust_env=False, timeout=60).status_code == 401
