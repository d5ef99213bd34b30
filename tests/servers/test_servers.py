"""Files answered by real servers that speak OpenAI's API, as a user has it: `llmdo run` over JSONL."""

import json
import time

import pytest

from tests.servers import places

pytestmark = [pytest.mark.slow, pytest.mark.servers, pytest.mark.model, pytest.mark.timeout(3600)]

SCHEMA = {
    "type": "object",
    "properties": {"yes": {"type": "boolean"}},
    "required": ["yes"],
    "additionalProperties": False,
}
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)


@pytest.fixture(scope="module", params=["llama_cpp", "litellm", "ollama"])
def place(request, tmp_path_factory):
    with getattr(places, request.param)(tmp_path_factory.mktemp(request.param)) as running:
        yield running


@pytest.fixture(scope="module")
def litellm(tmp_path_factory):
    with places.litellm(tmp_path_factory.mktemp("litellm")) as running:
        yield running


def asked(name, text, **more):
    return {"id": name, "messages": [{"role": "user", "content": text}], "max_tokens": 12, **more}


def test_lines_of_every_kind_are_answered(place):
    talk = [
        ("system", "Answer with one word."),
        ("user", "I am Ada."),
        ("assistant", "Hello Ada."),
        ("user", "Who am I?"),
    ]
    lines = [
        {"id": "plain", "prompt": "What is the capital of France?"},
        {"id": "talk", "messages": [{"role": role, "content": text} for role, text in talk]},
        asked("short", "Count to one hundred.", max_tokens=3),
        {
            "id": "batch",
            "custom_id": "b-1",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": places.MODEL, "messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 4},
        },
    ]
    done = place.user.run("kinds", lines, "--max-tokens", "12")
    assert (done.code, done.summary["answered"], done.summary["failed"]) == (0, 4, 0), done.rows
    assert all(done.text(name) for name in ("plain", "talk", "short", "batch"))
    assert done.rows["batch"]["custom_id"] == "b-1"
    assert done.rows["short"]["usage"]["output_tokens"] == 3
    assert any("max_tokens" in warning for warning in done.rows["short"]["warnings"]), "it is cut off"
    assert all(row["usage"]["input_tokens"] > 1 for row in done.rows.values())


def test_answers_keep_to_a_schema(place, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA))
    done = place.user.run("json", [asked("a", "Is Paris in France?", max_tokens=40)], "--schema", str(schema))
    assert (done.code, list(json.loads(done.text("a")))) == (0, ["yes"]), done.rows


def test_a_bad_line_is_an_error_in_the_services_words_and_the_others_are_answered(place):
    image = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    bad = {
        "long": asked("long", "word " * 9000),
        "hot": asked("hot", "Hi", temperature="hot"),
        "image": asked("image", image),
        "tools": asked("tools", "Hi", tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}]),
    }
    wizard = asked("role", "Hi") | {"messages": [{"role": "wizard", "content": "Hi"}]}
    done = place.user.run("bad", [asked("good", "Say yes."), wizard, *(bad[name] for name in place.refuses)])
    assert (done.code, done.summary["answered"], done.summary["failed"]) == (3, 1, 1 + len(place.refuses)), done.rows
    assert done.text("good")
    assert done.error("role")[0] == "BadLine"
    assert "wizard" in done.error("role")[1]
    for name, (kind, word) in place.refuses.items():
        found, message = done.error(name)
        assert (found, word in message.split("the service said")[1]) == (kind, True), message


def test_a_model_that_is_not_there_ends_the_line_that_names_it_and_the_run_that_does(place):
    lines = [asked("good", "Say yes."), asked("gone", "Say yes.", model="no-such-model")]
    done = place.user.run("model", lines)
    assert done.text("good")
    if not place.checks_model:
        assert (done.code, done.summary["answered"]) == (0, 2)
        return
    assert (done.code, done.error("gone")[0]) == (3, "ModelNotFound"), done.rows
    stopped = place.user.run("no-model", lines[:1], model="no-such-model")
    assert (stopped.code, stopped.rows) == (1, {}), stopped.summary
    assert "no-such-model" in stopped.summary["problem"]


def test_a_wrong_key_stops_the_run_and_the_right_one_goes_on(place):
    lines = [asked(str(number), "Say yes.", max_tokens=3) for number in range(8)]
    if not place.checks_key:
        assert place.user.run("key", lines[:1], key="sk-any-key-at-all").code == 0
        return
    stopped = place.user.run("key", lines, key="sk-wrong-wrong-wrong")
    assert (stopped.code, stopped.rows) == (1, {}), stopped.summary
    assert "OPENAI_API_KEY" in stopped.summary["problem"]
    done = place.user.run("key", lines)
    assert (done.code, done.summary["answered"]) == (0, 8), done.rows


def test_a_server_that_dies_midway_burns_no_line(place):
    lines = [asked(str(number), f"Tell a story about {number}.", max_tokens=16) for number in range(12)]
    options = ("--concurrency", "2", "--batch-size", "1")
    process = place.user.start("outage", lines, *options)
    until = time.monotonic() + 240
    while not place.user.rows("outage") and time.monotonic() < until:
        time.sleep(0.1)
    place.server.kill()
    stopped = place.user.done("outage", process)
    assert (stopped.code, stopped.summary["failed"]) == (1, 0), stopped.rows
    assert 0 < stopped.summary["answered"] < len(lines)
    assert "--patience" in stopped.summary["problem"]
    place.server.start()
    done = place.user.run("outage", lines, *options)
    assert (done.code, done.summary["failed"]) == (0, 0), done.summary
    assert done.summary["spent"]["calls"] <= len(lines) - stopped.summary["answered"], "no answer is paid twice"
    assert len(place.user.rows("outage")) == len(done.rows) == len(lines)


def test_texts_become_vectors(place):
    line = {"id": "a", "custom_id": "e-1", "method": "POST", "url": "/v1/embeddings"}
    line["body"] = {"model": place.vectors or places.MODEL, "input": ["one text", "another one"]}
    done = place.user.run("vectors", [line])
    if place.vectors is None:
        assert done.code == 3
        assert done.error("a")[0] == "InvalidRequest"
        assert "does not support embeddings" in done.error("a")[1]
        return
    data = done.rows["a"]["response"]["body"]["data"]
    assert (done.code, [len(item["embedding"]) for item in data]) == (0, [576, 576])
    assert data[0]["embedding"] != data[1]["embedding"]


def test_a_limit_of_requests_a_minute_is_waited_out(litellm):
    """LiteLLM counts them itself, and names no wait."""
    lines = [asked(str(number), "Say yes.", max_tokens=2) for number in range(5)]
    done = litellm.user.run("limited", lines, model="limited")
    assert (done.code, done.summary["answered"]) == (0, 5), done.rows
    (limits,) = done.summary["limits"]
    assert limits["refused"] > 0
    assert done.summary["spent"]["calls"] == 5, "a refused call is not paid"


def test_a_proxy_whose_servers_died_is_an_outage(litellm):
    """Of two that fail it asks none for a while, and says so by 429."""
    lines = [asked(str(number), "Say yes.", max_tokens=2) for number in range(20)]
    litellm.behind.kill()
    stopped = litellm.user.run("cooling", lines, model="pair")
    assert (stopped.code, stopped.rows) == (1, {}), stopped.rows
    again = litellm.user.run("cooling", lines, model="pair")
    assert (again.code, again.rows) == (1, {}), again.rows
    litellm.behind.start()
    done = litellm.user.run("cooling", lines, "--patience", "60", model="pair")
    assert (done.code, done.summary["answered"]) == (0, 20), done.rows
