import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from urllib.request import Request, urlopen

import aiohttp
import pytest

from benchmarks import infer
from benchmarks.rivals import installing
from benchmarks.servers.fake_endpoint import TEXT, Seen, fake_endpoint, latencies, seen, take_spans
from benchmarks.ways import bare_aiohttp
from benchmarks.ways.contestants import WAYS, YARDSTICK, Way
from benchmarks.ways.measuring import Task, Used
from tests.benchmarks.reporting.printed import measured

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
CELL = infer.Cell(1.0, concurrency=4, calls=12, mean_s=0.02)


def test_the_quick_form_measures_all_ways_that_need_no_installing():
    ended = command("--quick")
    endpoint, *rows = measured(ended.stdout)
    assert endpoint["calls_per_s"] > 0
    assert [row["way"] for row in rows] == [way.name for way in WAYS]
    (cell,) = infer.QUICK
    for row in rows:
        assert row["calls"] == cell.calls
        # On a busy machine calls of a slow way may end before the last of a window has begun.
        assert cell.concurrency / 2 <= row["endpoint"]["most_in_flight"] <= cell.concurrency
        assert row["endpoint"]["core"] > 0
        assert 0 < row["share"] < 1
        assert row["ratio"] == pytest.approx(row["share"] / rows[0]["share"], abs=0.001)
        assert 0 < row["cpu_ms_per_call"] < 1000
        assert 5 < row["peak_rss_mb"] < 2000
        assert row["start_s"] > row["start_cpu_s"] / (os.cpu_count() or 1) > 0
        assert row["way"] in ended.stderr
    (llmdo,) = (row for row in rows if row["way"] == "llmdo run")
    assert {"shards", "shards_s", "lines_per_s"} <= llmdo.keys()


def test_one_way_is_measured_beside_the_yardstick():
    _, *rows = measured(command("--quick", "--only", "engine", "--rounds", "2").stdout)
    assert [(row["round"], row["way"]) for row in rows] == [
        (1, "bare aiohttp"),
        (1, "engine"),
        (2, "bare aiohttp"),
        (2, "engine"),
    ]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "benchmarks.infer", *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=560, check=True, cwd=ROOT)


def test_the_share_is_the_latencies_over_the_window_over_the_time():
    drawn = list(islice(latencies(CELL.mean_s, CELL.sigma), CELL.calls))
    spans = [(100.0, 101.0)] * 11 + [(100.5, 102.0)]
    used = Used(12, [(99.0, 5.0), (99.5, 6.0), (100.5, 9.0), (103.0, 10.0)], 50.4, {"shards": 3})
    figures = infer.figures(infer.Measured(98.0, spans, 0, Seen(4, 0.5, 0.012), used), CELL)
    assert figures == {
        "calls": 12,
        "seconds": 2.0,
        "calls_per_s": 6.0,
        "share": round(sum(drawn) / 4 / 2.0, 4),
        "cpu_ms_per_call": 208.333,  # 10 s at the end less 7.5 s at the first call
        "peak_rss_mb": 50,
        "calls_before": 0,
        "start_s": 2.0,
        "start_cpu_s": 7.5,
        "shards": 3,
        "endpoint": {"most_in_flight": 4, "core": 0.25, "late_ms": 1.0},
    }


def test_the_latencies_of_calls_before_the_measured_ones_do_not_count():
    drawn = list(islice(latencies(CELL.mean_s, CELL.sigma), CELL.calls + 1))
    used = Used(12, [(99.0, 0.0), (103.0, 1.0)], 50.0, {})
    figures = infer.figures(infer.Measured(98.0, [(100.0, 101.0)] * 12, 1, Seen(), used), CELL)
    assert figures["share"] == round(sum(drawn[1:]) / 4, 4)


def test_a_rival_that_cannot_be_installed_has_rows_that_say_why_and_is_not_tried_again(monkeypatch, tmp_path, capsys):
    tried = []

    def call(command, variables):
        tried.append(command)
        if "pip" in command:
            raise installing.CannotInstall("ERROR: no compiler")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(installing, "_call", call)
    rival = Way("rival", "rivals.none", requirements=("rival==1",))
    rows = list(infer.rows((YARDSTICK, rival), [CELL, CELL], 1))
    assert [row.get("not_measured") for row in rows] == [None, "it cannot be installed: ERROR: no compiler"] * 2
    assert len(tried) == 2
    assert "ratio" not in rows[1]
    assert infer.table(rows).row_count == 1
    assert "Installing rival==1" in capsys.readouterr().err


