"""The tutorial and the programs on the pages, against a server that speaks OpenAI's API."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.company_network import clean
from tests.fakes.loopback import Asked, Reply
from tests.integration.openai_service import Service
from tests.pages.blocks import ROOT, block, blocks
from tests.pages.shells import answer, environment, rows, typed

TUTORIAL = ROOT / "docs" / "guide" / "tutorial.md"
pytestmark = pytest.mark.slow


class Reviewer(Service):
    """Answers by the schema of the tutorial where one is asked for."""

    def _answer(self, call: Asked) -> Reply:
        reply = super()._answer(call)
        if isinstance(call.body, dict) and "response_format" in call.body:
            reply.body["choices"][0]["message"]["content"] = '{"praise": true}'
        return reply


@pytest.fixture
def reviewer(monkeypatch):
    clean(monkeypatch)
    service = Reviewer()
    yield service
    service.close()


@pytest.fixture
def typing(reviewer, tmp_path):
    env = environment(tmp_path / "home", OPENAI_BASE_URL=reviewer.url, OPENAI_API_KEY="sk-loopback-only")

    def type_it(text: str) -> str:
        done = typed(text, tmp_path, env)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    return type_it


def test_the_tutorial_is_typed_as_it_stands(typing, reviewer, tmp_path):
    told = typing(block(TUTORIAL, "Ten lines"))
    found = rows(told)
    assert [row["id"] for row in found] == "red green blue cyan pink gray gold lime teal navy".split()
    assert reviewer.asked()[0] == "Name a fruit that is blue. One word."

    told = typing(block(TUTORIAL, "A thousand lines, and answers that a program reads"))
    assert len(reviewer.asked()) == 1000
    assert "1 file" in told and "1,000" in told
    praise = typing("llmdo cat praise/")
    assert {answer(row) for row in rows(praise)} == {'{"praise": true}'}

    typing(block(TUTORIAL, "A hundred thousand lines"))
    assert reviewer.asked() == []  # there is no error to ask about again
    # "Add lines to the file, and only those are paid for."
    with (tmp_path / "reviews.jsonl").open("a") as file:
        file.write('{"id": 1001, "text": "One more."}\n')
    typing(block(TUTORIAL, "A thousand lines, and answers that a program reads").partition("praise.json\n")[2])
    assert reviewer.asked() == ["Is this praise? One more."]


PROGRAMS = [
    pytest.param(one.text, id=f"{one.page.name}: {one.heading}")
    for page in (
        ROOT / "docs" / "guide" / "library.md",
        ROOT / "docs" / "guide" / "own-pipeline.md",
        ROOT / "docs" / "models.md",
    )
    for one in blocks(page, "python")
]


@pytest.mark.parametrize("text", PROGRAMS)
def test_a_program_on_a_page_answers(cloudflare, reviewer, tmp_path, text):
    script = tmp_path / "program.py"
    script.write_text(text)
    home = environment(tmp_path / "home", PYTHONPATH=str(ROOT), **cloudflare.env)
    env = home | {"OPENAI_BASE_URL": reviewer.url, "OPENAI_API_KEY": "sk-loopback-only"}
    done = subprocess.run(
        [sys.executable, script], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 2


def test_the_lines_of_a_shard_in_readme_are_lines_of_a_shard():
    """Shortened by …, and with the fields that rows have, in their order."""
    text = next(one.text for one in blocks(ROOT / "README.md") if '"id":"r1"' in one.text)
    golden = json.loads((ROOT / "tests" / "golden" / "answers.jsonl").read_text().splitlines()[0])
    order = list(golden)
    for line in text.splitlines():
        shown = json.loads(line.replace(", …,", ",").replace(", …}", "}").replace("…", ""))
        assert [name for name in order if name in shown] == list(shown)
