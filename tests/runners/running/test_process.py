"""A run as a process of its own, in the place of which stands a script."""

import os
import signal
import sys
import time

import pytest

from llmdo.runners import servers
from llmdo.runners.running import process as run_process
from llmdo.runners.running.process import RunEnd, RunProcess

SOON = 60.0  # seconds until a test gives up


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Makes a script what ``python -m llmdo`` starts; it gets the arguments."""
    folder = tmp_path / "modules" / "llmdo"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    monkeypatch.setattr(sys, "path", [str(folder.parent), *sys.path])

    def write(code):
        (folder / "__main__.py").write_text(code)

    return write


def end_of(run):
    end = time.monotonic() + SOON
    while (found := run.result(0.05)) is None:
        assert time.monotonic() < end
    return found


def wait_for(path):
    end = time.monotonic() + SOON
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_its_line_of_json_is_its_summary(program):
    program("import json, sys; print(json.dumps({'exit_code': 3, 'given': sys.argv[1:]})); sys.exit(3)")
    assert end_of(RunProcess(["run", "--json"])) == RunEnd(3, {"exit_code": 3, "given": ["run", "--json"]})
    assert servers._running == set()


def test_a_summary_that_is_longer_than_a_pipe_holds_up_nobody(program):
    program("import json; print(json.dumps({'exit_code': 0, 'files': ['x' * 100] * 10_000}))")
    assert len(end_of(RunProcess([])).summary["files"]) == 10_000


def test_modules_of_the_working_folder_are_not_taken_for_ours(program, tmp_path, monkeypatch):
    program("import json, random; print(json.dumps({'exit_code': 0}))")
    (tmp_path / "random.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    assert end_of(RunProcess([])).exit_code == 0


@pytest.mark.parametrize(
    ("code", "expected", "problem"),
    [
        ("import sys; sys.exit(4)", 4, "the run ended with exit code 4 and left no summary; its log says why"),
        ("pass", 1, "the run ended with exit code 0 and left no summary; its log says why"),
        ("print('{')", 1, "the run ended with exit code 0 and left no summary; its log says why"),
        ("print('[]')", 1, "the run ended with exit code 0 and left no summary; its log says why"),
        (
            "import os; os.kill(os.getpid(), 9)",
            137,
            "the run was killed by SIGKILL; the next one resumes from there",
        ),
        (
            "import os; os.kill(os.getpid(), 15)",
            143,
            "the run was killed by SIGTERM; the next one resumes from there",
        ),
    ],
)
def test_an_end_without_a_summary_is_a_failure(program, code, expected, problem):
    program(code)
    assert end_of(RunProcess([])) == RunEnd(expected, {"problem": problem})


def test_sigterm_before_it_can_drain_is_a_stop_and_no_kill(program, tmp_path):
    program(f"import time; open({str(tmp_path / 'there')!r}, 'w'); time.sleep(600)")
    run = RunProcess([])
    wait_for(tmp_path / "there")
    run.stop()
    assert end_of(run) == RunEnd(1, {"problem": "stopped by SIGTERM before it started"})


def test_one_that_hangs_after_its_summary_is_killed_and_the_summary_counts(program, monkeypatch):
    monkeypatch.setattr(run_process, "_LAST_THREADS", 0.2)
    program("import json, time; print(json.dumps({'exit_code': 0, 'answered': 5}), flush=True); time.sleep(600)")
    assert end_of(RunProcess([])) == RunEnd(0, {"exit_code": 0, "answered": 5})


def test_it_has_a_session_of_its_own_so_that_ctrl_c_does_not_reach_it(program):
    program("import json, os; print(json.dumps({'exit_code': 0, 'session': os.getsid(0), 'pid': os.getpid()}))")
    summary = end_of(RunProcess([])).summary
    assert summary["session"] == summary["pid"] != os.getsid(0)


def test_it_is_killed_with_what_it_started_where_this_process_leaves_at_once(program, tmp_path):
    there = tmp_path / "there"
    program(f"import time; open({str(there)!r}, 'w'); time.sleep(600)")
    run = RunProcess([])
    wait_for(there)
    servers.kill_all()
    assert end_of(run).exit_code == 128 + signal.SIGKILL
