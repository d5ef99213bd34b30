from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from openai import OpenAI

from tests.local.openai.batching import CHAT, request

SERVE = "import sys, pathlib, llmdo.local.server as s; s.serve(pathlib.Path(sys.argv[1]), 0, 'echo')"
LINES = 50_000
MOST_MB = 48  # of which 20 are the counts of what was paid


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_largest_batch_is_answered_in_little_memory(tmp_path: Path) -> None:
    """100 MB in, 100 MB out."""
    started = subprocess.Popen([sys.executable, "-c", SERVE, str(tmp_path / "c")], stdout=subprocess.PIPE, text=True)

    def peak_mb() -> int:
        (found,) = re.findall(r"VmHWM:\s+(\d+)", Path(f"/proc/{started.pid}/status").read_text())
        return int(found) // 1024

    try:
        assert started.stdout
        said = [started.stdout.readline() for _ in range(2)]
        client = OpenAI(api_key="a", base_url=said[1].split()[5], max_retries=0, timeout=600)
        client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "a"}])
        before = peak_mb()
        source = tmp_path / "in.jsonl"
        with source.open("w") as written:
            for number in range(LINES):
                written.write(json.dumps(request(f"r{number}", f"{number} {'x' * 1900}")) + "\n")
        with source.open("rb") as read:
            file = client.files.create(file=read, purpose="batch")
        assert file.bytes == source.stat().st_size > 100_000_000
        assert peak_mb() - before < MOST_MB
        batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        deadline = time.monotonic() + 900
        while batch.status not in ("completed", "failed"):
            assert time.monotonic() < deadline, batch
            time.sleep(0.2)
            batch = client.batches.retrieve(batch.id)
        assert batch.request_counts
        assert batch.request_counts.completed == LINES
        with client.files.with_streaming_response.content(str(batch.output_file_id)) as content:
            assert sum(1 for _ in content.iter_lines()) == LINES
        assert peak_mb() - before < MOST_MB
    finally:
        started.kill()
        started.wait()
