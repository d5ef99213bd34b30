from __future__ import annotations

from typing import Any

import httpx
import pytest

from llmdo.local.ai.batches import MAX_BATCH_BYTES
from tests.local.clients import rest
from tests.local.cloudflare import Running

LLAMA = "@cf/meta/llama-3.3-70b-instruct-fp8-fast"
GEMMA = "@cf/google/gemma-4-26b-a4b-it"
BGE = "@cf/baai/bge-m3"


def submit(server: Running, requests: Any, model: str = LLAMA) -> httpx.Response:
    return rest(server, "POST", f"/ai/run/{model}?queueRequest=true", {"requests": requests})


def poll(server: Running, name: str, model: str = LLAMA, query: str = "?queueRequest=true") -> httpx.Response:
    return rest(server, "POST", f"/ai/run/{model}{query}", {"request_id": name})


def done(server: Running, requests: Any, model: str = LLAMA) -> dict[str, Any]:
    name = submit(server, requests, model).json()["result"]["request_id"]
    for _ in range(100):
        result: dict[str, Any] = poll(server, name, model).json()["result"]
        if "status" not in result:
            return result
    raise AssertionError("the batch is never done")


def prompt(text: str, **more: Any) -> dict[str, Any]:
    return {"prompt": text, "external_reference": f"ref-{text}", **more}


def code(response: httpx.Response) -> tuple[int, int]:
    return response.status_code, response.json()["errors"][0]["code"]


