import json
import os
import subprocess
import sys

from benchmarks import infer
from benchmarks.fake_endpoint import fake_endpoint


def test_every_row_is_measured_and_none_is_faster_than_the_limit(capsys):
    results = infer.run(infer.ROWS, latency_s=0.02, quick=True)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == results
    assert [result["name"] for result in results] == [row.name for row in infer.ROWS]
    for result in results:
        assert result["calls"] == result["concurrency"] * 3
        assert 0 < result["share"] <= 1.01
        assert result["cpu_ms_per_call"] > 0


def test_the_command_prints_json_lines():
    command = [sys.executable, "-m", "benchmarks.infer", "--quick", "--latency", "0.01"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=dict(os.environ))
    assert [json.loads(line)["name"] for line in ended.stdout.splitlines()] == [row.name for row in infer.ROWS]


def test_the_endpoint_takes_its_time_and_ends_with_its_user():
    with fake_endpoint(0.05) as url:
        measured = infer.bare_engine(url, concurrency=2, calls=4)
    assert measured.calls == 4
    assert measured.seconds >= 0.1
