"""What runs leave in the folder for temporary files."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.faults.test_kills import paid, start, wait_until
from tests.integration.cloud import prompts
from tests.signals import drain


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where processes that are started put their temporary files."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["direct", pytest.param("prism", marks=pytest.mark.prism)])
def test_a_run_leaves_nothing(cloud, place, runner):
    cloud.upload("a.jsonl", prompts(3))
    process = start(cloud, runner)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert list(place.iterdir()) == []


@pytest.mark.prism
def test_the_next_start_of_any_command_removes_what_a_run_that_was_killed_left(cloud, place):
    cloud.upload("a.jsonl", prompts(100))
    cloud.fault(target="ai", probability=1.0, latency_s=0.5)
    killed, living = start(cloud, "prism", command="stream"), start(cloud, "prism", command="stream")
    try:
        wait_until(lambda: paid(cloud) and len(list(place.iterdir())) == 2, 240, living)
        killed.kill()
        killed.communicate()
        assert len(list(place.iterdir())) == 2
        subprocess.run([sys.executable, "-m", "llmdo", "ledger", "--help"], check=True, capture_output=True)
        assert len(list(place.iterdir())) == 1
        assert living.poll() is None
        drain(living)
        living.communicate(timeout=240)
        assert list(place.iterdir()) == []
    finally:
        for process in (killed, living):
            process.kill()
            process.communicate()