def test_a_batch_is_queued_then_running_then_done(cloudflare: Running) -> None:
    queued = submit(cloudflare, [prompt("a"), prompt("b"), prompt("c")]).json()["result"]
    assert queued == {"status": "queued", "request_id": queued["request_id"], "model": LLAMA}
    name = queued["request_id"]
    states = [poll(cloudflare, name).json()["result"].get("status") for _ in range(2)]
    assert states == ["queued", "running"]
    result = poll(cloudflare, name, query="").json()["result"]
    assert [item["external_reference"] for item in result["responses"]] == ["ref-b", "ref-c", "ref-a"]
    assert result["responses"][2] == {
        "id": 0,
        "external_reference": "ref-a",
        "success": True,
        "result": {
            "response": "echo: a",
            "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "neurons": 0.435455},
        },
    }
    assert result["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}


def test_results_stay_and_are_paid_once_however_often_they_are_fetched(cloudflare: Running) -> None:
    name = submit(cloudflare, [prompt("a"), prompt("b")]).json()["result"]["request_id"]
    results = [poll(cloudflare, name).json()["result"] for _ in range(5)]
    assert results[2] == results[3] == results[4]
    assert cloudflare.stats()["paid"]["calls"] == 2
    assert cloudflare.stats()["paid"]["by_line"] == {"ref-a": 1, "ref-b": 1}


def test_models_with_openais_answers_have_the_other_shape(cloudflare: Running) -> None:
    (first, second) = done(cloudflare, [prompt("a"), prompt("b")], GEMMA)["results"]
    assert (first["index"], second["index"], "external_reference" in first) == (0, 1, False)
    assert second["result"]["choices"][0]["message"]["content"] == "echo: b"


def test_embeddings_can_be_handed_over(cloudflare: Running) -> None:
    (item,) = done(cloudflare, [{"text": ["a", "b"]}], BGE)["responses"]
    assert item["result"]["shape"] == [2, 1024]


def test_items_fail_on_their_own(cloudflare: Running) -> None:
    cloudflare.fault("ai", match="poison", status=429, code=3040)
    cloudflare.fault("ai", match="lost", drop=True)
    items = done(cloudflare, [prompt("a"), prompt("poison"), prompt("lost"), prompt("")])["responses"]
    by_id = {item["id"]: item for item in items}
    assert sorted(by_id) == [0, 1, 3]
    assert (by_id[0]["success"], by_id[1]["success"], by_id[3]["success"]) == (True, False, False)
    assert (by_id[1]["error"]["code"], by_id[3]["error"]["code"]) == (3040, 5006)
    assert cloudflare.stats()["paid"]["calls"] == 1


def test_a_fault_can_strike_items_alone_or_the_calls_alone(cloudflare: Running) -> None:
    cloudflare.fault("ai", match="#batch-item", status=500, code=3046, count=1)
    cloudflare.fault("ai", match="queueRequest", status=429, count=1)
    assert code(submit(cloudflare, [prompt("a")])) == (429, 3040)
    (item,) = done(cloudflare, [prompt("a")])["responses"]
    assert item["error"]["code"] == 3046


def test_a_slow_batch_runs_until_it_is_done(cloudflare: Running) -> None:
    cloudflare.fault("ai", match="#batch-item", latency_s=30)
    name = submit(cloudflare, [prompt("a"), prompt("b")]).json()["result"]["request_id"]
    states = [poll(cloudflare, name).json()["result"].get("status") for _ in range(4)]
    assert states == ["queued", "running", "running", "running"]


@pytest.mark.parametrize(
    ("model", "requests", "expected"),
    [
        ("@cf/meta/llama-3.1-8b-instruct-fast", [{"prompt": "a"}], (400, 5006)),
        ("@cf/no/such", [{"prompt": "a"}], (400, 5007)),
        (LLAMA, [], (400, 5006)),
        (LLAMA, ["a"], (400, 5006)),
        (LLAMA, {"prompt": "a"}, (400, 5006)),
        (LLAMA, [{"prompt": "x" * MAX_BATCH_BYTES}], (413, 3006)),
    ],
)
def test_what_is_no_batch_is_refused(cloudflare: Running, model: str, requests: Any, expected: tuple[int, int]) -> None:
    assert code(submit(cloudflare, requests, model)) == expected
    assert cloudflare.stats()["paid"]["calls"] == 0


def test_nobody_knows_another_models_batch(cloudflare: Running) -> None:
    name = submit(cloudflare, [prompt("a")]).json()["result"]["request_id"]
    assert code(poll(cloudflare, name, GEMMA)) == (404, 5006)
    assert code(poll(cloudflare, "made-up")) == (404, 5006)


def test_in_the_body_the_wish_to_queue_is_passed_over(cloudflare: Running) -> None:
    reply = rest(cloudflare, "POST", f"/ai/run/{LLAMA}", {"prompt": "a", "queueRequest": True})
    assert reply.json()["result"]["response"] == "echo: a"


def test_only_so_many_batches_are_worked_on(cloudflare: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmdo.local.ai.batches.CAPACITY", 2)
    cloudflare.fault("ai", match="#batch-item", latency_s=30)
    replies = [submit(cloudflare, [prompt("a")]) for _ in range(3)]
    assert [reply.status_code for reply in replies] == [200, 200, 429]
    assert code(replies[2]) == (429, 3040)


@pytest.mark.parametrize(("mark", "expected"), [("#batch-submit", (429, 200)), ("#batch-poll", (200, 429))])
def test_a_fault_can_strike_hand_overs_alone_or_polls_alone(
    cloudflare: Running, mark: str, expected: tuple[int, int]
) -> None:
    name = submit(cloudflare, [prompt("a")]).json()["result"]["request_id"]
    cloudflare.fault("ai", match=mark, status=429)
    found = submit(cloudflare, [prompt("b")]).status_code, poll(cloudflare, name).status_code
    assert found == expected


def test_batches_and_polls_are_counted(cloudflare: Running) -> None:
    assert cloudflare.stats()["batches"] == {"submitted": 0, "polled": 0}
    done(cloudflare, [prompt("a"), prompt("b")])
    submit(cloudflare, [])
    stats = cloudflare.stats()["batches"]
    assert (stats["submitted"], stats["polled"] >= 3) == (1, True)
    cloudflare.reset_stats()
    assert cloudflare.stats()["batches"] == {"submitted": 0, "polled": 0}
