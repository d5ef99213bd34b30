"""The reference is made of docstrings: each public name has one, which says what each of its arguments is."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import llmdo

NAMES = [name for name in llmdo.__all__ if name != "__version__"]


def own_docstring(value: Any) -> str:
    """Not one that is inherited, nor what a dataclass writes by itself."""
    found: str = (vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__) or ""
    return "" if re.match(rf"{getattr(value, '__name__', '')}\(", found) else found


def arguments(value: Callable[..., Any]) -> list[str]:
    """Those that a user can name."""
    unnamed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = inspect.signature(value).parameters.values()
    return [one.name for one in found if one.kind not in unnamed and one.name != "self"]


def has_own_arguments(value: type) -> bool:
    """Whether a class has others than its base, whose docstring would say them."""
    return "__init__" in vars(value)


def unexplained(value: Callable[..., Any], text: str) -> list[str]:
    """The arguments that a docstring does not name: as ``name``, or at the begin of a line as in ``name, other: …``."""
    return [
        name
        for name in arguments(value)
        if not re.search(rf"``{name}``|^ *(?:\w+, )*{name}(?:, \w+)*: ", text, re.MULTILINE)
    ]


def methods(value: Any) -> Iterator[tuple[str, Any]]:
    """The public ones of a class of ours."""
    for name, one in vars(value).items() if inspect.isclass(value) else ():
        if not name.startswith("_") and (inspect.isfunction(one) or isinstance(one, property)):
            yield name, one


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_says_what_it_is_and_what_each_argument_is(name):
    value = getattr(llmdo, name)
    text = own_docstring(value)
    assert len(text.split()) >= 5, "too short to say anything"
    if inspect.isfunction(value) or (inspect.isclass(value) and has_own_arguments(value)):
        assert unexplained(value, text) == []
    if inspect.isfunction(value):
        assert re.search(r"Raises[ :]", text)


@pytest.mark.parametrize("name", NAMES)
def test_each_public_method_says_what_it_does(name):
    said = {of: (one.__doc__ or "").strip() for of, one in methods(getattr(llmdo, name))}
    assert [of for of, text in said.items() if len(text.split()) < 3] == []


def test_a_docstring_that_leaves_out_an_argument_is_seen():
    def some(one: int, two: int, three: int) -> None: ...

    assert unexplained(some, "The ``one`` of all.\n\n    two, three: seconds.") == []
    assert unexplained(some, "The one of all, two and three.") == ["one", "two", "three"]
    assert own_docstring(type("Mine", (), {"__doc__": "Mine(x: int)"})) == ""