def test_a_rival_is_installed_once_for_the_same_requirements(monkeypatch, tmp_path):
    installed = []

    def call(command, variables):
        if "venv" in command:
            Path(command[-1]).mkdir(exist_ok=True)
        else:
            installed.append((command[-1], variables))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(installing, "_call", call)
    for version in ("1", "1", "2"):
        python = installing.python_with("rival", [f"rival=={version}"], {"LTO": "off"})
        assert python == tmp_path / "llmdo" / "rivals" / "rival" / "bin" / "python"
    assert installed == [("rival==1", {"LTO": "off"}), ("rival==2", {"LTO": "off"})]


def test_two_benchmarks_at_once_install_a_rival_once(monkeypatch, tmp_path):
    installed = []

    def call(command, variables):
        if "venv" in command:
            Path(command[-1]).mkdir(exist_ok=True)
        else:
            time.sleep(0.2)
            installed.append(command[-1])

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(installing, "_call", call)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: installing.python_with("rival", ["rival==1"], {}), range(2)))
    assert installed == ["rival==1"]


def test_pips_own_words_are_the_reason():
    with pytest.raises(installing.CannotInstall, match=r"^ERROR: gone$"):
        installing._call(["sh", "-c", "printf 'ERROR: gone\\n\\nhint: look\\n' >&2; exit 1"], {})


def test_a_rival_that_fails_or_answers_wrong_has_a_row_that_says_why_and_a_way_of_ours_ends_the_benchmark(
    monkeypatch, tmp_path
):
    def measure(way, cell, python):
        raise infer.NotMeasured("exit code 1: ImportError")

    monkeypatch.setattr(infer, "measure", measure)
    monkeypatch.setattr(infer, "install", lambda ways: (dict.fromkeys((way.name for way in ways), sys.executable), {}))
    rival = Way("rival", "rivals.none", requirements=("rival==1",))
    (row,) = infer.rows((rival,), [CELL], 1)
    assert row["not_measured"] == "exit code 1: ImportError"
    with pytest.raises(SystemExit, match="bare aiohttp: exit code 1: ImportError"):
        list(infer.rows((YARDSTICK,), [CELL], 1))


def test_in_further_rounds_only_what_has_a_goal_is_measured_again_and_slow_ways_fill_the_window_four_times(
    monkeypatch, capsys
):
    measured = []

    def measure(way, cell, python=sys.executable):
        measured.append((way.name, cell.calls))
        used = Used(cell.calls, [(99.0, 5.0), (103.0, 10.0)], 50.0, {})
        return infer.Measured(98.0, [(100.0, 101.0)] * cell.calls, 0, Seen(), used)

    monkeypatch.setattr(infer, "measure", measure)
    ways = [way for way in WAYS if not way.name.startswith("engine")]
    rows = infer.run(ways, [infer.Cell(0.0, 1_000), infer.Cell(0.0, 64, calls=5_000)], rounds=3)
    assert capsys.readouterr().out.count("\n") == 1 + len(rows)
    assert measured.pop(0)[0] == YARDSTICK.name  # how fast the endpoint is
    again = [("bare aiohttp", 10_000), ("llmdo run", 10_000)]
    # Those of few calls are compared with a yardstick of as many.
    few = [("bare aiohttp", 4_000), ("plain httpx", 4_000), ("Beam RunInference", 4_000)]
    assert measured[:9] == again + few + again + again
    assert [calls for name, calls in measured[9:] if name == "plain httpx"] == [2_000]
    assert len(rows) == 2 * (len(ways) + 2 * 2)


def test_a_process_that_fails_gives_its_last_words(tmp_path):
    with pytest.raises(infer.NotMeasured, match="exit code 1: ValueError: no such thing"):
        infer.run_to_end([sys.executable, "-c", "raise ValueError('no such thing')"], str(tmp_path))


