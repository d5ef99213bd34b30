"""The whole command in a company's network: base URL with a query, proxy, own CA, headers; and models that are slow."""

import base64
import json
import shlex
import time

from tests.company_network import Proxy, Service, authority, completion, listening, llmdo, rows

WANTED = "Basic " + base64.b64encode(b"staff:proxy-hush-1").decode()


def test_a_run_in_a_companys_network_is_answered_and_no_secret_is_seen(tmp_path):
    ca, tls = authority(tmp_path)
    (tmp_path / "in.jsonl").write_text('{"prompt": "hi"}\n{"prompt": "there"}\n', encoding="utf-8")
    secrets = {"AZURE_OPENAI_API_KEY": "azure-hush-2", "ROUTE": "Token route-hush-3"}
    with listening(Service, tls) as (url, service), listening(Proxy, wants=WANTED) as (proxy, at_proxy):
        base_url = f"{url}/openai/v1?api-version=preview&subscription-key=query-hush-4"
        code, out, err = llmdo(
            tmp_path,
            base_url,
            *("run", "in.jsonl", "--output", "out", "--model", "openai/m", "--json"),
            *("--header", "api-key=AZURE_OPENAI_API_KEY", "--header", "X-Route=ROUTE"),
            **{"https_proxy": proxy.replace("//", "//staff:proxy-hush-1@"), "REQUESTS_CA_BUNDLE": ca},
            **{"LLMDO_LOG_LEVEL": "DEBUG", "OPENAI_PROJECT_ID": "proj_1", **secrets},
        )
    assert (code, json.loads(out)["answered"]) == (0, 2), err
    path = "/openai/v1/chat/completions?api-version=preview&subscription-key=query-hush-4"
    posts = [(path, headers) for method, path, headers, _ in service.seen if method == "POST"]
    assert [where for where, _ in posts] == [path] * 2
    for _, headers in posts:
        sent = {name: headers.get(name) for name in ("api-key", "x-route", "openai-project", "authorization")}
        assert list(sent.values()) == ["azure-hush-2", "Token route-hush-3", "proj_1", None]
    assert {(method, where, key) for method, where, key in at_proxy.seen} == {("CONNECT", url[8:], WANTED)}
    written = "".join(p.read_text("utf-8", "replace") for p in (tmp_path / "out").rglob("*") if p.is_file())
    for text in (out, err, written):
        assert "hush" not in text


def test_a_header_for_no_model_of_the_run_is_a_usage_error(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "hi"}\n', encoding="utf-8")
    words = ("run", "in.jsonl", "--output", "out", "--model", "local/smollm2-135m-instruct")
    code, _, err = llmdo(tmp_path, "", *words, "--header", "api-key=LLM_KEY", LLM_KEY="some-secret-1")
    assert code == 2
    assert "--header is for the service of OPENAI_BASE_URL" in " ".join(err.split())
    code, _, err = llmdo(tmp_path, "", *words, "--header", "api-key=sk-hush-hush-hush")
    assert (code, "hush" in err) == (2, False)
    assert "write HEADER=VARIABLE" in " ".join(err.split())


def test_a_slow_model_is_paid_twice_at_most_and_answered_with_more_time_in_the_same_output(tmp_path):
    def slow(path, body):
        time.sleep(2.5)
        return 200, {"content-type": "application/json"}, json.dumps(completion("thought long")).encode()

    (tmp_path / "in.jsonl").write_text('{"prompt": "think hard"}\n', encoding="utf-8")
    with listening(Service, reply=slow) as (url, service):
        run = ("run", "in.jsonl", "--output", "out", "--model", "openai/m", "--json")
        code, out, err = llmdo(tmp_path, f"{url}/v1", *run, "--call-timeout", "0.5")
        assert (code, json.loads(out)["failed"]) == (3, 1), err
        posts = [path for method, path, *_ in service.seen if method == "POST"]
        assert posts == ["/v1/chat/completions"] * 2
        (row,) = rows(tmp_path, "errors")
        assert row["error"]["class"] == "CallTimeout"
        assert "no answer within 0.5 s: raise --call-timeout" in row["error"]["message"]
        code, out, err = llmdo(tmp_path, f"{url}/v1", "retry", "out", "--json", "--call-timeout", "60")
        assert (code, json.loads(out)["answered"]) == (0, 1), err
        posts = [path for method, path, *_ in service.seen if method == "POST"]
        assert len(posts) == 3
    (row,) = rows(tmp_path, "shard")
    assert row["response"]["body"]["choices"][0]["message"]["content"] == "thought long"


