"""Batches of a real server of somebody else: AIBrix's metadata service, whose dry run answers with the requests."""

import httpx
import pytest

from tests.fakes.ports import free_port
from tests.servers import installing
from tests.servers.serving import Server, User, serving

pytestmark = [pytest.mark.slow, pytest.mark.servers, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def aibrix(tmp_path_factory):
    folder, port = tmp_path_factory.mktemp("aibrix"), free_port()
    command = [installing.aibrix(), "--host", "127.0.0.1", "--port", str(port), "--dry-run"]
    env = {"STORAGE_LOCAL_PATH": str(folder / "storage"), "HOME": str(folder)}
    with serving(Server(command, port, "/healthz", folder / "aibrix.log", env)) as server:
        yield server


def run(aibrix, folder, name, lines, *options):
    return User(folder, f"{aibrix.url}/v1", "sk-of-the-slow-tests", "any-model").run(
        name, lines, "--mode", "batch", *options
    )


def asked(name):
    """A line for a service that answers with the request: it has the fields of an answer."""
    said = [{"index": 0, "message": {"role": "assistant", "content": f"said to {name}"}, "finish_reason": "stop"}]
    body = {"messages": [{"role": "user", "content": name}], "choices": said}
    body["usage"] = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}


def batches(aibrix):
    return httpx.get(f"{aibrix.url}/v1/batches", params={"limit": 100}, trust_env=False).json()["data"]


def test_lines_are_handed_over_as_a_batch_and_each_is_answered_once(aibrix, tmp_path):
    known = {one["id"] for one in batches(aibrix)}
    names = [f"line {number} ✓" for number in range(60)]
    done = run(aibrix, tmp_path, "many", [*map(asked, names), {"id": "bad", "messages": 7}])
    assert (done.code, done.summary["answered"], done.summary["failed"]) == (3, 60, 1), done.said
    texts = {row["custom_id"]: done.text(name) for name, row in done.rows.items() if row.get("response")}
    assert texts == {name: f"said to {name}" for name in names}
    assert {row["usage"]["input_tokens"] for row in done.rows.values() if row.get("response")} == {3}
    made = [one for one in batches(aibrix) if one["id"] not in known]
    assert sum(one["request_counts"]["total"] for one in made) == 60, "no line is handed over twice"
    assert all(one["status"] == "completed" and one["metadata"]["llmdo"] for one in made)


@pytest.mark.parametrize("lines", [[], [asked("only")]])
def test_no_line_and_one_line_are_batches_too(aibrix, tmp_path, lines):
    done = run(aibrix, tmp_path, "few", lines)
    assert (done.code, done.summary["answered"]) == (0, len(lines)), done.said
