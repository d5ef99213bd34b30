"""What a user's type checker knows of an installed llmdo: mypy --strict over a pipeline of theirs."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import llmdo
from tests.shipped.packages import copy_of_the_checkout

# Each line is one that a user may write. Beam's own functions have no types: see docs/guide/library.md.
GOOD = """
from collections.abc import Sequence
from typing import Any

import apache_beam as beam

import llmdo

asking: llmdo.AskModel = llmdo.AskModel("openai/gpt-4o-mini", prompt="Sum: {text}", parameters={"max_tokens": 9})
apart: llmdo.AskModel = asking.with_exception_handling()
handler: llmdo.ModelHandler = llmdo.ModelHandler("@cf/baai/bge-m3", headers=["x-a=A"], max_batch_size=16)
request = llmdo.ChatRequest("m", (llmdo.Message("user", "hi"),), {"max_tokens": 3})


def asked(name: str) -> tuple[str | None, int]:
    with llmdo.connect(name) as model:
        answer = model.execute(request)
        vectors: Sequence[Sequence[float]] = model.embed(["a"]).vectors
        spent: llmdo.Usage = answer.usage
        return answer.text, spent.input_tokens + len(vectors)


def whose(error: llmdo.ModelError) -> str | None:
    return error.provider if isinstance(error, llmdo.Retryable | llmdo.StopRun | llmdo.LineError) else None


with beam.Pipeline(runner="FnApiRunner") as pipeline:
    rows: Any = pipeline | beam.Create(["a"]) | asking
"""
# Each is wrong in its last line, by the error of this kind.
WRONG = {
    'llmdo.AskModel("openai/m", concurrency=None)': "arg-type",
    'llmdo.AskModel("openai/m", promt="Sum")': "call-arg",
    "llmdo.AskModel()": "call-arg",
    'llmdo.ModelHandler("openai/m", headers=1)': "arg-type",
    'length: int = llmdo.connect("openai/m").execute("hi").text': "assignment",
    'llmdo.ChatRequest("m", ("hi",))': "arg-type",
    'llmdo.Message("robot", "hi")': "arg-type",
    "llmdo.NoSuchName": "attr-defined",
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CONFIGURATION = "[mypy]\nstrict = True\nuntyped_calls_exclude = apache_beam\n"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A python that has llmdo as setuptools installs it, and beside it what this one has."""
    place = tmp_path_factory.mktemp("types")
    venv.create(place / "venv", symlinks=True)
    (packages,) = place.glob("venv/lib/python*/site-packages")
    (packages / "beside.pth").write_text(sysconfig.get_path("purelib"))
    checkout = copy_of_the_checkout(place / "checkout")
    command = [sys.executable, "setup.py", "-q", "egg_info", "build", "--build-lib", packages]
    built = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=240, check=False)
    assert built.returncode == 0, built.stderr
    assert (packages / "llmdo" / "py.typed").is_file()
    return place / "venv" / "bin" / "python"


@pytest.fixture
def checked(python, tmp_path):
    """What mypy finds in a user's file: the number of its line, and the kind of error."""

    def check(source: str) -> dict[int, str]:
        (tmp_path / "mine.py").write_text(source)
        (tmp_path / "mypy.ini").write_text(CONFIGURATION)
        command = [sys.executable, "-m", "mypy", f"--python-executable={python}", "--no-color-output"]
        done = subprocess.run(
            [*command, f"--cache-dir={python.parents[2] / 'types'}", "mine.py"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=800,
            check=False,
        )
        found = re.findall(r"^mine\.py:(\d+): error: .*\[([a-z-]+)\]$", done.stdout, re.MULTILINE)
        assert ("Found" if found else "Success") in done.stdout, done.stdout + done.stderr
        return {int(line): kind for line, kind in found}

    return check


def test_a_pipeline_of_a_user_has_types_and_what_is_wrong_in_it_is_found_at_its_line(checked):
    wrong, above = "\n".join(WRONG), len(GOOD.splitlines())
    assert checked(f"{GOOD}\n{wrong}\n") == {above + 2 + at: kind for at, kind in enumerate(WRONG.values())}
    assert checked(GOOD) == {}


def test_every_public_name_is_known_to_a_type_checker(checked):
    names = [name for name in llmdo.__all__ if name != "__version__"]
    assert names
    lines = [f"{name.lower()}_: int = llmdo.{name}" for name in names]
    found = checked("\n".join(["import llmdo", *lines]) + "\n")
    # Each is of a type of its own: a name that is Any, or unknown, would fit an int, or be another kind of error.
    assert found == {2 + at: "assignment" for at in range(len(names))}
