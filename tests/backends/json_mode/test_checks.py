import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from llmdo.backends.errors import Retryable
from llmdo.backends.json_mode import checks as json_checks
from llmdo.backends.json_mode.checks import CHECK_CPU_S, TooMuchWork, answer_problem, schema_problem, schema_problem_now

TEXT = json.dumps({"type": "string"})


def doubling(times, last):
    """A schema whose references lead to 2**times others."""
    defs = {f"a{n}": {"anyOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(times)}
    return json.dumps({"$defs": {**defs, f"a{times}": last}, "$ref": "#/$defs/a0"})


def ask(answer, schema):
    return asyncio.run(answer_problem(answer, schema))


def child():
    return json_checks._checker._process


def test_answers_are_checked_in_another_process():
    assert ask('"a"', TEXT) is None
    assert ask("1", TEXT) == "the answer does not fit the JSON schema: $ must be string, not 1"
    assert ask("[]", "") == "the answer is JSON but not an object"
    assert ask("{", "").startswith("the answer is not valid JSON (")
    assert ask('"\ud800"', TEXT).startswith("the answer is not valid JSON (")
    assert child().pid != os.getpid()


def test_schemas_are_checked_there_too_and_remembered():
    for text in ('{"type": 3, "title": "remembered"}', '{"minimum": 3, "title": "remembered"}'):
        first = schema_problem_now(text)
        child().kill()
        assert schema_problem_now(text) == asyncio.run(schema_problem(text)) == first


@pytest.mark.parametrize(
    ("answer", "schema"),
    [
        ("1", doubling(40, {"type": "string"})),
        ("1", doubling(40, False)),
        (json.dumps([{"v": 9999}] * 10_000), json.dumps({"items": {"enum": [{"v": n} for n in range(10_000)]}})),
        ("[" + "[]," * 3_000_000 + "1]", TEXT),
    ],
    ids=["references that double", "and fit nothing", "lists against lists", "nothing but brackets"],
)
def test_a_check_that_takes_too_much_work_is_given_up_and_the_next_one_is_made(answer, schema):
    began = time.process_time()
    with pytest.raises(TooMuchWork, match=f"takes over {CHECK_CPU_S:g} s or too much memory"):
        ask(answer, schema)
    assert ask("1", json.dumps({"type": "integer"})) is None
    assert time.process_time() - began < 2 * CHECK_CPU_S  # here, nothing was done but to wait


def test_a_schema_that_takes_too_long_to_read_cannot_be_used():
    patterns = {"properties": {f"a{n}": {"pattern": rf"\p{{L}}{{150}}{n}"} for n in range(200)}}
    assert schema_problem_now(json.dumps(patterns)) == f"$ takes over {CHECK_CPU_S:g} s to read: make it smaller"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_somebody_else_ends_is_started_again(number):
    assert ask('"a"', TEXT) is None
    before = child()
    os.kill(before.pid, number)
    os.waitid(os.P_PID, before.pid, os.WEXITED | os.WNOWAIT)
    assert ask('"a"', TEXT) is None
    assert child().pid != before.pid


def test_the_loop_goes_on_meanwhile():
    ticks = 0

    async def both():
        nonlocal ticks
        check = asyncio.ensure_future(answer_problem("1", doubling(40, False)))
        while not check.done():
            ticks += 1
            await asyncio.sleep(0.005)
        with pytest.raises(TooMuchWork):
            check.result()

    asyncio.run(both())
    assert ticks >= 10


def test_many_threads_get_their_own_answers():
    found = {}

    def one(number):
        found[number] = [schema_problem_now(json.dumps({"const": number, "type": f"t{number}"})) for _ in range(3)]

    threads = [threading.Thread(target=one, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [f"'t{number}'" in said for number in range(20) for said in found[number]] == [True] * 60


def test_the_process_knows_no_keys(monkeypatch):
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "secret")
    with pytest.raises(TooMuchWork):
        ask("1", doubling(40, False))
    assert ask('"a"', TEXT) is None
    assert b"CLOUDFLARE" not in Path(f"/proc/{child().pid}/environ").read_bytes()


def test_the_process_ends_with_the_one_that_started_it():
    script = """
import time
from llmdo.backends.json_mode import checks as json_checks
json_checks.schema_problem_now("{}")
print(json_checks._checker._process.pid, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    until = time.monotonic() + 60
    while runs(pid):
        assert time.monotonic() < until
        time.sleep(0.02)


def runs(pid):
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it ended before it was looked at, or while it was read
        return False


def test_a_process_that_cannot_be_started_is_worth_another_try(monkeypatch):
    if child():
        child().kill()
    monkeypatch.setattr(json_checks.sys, "executable", "/nowhere/python")
    with pytest.raises(Retryable, match="cannot be started"):
        ask('"a"', TEXT)
    monkeypatch.undo()
    assert ask('"a"', TEXT) is None