def test_the_end_of_a_run_with_errors_names_the_command_that_tries_them_again(tmp_path):
    def overloaded(path, body):
        answered = 200, json.dumps(completion("there")).encode()
        status, content = answered if b"hello" in body or mended else (500, b'{"error": {"message": "boom"}}')
        return status, {"content-type": "application/json"}, content

    mended = False
    (tmp_path / "in.jsonl").write_text('{"prompt": "hello"}\n{"prompt": "poison"}\n{"prompt": "hello"}\n', "utf-8")
    with listening(Service, reply=overloaded) as (url, _):
        run = ("run", "in.jsonl", "--output", "my out", "--model", "openai/m", "--concurrency", "1")
        code, out, err = llmdo(tmp_path, f"{url}/v1", *run)
        assert code == 3, err
        for _ in range(2):  # also where all was done before
            (told,) = [line for line in out.splitlines() if "llmdo retry" in line]
            assert shlex.split(told.rpartition(": ")[2])[:2] == ["llmdo", "retry"]
            code, out, err = llmdo(tmp_path, f"{url}/v1", *run)
            assert code == 3, err
        mended = True
        code, out, err = llmdo(tmp_path, f"{url}/v1", *shlex.split(told.rpartition(": ")[2])[1:])
        assert (code, "1 answered now" in out) == (0, True), err
        code, out, err = llmdo(tmp_path, f"{url}/v1", *run)
    assert (code, "llmdo retry" in out) == (0, False), err


def test_ask_waits_as_long_as_it_is_told_and_sends_headers(tmp_path):
    def slow(path, body):
        time.sleep(1.5)
        return 200, {"content-type": "application/json"}, json.dumps(completion("thought long")).encode()

    with listening(Service, reply=slow) as (url, service):
        words = ("ask", "hi", "--model", "openai/m", "--no-stream", "--header", "api-key=LLM_KEY")
        code, out, err = llmdo(tmp_path, f"{url}/v1", *words, "--call-timeout", "30", LLM_KEY="some-secret-1")
        assert (code, out.strip()) == (0, "thought long"), err
        assert service.seen[0][2]["api-key"] == "some-secret-1"
        service.seen.clear()
        code, _, err = llmdo(tmp_path, f"{url}/v1", *words, "--call-timeout", "1", LLM_KEY="some-secret-1")
        assert code == 1
        assert "raise the call timeout" in " ".join(err.split())
        assert sum(method == "POST" for method, *_ in service.seen) == 2


def test_a_reply_with_a_header_of_64_kib_is_paid_once(tmp_path):
    reply = 200, {"content-type": "application/json", "x-policy": "p" * 65_000}, json.dumps(completion("fine")).encode()
    (tmp_path / "in.jsonl").write_text('{"prompt": "hi"}\n', encoding="utf-8")
    with listening(Service, reply=lambda *_: reply) as (url, service):
        words = ("run", "in.jsonl", "--output", "out", "--model", "openai/m", "--json")
        code, out, err = llmdo(tmp_path, f"{url}/v1", *words)
    assert (code, json.loads(out)["answered"]) == (0, 1), err
    assert sum(method == "POST" for method, *_ in service.seen) == 1


def test_lines_are_embedded_by_a_server_that_takes_32_texts_with_few_refusals(tmp_path):
    """As TEI refuses larger arrays; one of the texts is too long, and alone without a vector."""

    def embed(path, body):
        texts = json.loads(body)["input"] if body else []
        if len(texts) > 32:
            said = f"batch size {len(texts)} > maximum allowed batch size 32"
            return (
                413,
                {"content-type": "application/json"},
                json.dumps({"error": said}).encode(),
            )
        if "long" in texts:
            said = "`inputs` must have less than 512 tokens. Given: 700"
            return 413, {"content-type": "application/json"}, json.dumps({"error": said}).encode()
        data = [{"object": "embedding", "index": n, "embedding": [float(text)]} for n, text in enumerate(texts)]
        reply = {"object": "list", "data": data, "model": "bge-m", "usage": {"prompt_tokens": 1, "total_tokens": 1}}
        return 200, {"content-type": "application/json"}, json.dumps(reply).encode()

    texts = ["long" if n == 999 else str(n) for n in range(3000)]
    lines = "".join(json.dumps({"id": text, "text": text}) + "\n" for text in texts)
    (tmp_path / "in.jsonl").write_text(lines, encoding="utf-8")
    with listening(Service, reply=embed) as (url, service):
        words = ("run", "in.jsonl", "--output", "out", "--model", "openai/bge-m", "--json", "--concurrency", "4")
        code, out, err = llmdo(tmp_path, f"{url}/v1", *words)
    assert (code, json.loads(out)["answered"], json.loads(out)["failed"]) == (3, 2999, 1), err
    found = {row["id"]: row["response"]["body"]["data"][0]["embedding"] for row in rows(tmp_path, "shard")}
    assert found == {text: [float(text)] for text in texts if text != "long"}
    sizes = [len(json.loads(body)["input"]) for method, _, _, body in service.seen if method == "POST"]
    assert sum(size > 32 for size in sizes) <= 4  # those in flight; halving would have refused 12 * 7
    assert sum(size <= 32 for size in sizes) <= 3000 / 32 + 12 + 11  # ends of arrays, and the search for the text
