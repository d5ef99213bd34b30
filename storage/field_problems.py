"""What is wrong with a field, in plain words instead of pydantic's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

# By pydantic's type of the error; {…} stands for a value of the field's own rule.
_EXPECTED: Mapping[str, str] = {
    "missing": "is missing",
    "extra_forbidden": "is not known here",
    "json_invalid": "is not valid JSON ({error})",
    "string_type": "must be a string",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must fit the pattern {pattern}",
    "string_unicode": "must be valid UTF-8",
    "bytes_type": "must be a string",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "must be a smaller number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "none_required": "must be null",
    "dict_type": "must be a JSON object",
    "mapping_type": "must be a JSON object",
    "model_type": "must be a JSON object",
    "model_attributes_type": "must be a JSON object",
    "dataclass_type": "must be a JSON object",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "set_type": "must be a list",
    "frozen_set_type": "must be a list",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "value_error": "{error}",
    "assertion_error": "{error}",
    "datetime_type": "must be a date in ISO 8601",
    "datetime_parsing": "must be a date in ISO 8601",
    "datetime_from_date_parsing": "must be a date in ISO 8601",
    "timezone_aware": "must be a date with its time zone",
}


def expected(detail: ErrorDetails) -> str:
    """What a field must be, as the end of a sentence that begins with its name: ``must be a string``."""
    context = detail.get("ctx", {})
    if detail["type"] == "string_too_short" and context.get("min_length") == 1:
        return "must not be empty"
    if words := _EXPECTED.get(detail["type"]):
        return words.format_map(context)
    return detail["msg"].replace("Input should", "must", 1)


def first_problem(error: ValidationError) -> str:
    """The first wrong field and everything it may be: ``'args.id' is wrong: it must be a string``."""
    details = error.errors(include_url=False)
    where = _field(details[0])
    # A field that may have one of several types has an error for each of them.
    reasons = list(dict.fromkeys(expected(detail) for detail in details if _field(detail) == where))
    also = [reason.removeprefix("must be ") for reason in reasons[1:] if reason.startswith("must be ")]
    reason = " or ".join([reasons[0], *also])
    reason = f"it {reason}" if reason.startswith(("must ", "is ")) else reason
    return f"{where} is wrong: {reason}" if where else reason


def _field(detail: ErrorDetails) -> str:
    names: list[Any] = list(detail["loc"])
    while len(names) > 1 and _is_type(names[-1]):
        names.pop()
    return repr(".".join(map(str, names))) if names else ""


def _is_type(name: Any) -> bool:
    """Whether a part of an error's location is one of the field's types, not a field."""
    return isinstance(name, str) and (name in {"str", "int", "float", "bool", "none"} or "[" in name)
