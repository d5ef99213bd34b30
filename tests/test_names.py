"""One public name, one thing: what two modules both call by a name is listed here with the reason."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache

from tests.test_rooms import modules

# The same thing seen from two sides, or the name that a convention gives it.
MEANT = {
    "a program's or a pipeline's entry": "app build launch main",
    "the examples of a command's help": "EXAMPLES",
    "a command, and the function that does it": "ask cat chat explain export retry run schedule stream verify",
    "type variables": "M R T",
    "what a provider's module has, and the table that finds it": "chats open_backend published_rates takes_own_input",
    "one step in two providers": "chat_body is_refusal model_info refusal request_id MAX_TEXTS PROVIDER",
    "connects to a provider, with calls that wait or without": "connect",
    "a runner's own checks of its options": "check",
}
# Two things by one name. A new thing gets a name of its own, so this list only shrinks.
LEFT = "Done Ledger Opened bounded checked"


def names(tree: ast.Module) -> Iterator[str]:
    """The public names that a module defines at its top."""
    for node in tree.body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                found = [node.name]
            case ast.Assign():
                found = [part.id for target in node.targets for part in ast.walk(target) if isinstance(part, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=name)):
                found = [name]
            case _:
                found = []
        yield from (name for name in found if not name.startswith("_"))


@cache
def shared() -> dict[str, list[str]]:
    """Public names that two or more modules define, with these modules."""
    places = defaultdict(set)
    for module, path in modules().items():
        for name in names(ast.parse(path.read_text(encoding="utf-8"))):
            places[name].add(module)
    return {name: sorted(found) for name, found in places.items() if len(found) > 1}


def test_a_public_name_stands_for_one_thing() -> None:
    known = {*" ".join(MEANT.values()).split(), *LEFT.split()}
    assert {name: found for name, found in shared().items() if name not in known} == {}
