import pytest

from llmdo.backends.responses import Price
from llmdo.backends.workers_ai.catalogue import model_info


def entry(*properties, name="@cf/x/y", **more):
    listed = [{"property_id": name, "value": value} for name, value in properties]
    return {"id": "uuid", "name": name, "task": {"name": "Text Generation"}, "properties": listed, **more}


def prices(*rows):
    return [{"unit": unit, "price": price, "currency": "USD"} for unit, price in rows]


def test_an_entry_is_read_whole():
    info = model_info(
        entry(
            ("context_window", "256000"),
            (
                "price",
                prices(("per M input tokens", 0.15), ("per M output tokens", 0.5), ("per M cached tokens", 0.03)),
            ),
            ("function_calling", "true"),
            ("vision", "true"),
            ("reasoning", "true"),
            ("async_queue", "true"),
            ("require_workers_paid", "true"),
            ("beta", "false"),
            ("planned_deprecation_date", "2027-01-31 00:00:00"),
            name="@cf/zai-org/glm-5.3-flash",
            description="A model.",
        )
    )
    assert (info.name, info.task) == ("workers-ai/@cf/zai-org/glm-5.3-flash", "Text Generation")
    assert (info.description, info.context_tokens) == ("A model.", 256_000)
    assert info.price == Price(0.15, 0.5, 0.03)
    assert info.capabilities == {"tools", "vision", "reasoning", "batch", "paid plan only", "json"}
    assert info.deprecated == "2027-01-31"
    assert info.properties["beta"] == "false"


@pytest.mark.parametrize(
    ("listed", "price"),
    [
        (prices(("per M input tokens", 0.0118)), Price(0.0118)),
        (prices(("per audio minute", 0.00051)), Price(0.00051, unit="audio minute")),
        (prices(("per 512 by 512 tile", 0.00005), ("per step", 0.0001)), Price(0.00005, unit="512 by 512 tile")),
        ([], None),
        (None, None),
        ("free", None),
        ([{"unit": "per M input tokens", "price": "cheap"}, 7], None),
        (prices(("per M input tokens", -1.0), ("per M output tokens", float("nan"))), None),
    ],
)
def test_prices_are_by_the_million_tokens_or_by_their_own_unit(listed, price):
    assert model_info(entry(("price", listed))).price == price


def test_bge_m3_takes_batches_though_its_entry_does_not_say_so():
    assert "batch" in model_info(entry(name="@cf/baai/bge-m3")).capabilities


@pytest.mark.parametrize(
    "odd", [{}, {"properties": "x"}, {"properties": [1, {"value": 2}]}, {"task": "x"}, {"description": None}]
)
def test_an_odd_entry_is_a_model_about_which_little_is_known(odd):
    info = model_info({"name": "@cf/x/y", **odd})
    assert (info.name, info.price, info.context_tokens, info.deprecated) == ("workers-ai/@cf/x/y", None, None, "")
