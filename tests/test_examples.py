from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmdo.backends.errors import InvalidRequest
from llmdo.backends.requests import ChatRequest, EmbedRequest, RawRequest
from llmdo.transforms.prompts.parse import Defaults, Prompt, parse_prompt

EXAMPLES = Path(__file__).parents[1] / "examples"
# file → lines, the field that names a line, tokens of an answer at most (None: no chat)
GOOD: dict[str, tuple[int, str, int | None]] = {
    "support-tickets.jsonl": (16, "id", 6),
    "invoices.jsonl": (10, "custom_id", 40),
    "translate.jsonl": (12, "id", 24),
    "summaries.jsonl": (10, "id", 36),
    "search-index-embeddings.jsonl": (20, "id", None),
}
BROKEN = "broken-lines.jsonl"
DEFAULTS = Defaults("workers-ai/@cf/huggingface/smollm2-135m-instruct")


def parse(line: bytes) -> Prompt:
    return parse_prompt(line, "r", DEFAULTS, lambda _, model: 100 if "bge" in model else 1)


def documents(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (EXAMPLES / name).read_bytes().splitlines()]


def test_there_is_no_example_without_a_test_and_they_are_enough_for_a_demo() -> None:
    assert {path.name for path in EXAMPLES.glob("*.jsonl")} == {*GOOD, BROKEN}
    assert sum(lines for lines, _, _ in GOOD.values()) >= 60


@pytest.mark.parametrize("name", GOOD)
def test_every_line_is_a_request_with_an_id_of_its_own(name: str) -> None:
    lines, field, max_tokens = GOOD[name]
    found = documents(name)
    assert len(found) == lines
    assert len({document[field] for document in found}) == lines
    for line in (EXAMPLES / name).read_bytes().splitlines():
        request = parse(line).request
        if max_tokens is None:
            assert isinstance(request, EmbedRequest)
        else:
            assert isinstance(request, ChatRequest)
            assert request.parameters["max_tokens"] <= max_tokens


@pytest.mark.parametrize("name", [name for name, (_, _, tokens) in GOOD.items() if tokens])
def test_chat_lines_name_no_model_so_that_the_run_decides(name: str) -> None:
    assert not any(parse(line).own_model for line in (EXAMPLES / name).read_bytes().splitlines())


def test_embedding_lines_name_their_own_model() -> None:
    assert {document["model"] for document in documents("search-index-embeddings.jsonl")} == {"@cf/baai/bge-m3"}


def test_the_examples_show_each_shape_of_a_line() -> None:
    assert all("messages" in document for document in documents("support-tickets.jsonl"))
    assert all("prompt" in document for document in documents("translate.jsonl"))
    assert all(document["url"] == "/v1/chat/completions" for document in documents("invoices.jsonl"))
    assert all("text" in document for document in documents("search-index-embeddings.jsonl"))


def test_the_broken_lines_are_broken_each_in_its_way_and_the_others_are_good() -> None:
    lines = (EXAMPLES / BROKEN).read_bytes().split(b"\n")
    assert len(lines) == 14
    good, wrong, blank = [], {}, 0
    for number, line in enumerate(lines):
        if not line.strip():
            blank += 1
            continue
        try:
            prompt = parse(line)
        except InvalidRequest as error:
            wrong[number] = error.message.partition(":")[0]
            continue
        if str(prompt.id).startswith("good-"):
            assert isinstance(prompt.request, ChatRequest)
            good.append(prompt.id)
        elif isinstance(prompt.request, RawRequest):
            assert prompt.request.input == {"max_tokens": 8}  # the model refuses it: there is no prompt
        else:
            assert prompt.request.model == "@cf/example/no-such-model"  # the provider refuses it
    assert good == ["good-1", "good-2", "good-3", "good-4"]
    assert blank == 2
    assert wrong == {
        1: "not valid JSON",
        4: "a line must be a JSON object, not an array",
        6: "not valid JSON",
        9: "'prompt' must be a string, not a number",
        11: "'messages' is wrong at 0.role",
        12: "there is nothing to answer",
    }
    assert lines[3].endswith(b"\r")
    with pytest.raises(UnicodeDecodeError):
        lines[6].decode()
    assert lines[-1], "the last line has no line ending"
