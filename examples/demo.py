"""Answers files on this machine from end to end: upload, event, queue, model, shards, manifest. Run `make demo`.

Starts `llmdo local` with the embedded model, uploads the example files with boto3, as one would to R2, and lets `llmdo
run` answer what the queue announces. It stops everything it started.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import boto3
from botocore.config import Config

EXAMPLES = Path(__file__).parent
LLMDO = [sys.executable, "-m", "llmdo"]
MODEL = "@cf/huggingface/smollm2-135m-instruct"
START_TIMEOUT = 60.0  # seconds; loading the model takes about one
SOME_LINES_FAILED = 3  # exit code of `llmdo run`: expected, since one example has broken lines


def main() -> int:
    """Returns the demo's exit code."""
    with tempfile.TemporaryDirectory(prefix="llmdo-demo-") as folder:
        server = subprocess.Popen([*LLMDO, "local", "--data", folder, "--port", "0"])
        try:
            # The ledger of the demo's answers is removed with the demo.
            environment = os.environ | wait_for_env(Path(folder) / "env", server) | {"XDG_STATE_HOME": folder}
            upload(environment)
            output = "r2://llmdo/output/"
            command = ["run", "--queue", "llmdo-input", "--output", output, "--model", MODEL, "--samples", "3"]
            say(shlex.join(["llmdo", *command]))
            run = subprocess.run(
                [*LLMDO, *command, "--concurrency", "8"],
                env=environment,
                check=False,
            )
            if run.returncode not in (0, SOME_LINES_FAILED):
                return run.returncode
            say(f"llmdo verify {output} --input r2://llmdo/input/")
            verified = subprocess.run(
                [*LLMDO, "verify", output, "--input", "r2://llmdo/input/"], env=environment, check=False
            )
            return verified.returncode
        finally:
            server.terminate()
            server.wait(timeout=10)


def wait_for_env(path: Path, server: subprocess.Popen[bytes]) -> dict[str, str]:
    """The variables that the server writes once it is ready."""
    deadline = time.monotonic() + START_TIMEOUT
    while not path.exists():
        if server.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("llmdo local did not start: see its message above")
        time.sleep(0.1)
    words = shlex.split(path.read_text(), comments=True)
    return dict(word.split("=", 1) for word in words if "=" in word)


def upload(environment: dict[str, str]) -> None:
    """Puts the examples below input/, as any S3 client would."""
    client = boto3.client(
        "s3",
        endpoint_url=environment["R2_ENDPOINT_URL"],
        aws_access_key_id=environment["R2_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["R2_SECRET_ACCESS_KEY"],
        region_name="auto",
        config=Config(request_checksum_calculation="when_required", response_checksum_validation="when_required"),
    )
    for path in sorted(EXAMPLES.glob("*.jsonl")):
        client.put_object(Bucket=environment["LLMDO_BUCKET"], Key=f"input/{path.name}", Body=path.read_bytes())
        print(f"uploaded {path.name} to r2://{environment['LLMDO_BUCKET']}/input/", flush=True)


def say(command: str) -> None:
    """Shows a command that is about to run."""
    print(f"\n$ {command}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
