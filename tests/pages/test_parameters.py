"""docs/parameters.md says what the code does with each parameter of OpenAI's own types, and those are all there are."""

import importlib.util
import typing
from pathlib import Path

import pytest
from openai.types import EmbeddingCreateParams
from openai.types.chat import completion_create_params as chats
from openai.types.responses import response_create_params as responses

from llmdo.transforms.prompts.fields import NEVER

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made():
    spec = importlib.util.spec_from_file_location("parameters_page", ROOT / "docs" / "site" / "parameters.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def names_of(*kinds):
    return {name for kind in kinds for name in typing.get_type_hints(kind)}


def test_every_parameter_of_openais_types_has_a_row(made):
    chat = names_of(*typing.get_args(chats.CompletionCreateParams)) - {"model", "messages"}
    assert chat == set(made.SAMPLES)
    assert names_of(EmbeddingCreateParams) - {"model", "input"} == set(made.EMBEDDING_SAMPLES)
    assert names_of(*typing.get_args(responses.ResponseCreateParams)) == set(made.FIELDS)


def test_the_page_is_as_the_code_has_it(made):
    page = made.PAGE.read_text(encoding="utf-8")
    assert made.with_tables(page) == page, "run make parameters"


def test_openai_gets_every_parameter_of_its_own(made):
    """And nobody leaves one out silently."""
    for name, value in made.SAMPLES.items():
        if name in NEVER:
            continue
        found = {provider: made.outcome(name, value, make) for provider, (make, _) in made.CHATS.items()}
        assert found["OpenAI"].startswith(("passed", "as `")), name
        assert found["another base URL, Braintrust"].startswith(("passed", "as `")), name
        assert "in the row" not in found.values(), name
    for name, value in made.EMBEDDING_SAMPLES.items():
        for make, _ in made.EMBEDDINGS.values():
            assert made.outcome(name, value, make) in ("passed", "warning") or name == "encoding_format"


def test_a_table_without_a_place_is_an_error(made):
    with pytest.raises(ValueError, match="no place for the table chats"):
        made.with_tables("# Parameters")
