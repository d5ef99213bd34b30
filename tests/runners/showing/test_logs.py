"""Logs: as JSON, with what an event is about, and never a secret or what was asked."""

import json
import logging
import subprocess
import sys

import pytest

from llmdo.runners.showing import logs

SCRIPT = """
import logging, os
os.environ["OPENAI_API_KEY"] = "sk-secret-0123456789"
from llmdo.runners.showing.logs import logs_of, quieten, show_own_logs, use_json
quieten("WARNING")
show_own_logs({verbose})
use_json()
log = logging.getLogger("llmdo.somewhere")
with logs_of("run-1"):
    log.info("the key is sk-secret-0123456789", extra={{"file": "r2://b/a.jsonl", "line": 120}})
    log.warning("wide\\nand \\x00 \\u2028 odd")
    log.debug("details")
    try:
        raise ValueError("no")
    except ValueError:
        log.exception("failed")
logging.getLogger("other").info("not ours")
logging.getLogger("other").warning("after the run")
"""


@pytest.mark.parametrize(("verbose", "levels"), [(0, "we"), (1, "iwe"), (2, "iwde")])
def test_each_event_is_an_object_in_one_line_with_run_file_and_line(verbose, levels):
    script = SCRIPT.format(verbose=verbose)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=240)
    said = [json.loads(line) for line in ended.stderr.splitlines()]
    assert [one["level"][0] for one in said] == [*levels, "w"]
    assert all(one["run"] == "run-1" for one in said[:-1]) and "run" not in said[-1]
    if verbose:
        assert (said[0]["file"], said[0]["line"]) == ("r2://b/a.jsonl", 120)
    assert "sk-secret" not in ended.stderr
    (failed,) = [one for one in said if one["message"] == "failed"]
    assert "ValueError: no" in failed["traceback"]
    assert all(one["time"].endswith("+00:00") for one in said)


def test_the_innermost_run_counts_and_none_after_the_last(monkeypatch):
    monkeypatch.setattr(logs, "_runs", [])
    about = logs._AboutRun()

    def run_of():
        record = logging.LogRecord("x", logging.INFO, "", 0, "x", (), None)
        assert about.filter(record)
        return getattr(record, "run", None)

    with logs.logs_of("one"):
        with logs.logs_of("two"):
            assert run_of() == "two"
        assert run_of() == "one"
    assert run_of() is None
