"""Runs every promise of ``conformance`` against every provider."""

import asyncio

import pytest

from llmdo.backends.llama_cpp.weights import Weights
from llmdo.backends.providers import PROVIDERS
from tests.backends import conformance
from tests.backends.services import EMBEDDED, SUBJECTS

HTTP = [subject for subject in SUBJECTS if subject.service]


def name(value):
    return getattr(value, "__name__", str(value)).replace("_", " ")


@pytest.fixture(autouse=True)
def secrets(monkeypatch):
    for variable in ("CLOUDFLARE_API_TOKEN", "OPENAI_API_KEY", "BRAINTRUST_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(variable, conformance.SECRET)


@pytest.fixture(scope="module")
def loaded():
    """Keeps the embedded weights loaded from one promise to the next."""
    weights = Weights()
    yield
    weights.close()


@pytest.mark.parametrize("subject", SUBJECTS, ids=str)
@pytest.mark.parametrize("promise", conformance.PROMISES, ids=name)
def test_a_provider(promise, subject):
    asyncio.run(promise(subject))


@pytest.mark.parametrize("subject", HTTP, ids=str)
@pytest.mark.parametrize("promise", conformance.HTTP_PROMISES, ids=name)
def test_a_provider_over_http(promise, subject):
    asyncio.run(promise(subject))


@pytest.mark.model
@pytest.mark.parametrize("promise", conformance.PROMISES, ids=name)
def test_the_embedded_model(promise, loaded):
    asyncio.run(promise(EMBEDDED))


def test_no_provider_of_the_table_is_left_out():
    assert {subject.name.partition(",")[0] for subject in (*SUBJECTS, EMBEDDED)} >= set(PROVIDERS)
