from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.worker.sdk_worker import SdkWorker
from apache_beam.testing.util import assert_that, equal_to

from llmdo.pipelines.options import JsonlOptions
from llmdo.runners import portable, servers
from llmdo.runners.prism.runner import launch, prism_arguments, running_prism
from llmdo.runners.servers import ServerDied
from llmdo.settings.tools import ToolError

ROOT = Path(__file__).parents[3]
# Beam's own threads lose their connections when Prism dies, and say so, some of them later.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture(scope="session")
def binary() -> Path:
    path = Path(os.environ.get("LLMDO_PRISM") or ROOT / ".cache" / "prism" / "prism")
    if not path.is_file():
        pytest.fail(f"there is no Prism at {path}: run `make test`, or set LLMDO_PRISM")
    return path


def options(binary: Path) -> JsonlOptions:
    return JsonlOptions(files=("in/",), output="out/", model="@cf/a/b", runner="prism", prism_location=str(binary))


def alive(pid: int) -> bool:
    try:
        # Who adopts an orphan need not be quick to reap it: a zombie has ended.
        if (stat := Path(f"/proc/{pid}/stat")).exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return False
        os.kill(pid, 0)
    except (ProcessLookupError, FileNotFoundError):
        return False
    return True


def gone(pid: int, within: float) -> bool:
    deadline = time.monotonic() + within
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


def fake(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.prism
def test_a_graph_with_batches_runs_on_a_prism_of_its_own(binary: Path) -> None:
    with launch(options(binary)) as arguments, beam.Pipeline(options=PipelineOptions(arguments)) as pipeline:
        batches = (
            pipeline
            | beam.Create(range(10))
            | beam.Map(lambda n: ("key", n * n))
            | beam.GroupIntoBatches(4, max_buffering_duration_secs=60)
        )
        assert_that(batches | beam.MapTuple(lambda _, batch: len(batch)), equal_to([4, 4, 2]))


@pytest.mark.prism
def test_no_progress_is_collected_while_prism_runs_and_only_then(binary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collected = []

    def collecting(_: SdkWorker, request: Any, instruction_id: str) -> Any:
        collected.append(instruction_id)
        raise AssertionError(request)

    monkeypatch.setattr(SdkWorker, "process_bundle_progress", collecting)
    with launch(options(binary)) as arguments, beam.Pipeline(options=PipelineOptions(arguments)) as pipeline:
        slept = pipeline | beam.Create([0.5]) | beam.Map(_sleep)  # Prism asks after 0.1 s
        assert_that(slept, equal_to([0.5]))
    assert collected == []
    assert SdkWorker.process_bundle_progress is collecting


def _sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@pytest.mark.prism
def test_two_at_once_have_their_own_ports_and_processes_and_both_are_stopped(binary: Path) -> None:
    with running_prism(binary) as first, running_prism(binary) as second:
        assert first.address != second.address
        assert os.getsid(first.pid) == first.pid != os.getsid(0)
        for endpoint in (first, second):
            with beam.Pipeline(options=PipelineOptions(prism_arguments(endpoint))) as pipeline:
                assert_that(pipeline | beam.Create([1]), equal_to([1]))
    assert not alive(first.pid)
    assert not alive(second.pid)
    assert not first.log.exists()


@pytest.mark.prism
def test_prism_is_stopped_when_the_pipeline_fails(binary: Path) -> None:
    with pytest.raises(KeyError), running_prism(binary) as endpoint:
        raise KeyError("a step")
    assert not alive(endpoint.pid)


@pytest.mark.prism
def test_a_job_may_take_longer_than_the_timeout_of_a_connection(binary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable, "_CONNECT_TIMEOUT", 1)
    with launch(options(binary)) as arguments:
        assert "--job_server_timeout=1" in arguments
        with beam.Pipeline(options=PipelineOptions(arguments)) as pipeline:
            # Without an own runner this fails with DEADLINE_EXCEEDED.
            waited = pipeline | beam.Create([2.5]) | beam.Map(lambda seconds: __import__("time").sleep(seconds))
            assert_that(waited, equal_to([None]))


@pytest.mark.prism
def test_a_prism_that_dies_in_the_middle_ends_the_pipeline_with_its_log(binary: Path) -> None:
    with (
        pytest.raises(
            ServerDied, match=r"(?s)was ended by signal 9 .* run the same command again.*Serving JobManagement"
        ),
        running_prism(binary) as endpoint,
    ):
        threading.Timer(1.5, os.kill, (endpoint.pid, signal.SIGKILL)).start()
        pipeline = beam.Pipeline(options=PipelineOptions(prism_arguments(endpoint)))
        _ = pipeline | beam.Create([4]) | beam.Map(lambda seconds: __import__("time").sleep(seconds))
        pipeline.run().wait_until_finish()


@pytest.mark.prism
def test_a_prism_that_died_before_the_job_is_an_error_and_no_wait_without_end(
    binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portable, "_CONNECT_TIMEOUT", 1)
    with pytest.raises(ServerDied, match="was ended by signal 9"), running_prism(binary) as endpoint:
        os.kill(endpoint.pid, signal.SIGKILL)
        with beam.Pipeline(options=PipelineOptions(prism_arguments(endpoint))) as pipeline:
            _ = pipeline | beam.Create([1])


# Run as another process: says what happens on stdout.
CHILD = textwrap.dedent("""
    import signal, sys, time
    from pathlib import Path
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from llmdo.runners.prism import runner as prism

    def answer(seconds):
        print("working", flush=True)
        time.sleep(seconds)
        return seconds

    def main():
        signal.signal(signal.SIGINT, lambda *_: print("asked to stop", flush=True))
        with prism.running_prism(Path(sys.argv[1])) as endpoint:
            print(endpoint.pid, flush=True)
            pipeline = beam.Pipeline(options=PipelineOptions(prism.prism_arguments(endpoint)))
            pipeline | beam.Create([float(sys.argv[2])]) | beam.Map(answer)
            print(pipeline.run().wait_until_finish(), flush=True)

    main()
""")


def start_child(binary: Path, seconds: float) -> tuple[subprocess.Popen[str], int]:
    """A process in a group of its own, whose pipeline works on one element for so long, and the pid of its Prism."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, binary, str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    assert child.stdout is not None
    pid = int(child.stdout.readline())
    assert child.stdout.readline() == "working\n"
    return child, pid


@pytest.mark.prism
def test_ctrl_c_reaches_the_pipeline_and_not_prism(binary: Path) -> None:
    child, pid = start_child(binary, 1.5)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does to its foreground group
    output, _ = child.communicate(timeout=240)
    assert output == "asked to stop\nDONE\n"
    assert child.returncode == 0
    assert not alive(pid)


@pytest.mark.prism
def test_prism_ends_when_its_parent_was_killed_in_the_middle_of_a_job(binary: Path) -> None:
    child, pid = start_child(binary, 60)
    child.kill()
    child.communicate()
    assert gone(pid, within=60)


@pytest.mark.prism
def test_prism_ends_when_its_parent_was_killed_before_it_had_a_job(binary: Path) -> None:
    script = """
        import sys, time
        from pathlib import Path
        from llmdo.runners.prism import runner as prism

        with prism.running_prism(Path(sys.argv[1])) as endpoint:
            print(endpoint.pid, flush=True)
            time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), binary]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdout is not None
        pid = int(child.stdout.readline())
        assert alive(pid)
        child.kill()
    assert gone(pid, within=60)


