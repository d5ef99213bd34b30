from datetime import datetime
from typing import Annotated, Any, Literal

import pytest
from pydantic import AwareDatetime, BaseModel, Field, ValidationError, field_validator

from llmdo.storage.field_problems import first_problem


class Inner(BaseModel):
    count: int = 1


class Record(BaseModel, extra="forbid"):
    id: Annotated[str, Field(min_length=1)] = "x"
    size: int = 1
    price: float = 1.0
    done: bool = False
    role: Literal["user", "assistant"] = "user"
    context: str | dict[str, Any] | None = None
    inner: Inner | None = None
    shards: list[int] = []
    at: datetime | None = None
    zoned: AwareDatetime | None = None
    rate: Annotated[float, Field(gt=0, le=9, allow_inf_nan=False)] = 1.0
    checked: str = ""

    @field_validator("checked")
    @classmethod
    def _check(cls, value: str) -> str:
        if value:
            raise ValueError("must stay empty here")
        return value


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"id": 7}, "'id' is wrong: it must be a string"),
        ({"id": ""}, "'id' is wrong: it must not be empty"),
        ({"size": "many"}, "'size' is wrong: it must be a whole number"),
        ({"size": 1.5}, "'size' is wrong: it must be a whole number"),
        ({"price": []}, "'price' is wrong: it must be a number"),
        ({"done": "perhaps"}, "'done' is wrong: it must be true or false"),
        ({"role": "tool"}, "'role' is wrong: it must be 'user' or 'assistant'"),
        ({"context": 7}, "'context' is wrong: it must be a string or a JSON object"),
        ({"inner": {"count": None}}, "'inner.count' is wrong: it must be a whole number"),
        ({"inner": 3}, "'inner' is wrong: it must be a JSON object"),
        ({"shards": {}}, "'shards' is wrong: it must be a list"),
        ({"shards": [1, "x"]}, "'shards.1' is wrong: it must be a whole number"),
        ({"at": "soon"}, "'at' is wrong: it must be a date in ISO 8601"),
        ({"zoned": "2025-06-11T09:30:00"}, "'zoned' is wrong: it must be a date with its time zone"),
        ({"rate": 0}, "'rate' is wrong: it must be above 0.0"),
        ({"rate": 10}, "'rate' is wrong: it must be at most 9.0"),
        ({"rate": float("nan")}, "'rate' is wrong: it must be a finite number"),
        ({"checked": "no"}, "'checked' is wrong: it must stay empty here"),
        ({"other": 1}, "'other' is wrong: it is not known here"),
        ([], "it must be a JSON object"),
    ],
)
def test_a_wrong_field_is_named_with_what_is_expected_in_plain_words(document, says):
    with pytest.raises(ValidationError) as caught:
        Record.model_validate(document)
    assert first_problem(caught.value) == says


def test_text_that_is_not_json_says_so():
    with pytest.raises(ValidationError) as caught:
        Record.model_validate_json("{")
    assert first_problem(caught.value).startswith("it is not valid JSON (EOF")


def test_a_field_that_is_missing_is_named():
    class Needs(BaseModel):
        key: str

    with pytest.raises(ValidationError) as caught:
        Needs.model_validate({})
    assert first_problem(caught.value) == "'key' is wrong: it is missing"
