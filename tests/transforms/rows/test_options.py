"""AskModel has what the command has that concerns asking: an option of one is decided for the other."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import pytest

from llmdo import AskModel, ModelHandler
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.limits.rates import Rates
from llmdo.backends.money.limits import Limits
from llmdo.pipelines.options import JsonlOptions

# By option of the command: the argument of AskModel.
SAME = {
    "model": "model",
    "prompt": "prompt",
    "system": "system",
    "response_schema": "schema",
    "max_tokens": "parameters",
    "temperature": "parameters",
    "concurrency": "concurrency",
    "workers": "workers",
    "rpm": "rpm",
    "tpm": "tpm",
    "lane": "lane",
    "deadline": "deadline_s",
    "call_timeout": "call_timeout_s",
    "patience": "patience_s",
    "max_cost": "max_cost",
    "max_tokens_total": "max_tokens_total",
    "price_file": "prices",
    "ledger": "ledger",
    "reuse": "key",
    "gateway": "gateway",
    "header": "headers",
}
# By option: why AskModel has none.
WITHOUT = {
    "its pipeline reads the rows": "files input queue prefix retry format range_bytes max_line_bytes max_file_bytes "
    "poll_seconds",
    "its pipeline writes the rows": "output batch_size batch_seconds vectors notify_queue",
    "its pipeline chooses the runner": "runner flink dataflow processes continuous prism_location allow_open_ports "
    "drain_seconds max_restarts",
    "a step has one model: another one is another step": "model_for line_models",
    "with a prompt, fields are the row's data": "line_parameters",
    "records of batches and leases of a budget are in an output, and a step has none": "mode detach ready_by budget",
    "rows name no media of an input of theirs": "media_from max_media_bytes",
}
OWN = {"embed", "into"}  # rows have columns, and lines have none


def test_every_option_of_the_command_is_decided_for_the_step_and_the_other_way_round() -> None:
    without = [name for names in WITHOUT.values() for name in names.split()]
    assert sorted([*SAME, *without]) == sorted(JsonlOptions.model_fields)
    assert {*SAME.values(), *OWN} == {one.name for one in fields(AskModel)}


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({"concurrency": 3}, "window", 3),
        ({"concurrency": "fixed:5"}, "window", 5),
        ({"concurrency": "fixed:5"}, "fixed", True),
        ({"workers": 4}, "workers", 4),
        ({"rpm": 5, "tpm": 6}, "rates", Rates(5, 6)),
        ({"lane": "flex"}, "lane", "flex"),
        ({"max_cost": 1.5, "max_tokens_total": 9}, "limits", Limits(1.5, 9)),
        ({"gateway": "mine"}, "gateway", "mine"),
        ({"headers": ["api-key=KEY"]}, "headers", ("api-key=KEY",)),
        ({"call_timeout_s": 7.0}, "call_timeout_s", 7.0),
        ({"patience_s": 8.0}, "patience_s", 8.0),
    ],
    ids=lambda one: str(one) if isinstance(one, str) else None,
)
def test_what_is_given_reaches_the_calls(given: dict[str, Any], name: str, value: Any) -> None:
    assert getattr(AskModel("openai/m", **given)._calls, name) == value
    assert getattr(AskModel("openai/m")._calls, name) != value


@pytest.mark.parametrize("step", [AskModel, ModelHandler])
@pytest.mark.parametrize("wrong", [0, -1, 5000, "fast", "fixed:", True, 2.5, None])
def test_a_concurrency_that_cannot_be_is_refused_in_a_sentence(step: Any, wrong: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(f"concurrency={wrong!r}: write a number")):
        step("openai/m", concurrency=wrong)


def test_the_handler_takes_a_fixed_concurrency_too() -> None:
    handler = ModelHandler("openai/m", concurrency="fixed:5")
    assert (handler._calls.window, handler._calls.fixed) == (5, True)
    assert handler.batch_elements_kwargs()["max_batch_size"] == 20
    assert not ModelHandler("openai/m", concurrency=5)._calls.fixed


def test_the_deadline_and_the_prices_reach_the_calls() -> None:
    calls: CallSettings = AskModel("openai/m", deadline_s=9.0, prices={"openai/m": {"input": 1, "output": 2}})._calls
    assert calls.retry.deadline_s == 9.0
    assert calls.prices


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"deadline_s": 0}, {"lane": "batch"}, {"patience_s": 0}], ids=str)
def test_what_cannot_be_is_refused_with_its_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AskModel("openai/m", **wrong)
