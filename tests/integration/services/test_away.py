"""The whole command, against a service that is away for a time, or for good, and one that refuses lines or all."""

from __future__ import annotations

import threading
import time
from datetime import datetime

import pytest

from tests.fakes.ports import free_port
from tests.integration.called import RUN, Echo, called, write_lines


def write(folder, lines):
    write_lines(folder, [{"id": number, "prompt": f"question {number}"} for number in range(lines)])


def llmdo(folder, url, *options):
    """``llmdo run``."""
    return called(folder, url, [*RUN, *options])


def test_an_outage_in_the_middle_costs_tens_of_calls_and_no_line(tmp_path, serve):
    seconds = 8.0
    began: list[float] = []
    loading = {"error": {"code": 503, "message": "Loading the weights", "type": "unavailable_error"}}

    def refuse(prompt, calls):
        if sum(service.calls.values()) == 100:
            began.append(time.monotonic())
        return (503, loading, {}) if began and time.monotonic() < began[0] + seconds else None

    service = serve(refuse)
    write(tmp_path, 300)
    code, summary, said, rows = llmdo(tmp_path, service.url)
    assert (code, summary["answered"], summary["failed"]) == (0, 300, 0)
    assert len({row["id"] for row in rows}) == 300
    assert sum(service.calls.values()) <= 300 + 100
    assert summary["limits"][0]["away_s"] >= seconds - 1
    assert "does not answer, calls pause" in said
    assert "answers again" in said


def test_a_wrong_port_stops_the_run_burns_no_line_and_the_next_run_answers_all(tmp_path, serve):
    write(tmp_path, 40)
    code, summary, said, rows = llmdo(tmp_path, f"http://127.0.0.1:{free_port()}/v1", "--patience", "3")
    assert (code, summary["answered"], summary["failed"], rows) == (1, 0, 0, [])
    assert "could not be reached" in summary["problem"]
    assert "run the same command again" in said
    service = serve(lambda prompt, calls: None)
    code, summary, _, rows = llmdo(tmp_path, service.url)
    assert (code, summary["answered"], summary["failed"], len(rows)) == (0, 40, 0, 40)


def test_a_server_that_is_started_after_the_run_is_waited_for(tmp_path, monkeypatch):
    port, started = free_port(), []

    def start():
        started.append(Echo(lambda prompt, calls: None, port))

    write(tmp_path, 40)
    timer = threading.Timer(9.0, start)
    timer.start()
    try:
        code, summary, _, rows = llmdo(tmp_path, f"http://127.0.0.1:{port}/v1")
    finally:
        timer.join()
        started[0].close()
    assert (code, summary["answered"], summary["failed"], len(rows)) == (0, 40, 0, 40)
    assert sum(started[0].calls.values()) == 40


def test_a_block_of_lines_that_crash_the_server_does_not_keep_the_others_waiting(tmp_path, serve):
    bad = {f"question {number}" for number in range(60, 110)}
    service = serve(lambda prompt, calls: (500, {"error": {"message": "crashed"}}, {}) if prompt in bad else None)
    write(tmp_path, 500)
    code, summary, _, rows = llmdo(tmp_path, service.url, "--concurrency", "16", "--patience", "40")
    assert (code, summary["answered"], summary["failed"]) == (3, 450, 50)
    assert {f"question {row['id']}" for row in rows if row.get("error")} == bad
    assert {row["error"]["class"] for row in rows if row.get("error")} == {"Overloaded"}


GONE = {"error": {"message": "The model `m` does not exist", "code": "model_not_found"}}


@pytest.mark.fast("404-body1")
@pytest.mark.parametrize(("status", "body"), [(403, {"error": "no"}), (404, {"error": "no"}), (404, GONE)])
def test_the_only_line_that_is_tried_again_and_is_refused_stays_an_error_row(tmp_path, serve, status, body):
    def refuse(prompt, calls):
        if prompt == "question 7":
            return (500, {"error": "crashed"}, {}) if calls <= 3 else (status, body, {})
        return None

    service = serve(refuse)
    write(tmp_path, 20)
    assert llmdo(tmp_path, service.url)[0] == 3
    code, summary, _, rows = called(tmp_path, service.url, ["retry", "out", "--json"])
    assert (code, summary["retried"], summary["failed"]) == (3, 1, 1)
    assert [row["error"]["class"] for row in rows if row.get("error")] == ["RequestRefused"]
    assert len(rows) == 20
    assert service.calls["question 7"] == 4


def test_a_retry_of_a_service_that_is_away_ends_after_its_patience_and_the_next_one_goes_on(tmp_path, serve):
    refuse = {"error": {"message": "this prompt is not allowed", "code": "invalid_prompt"}}
    service = serve(lambda prompt, calls: (400, refuse, {}) if calls == 1 and prompt[-1] in "05" else None)
    write(tmp_path, 40)
    assert llmdo(tmp_path, service.url)[0] == 3
    retry = ["retry", "out", "--all", "--json"]
    began = time.monotonic()
    url = f"http://127.0.0.1:{free_port()}/v1"
    code, summary, _, rows = called(tmp_path, url, [*retry, "--patience", "3"])
    assert (code, summary["retried"], len(rows)) == (1, 0, 40)
    assert "--patience" in summary["problem"]
    assert len([row for row in rows if row.get("error")]) == 8
    assert 3 <= time.monotonic() - began < 100, "by default it is ten minutes"
    code, summary, _, rows = called(tmp_path, service.url, retry)
    assert (code, summary["answered"], len([row for row in rows if row.get("error")])) == (0, 8, 0)


@pytest.mark.fast("1-403", "16-404")
@pytest.mark.parametrize("status", [403, 404])
@pytest.mark.parametrize("concurrency", ["1", "16"])
def test_a_bare_refusal_of_some_lines_ends_those_alone(tmp_path, serve, status, concurrency):
    bad = {"question 0", "question 30", "question 59"}
    service = serve(lambda prompt, calls: (status, {"error": {"message": "no"}}, {}) if prompt in bad else None)
    write(tmp_path, 60)
    code, summary, _, rows = llmdo(tmp_path, service.url, "--concurrency", concurrency)
    assert (code, summary["answered"], summary["failed"]) == (3, 57, 3)
    assert {(f"question {row['id']}", row["error"]["class"]) for row in rows if row.get("error")} == {
        (prompt, "RequestRefused") for prompt in bad
    }
    assert sum(service.calls.values()) == 60


def test_a_bare_refusal_of_every_line_stops_the_run_after_few_calls_and_leaves_all_open(tmp_path, serve):
    service = serve(lambda prompt, calls: (403, {"error": {"message": "no"}}, {}))
    write(tmp_path, 60)
    code, summary, _, rows = llmdo(tmp_path, service.url)
    assert (code, summary["answered"], summary["failed"], rows) == (1, 0, 0, [])
    assert "OPENAI_API_KEY" in summary["problem"]
    assert sum(service.calls.values()) <= 25


def test_a_very_long_retry_after_stops_the_run_and_says_until_when(tmp_path, serve):
    slow = {"error": {"code": "RateLimitReached", "message": "Come back later"}}
    service = serve(lambda prompt, calls: (429, slow, {"retry-after": "20000"}))
    write(tmp_path, 60)
    before = time.time()
    code, summary, said, rows = llmdo(tmp_path, service.url)
    assert (code, summary["answered"], summary["failed"], rows) == (1, 0, 0, [])
    until = datetime.fromisoformat(summary["until"]).timestamp()
    assert before + 20_000 - 2 <= until <= time.time() + 20_000
    assert "It can resume from" in said
    assert sum(service.calls.values()) <= 25