def test_a_way_that_gets_wrong_answers_is_not_measured(monkeypatch, tmp_path):
    module = ROOT / "benchmarks" / "ways" / "bare_aiohttp.py"
    wrong = tmp_path / "benchmarks" / "ways" / "wrong.py"
    wrong.parent.mkdir(parents=True)
    wrong.write_text(module.read_text().replace("== TEXT", "== 'Lyon'"))
    for name in ("ways/measuring.py", "servers/fake_endpoint.py"):
        (tmp_path / "benchmarks" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "benchmarks" / name).write_text((ROOT / "benchmarks" / name).read_text())
    monkeypatch.setattr(infer, "ROOT", tmp_path)
    with pytest.raises(infer.NotMeasured, match="0 of 12 prompts got the right answer"):
        infer.measure(Way("wrong", "ways.wrong"), CELL)


def test_a_rival_reaches_this_machine_only():
    code = (
        "import socket; from benchmarks.ways.measuring import stay_on_this_machine as stay; stay()\n"
        "try: socket.socket().connect(('203.0.113.1', 9))\n"
        "except PermissionError as error: print(error)\n"
        "try: socket.getaddrinfo('example.org', 80)\n"
        "except PermissionError as error: print(error)\n"
        "server = socket.create_server(('127.0.0.1', 0)); socket.create_connection(server.getsockname()); print('here')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    first, second, third = ended.stdout.splitlines()
    assert first.endswith("not to 203.0.113.1")
    assert second.endswith("not to 'example.org'")
    assert third == "here"


def test_the_endpoint_takes_the_same_times_in_the_order_of_arrival_and_tells_what_it_saw(tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Capital?"}\n' * 12)
    with fake_endpoint(0.02, 1.0) as url:
        assert asyncio.run(bare_aiohttp.call_all(Task(url, 4, str(prompts), ""))) == 12
        noted, spans = seen(url), sorted(take_spans(url))
    drawn = list(islice(latencies(0.02, 1.0), 12))
    taken = [end - begin for begin, end in spans]
    assert all(-0.001 < took - due < 5 for took, due in zip(taken, drawn, strict=True))
    assert noted.most_in_flight == 4
    assert noted.late_s == pytest.approx(sum(taken) - sum(drawn), abs=1e-6)
    assert 0 < noted.cpu_s < 10


def test_the_endpoint_takes_its_time_and_ends_with_its_user():
    with fake_endpoint(0.05) as url:
        begun = time.monotonic()
        body = json.loads(urlopen(Request(f"{url}/ai/run/x", data=b"{}")).read())
        assert time.monotonic() - begun >= 0.05
    assert body["result"]["response"] == TEXT
    with pytest.raises(OSError):
        urlopen(url)


def test_the_endpoint_answers_openais_route_in_its_shape():
    with fake_endpoint(0.0) as url:
        body = json.loads(urlopen(Request(f"{url}/v1/chat/completions", data=b"{}")).read())
    assert body["choices"][0]["message"] == {"role": "assistant", "content": TEXT}


def test_the_endpoint_reads_requests_in_pieces_and_refuses_one_without_a_length():
    request = b"POST /ai/run/x HTTP/1.1\r\nhost: x\r\nContent-Length: 2\r\n\r\n{}"
    with fake_endpoint(0.0) as url, socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
        connection.settimeout(60)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):
            for at in range(0, len(request), 7):
                connection.sendall(request[at : at + 7])
                time.sleep(0.001)
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200 OK\r\n")
        connection.sendall(b"POST /ai/run/x HTTP/1.1\r\nhost: x\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 411 Length Required\r\n")
        assert connection.recv(65_536) == b""


def test_bare_aiohttp_keeps_to_its_window_and_counts_right_answers_only(tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Capital?"}\n' * 9)
    with fake_endpoint(0.01) as url:
        assert asyncio.run(bare_aiohttp.call_all(Task(url, 3, str(prompts), ""))) == 9
        assert seen(url).most_in_flight == 3
    with pytest.raises(aiohttp.ClientError):
        asyncio.run(bare_aiohttp.call_all(Task("http://127.0.0.1:9", 3, str(prompts), "")))