@pytest.mark.prism
def test_nothing_is_left_of_a_prism_that_was_stopped(binary: Path) -> None:
    with running_prism(binary) as endpoint:
        session = os.getsid(endpoint.pid)
        assert len(of_session(session)) > 1  # Prism, and what watches over it
    end = time.monotonic() + 60
    while of_session(session) and time.monotonic() < end:
        time.sleep(0.05)
    assert of_session(session) == []


def test_what_a_server_has_started_goes_with_it_when_its_parent_is_killed(tmp_path: Path) -> None:
    served = '{"msg":"Serving JobManagement","endpoint":"localhost:1"}'
    server = fake(tmp_path / "prism", f"sleep 600 &\necho $! > {tmp_path}/child\necho '{served}'\nwait")
    script = """
        import sys, time
        from pathlib import Path
        from llmdo.runners.prism.runner import running_prism

        with running_prism(Path(sys.argv[1])) as endpoint:
            print(endpoint.pid, flush=True)
            time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), server]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        pids = [int(parent.stdout.readline()), int((tmp_path / "child").read_text())]
        assert all(alive(pid) for pid in pids)
        parent.kill()
    assert [gone(pid, within=60) for pid in pids] == [True, True]


def test_a_server_that_ended_leaves_its_number_to_nobody_whom_the_end_of_this_process_could_hit(
    tmp_path: Path,
) -> None:
    served = '{"msg":"Serving JobManagement","endpoint":"localhost:1"}'
    server = fake(tmp_path / "prism", f"echo '{served}'\nexec sleep 600")
    with pytest.raises(ServerDied), running_prism(server) as endpoint:
        os.kill(endpoint.pid, signal.SIGKILL)
        (process,) = servers._running
        process.wait()  # reaped: from here on the system may give the number away
        (watcher,) = [int(line.split()[0]) for line in of_session(endpoint.pid)][:1]
        # What it kills is its own process group, which it holds open.
        assert os.getpgid(watcher) == endpoint.pid
        raise KeyError


def of_session(session: int) -> list[str]:
    """Processes of a session, as ps tells them."""
    command = ["ps", "-o", "pid=,args=", "-s", str(session)]
    asked = subprocess.run(command, check=False, capture_output=True, text=True)  # 1 where there are none
    return [line for line in asked.stdout.splitlines() if "<defunct>" not in line]


def test_a_prism_that_does_not_start_is_an_error_with_its_log(tmp_path: Path) -> None:
    broken = fake(tmp_path / "prism", "echo 'panic: no port'\nexit 3")
    with pytest.raises(ServerDied, match=r"(?s)ended with exit code 3 .*panic: no port"), running_prism(broken):
        pytest.fail("it cannot be used")


def test_a_prism_that_never_serves_is_an_error_and_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_START_TIMEOUT", 0.5)
    monkeypatch.setattr(servers, "_STOP_TIMEOUT", 0.2)
    started, start = [], servers.start_tied
    monkeypatch.setattr(servers, "start_tied", lambda *given: started.append(start(*given)) or started[-1])
    deaf = fake(tmp_path / "prism", "trap '' TERM\nwhile :; do sleep 0.1; done")
    with pytest.raises(ToolError, match="Prism did not serve within"), running_prism(deaf):
        pytest.fail("it cannot be used")
    (process,) = started
    assert process.returncode is not None and not alive(process.pid)


def exit_code() -> object:
    """Of ``python -m llmdo.runners.prism``."""
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("llmdo.runners.prism", run_name="__main__")
    return ended.value.code


@pytest.mark.prism
def test_the_command_prints_the_path_and_nothing_else(
    binary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLMDO_PRISM", str(binary))
    assert exit_code() == 0
    assert capsys.readouterr().out == f"{binary}\n"


def test_the_command_fails_with_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LLMDO_PRISM", "/nowhere/prism")
    assert exit_code() == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "LLMDO_PRISM: there is no /nowhere/prism; give the path of a Prism binary, or omit it\n"
