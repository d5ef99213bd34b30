"""Checks that a graph of a user's own can lose no line: all steps are there, once, as their run needs them, in a chain.

A step of the user's own within the chain could drop a line, whose file would stay open for ever, or double one.
ChangeLines can do neither. In branches and behind the chain anything may stand.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from typing import Any

import apache_beam as beam
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor
from apache_beam.pvalue import PCollection

from llmdo.pipelines.graph.steps import Steps
from llmdo.pipelines.usage import UsageError
from llmdo.transforms.own.change_lines import ChangeLines

# In their order. ChangeLines may stand between two of them.
CHAIN = ("find_files", "open_files", "read_lines", "infer", "write_shards", "settle_files")
_CHANGED = ("read_lines", "infer")


def check_chain(pipeline: beam.Pipeline, steps: Steps, settled: Any) -> None:
    """Checks a graph that ends in ``settled``. Raises UsageError with the first thing that is wrong."""
    ours: dict[str, Any] = {name: getattr(steps, name)() for name in CHAIN}
    _check_numbers(pipeline, ours)
    end, behind = settled, ""
    for name in reversed(CHAIN):
        node = _step_of(end)
        while (name, behind) == _CHANGED and node is not None and isinstance(node.transform, ChangeLines):
            _check_same(node.transform, ChangeLines(node.transform.change, steps.run), "change_lines", ("run",))
            end = node.inputs[0]
            node = _step_of(end)
        if node is None or type(node.transform) is not type(ours[name]):
            raise UsageError([_between(name, behind, end)])
        _check_same(node.transform, ours[name], name, [field.name for field in fields(ours[name])])
        end, behind = node.inputs[0], name


def _check_numbers(pipeline: beam.Pipeline, ours: dict[str, Any]) -> None:
    found: Counter[type] = Counter()

    class Counting(PipelineVisitor):
        def enter_composite_transform(self, node: AppliedPTransform) -> None:
            found[type(node.transform)] += 1

    pipeline.visit(Counting())
    for name, step in ours.items():
        number = found[type(step)]
        if number != 1:
            raise UsageError([f"the graph has steps.{name}() {number} times: use each step once"])


def _step_of(end: Any) -> AppliedPTransform | None:
    """The step of ours that a collection is the output of, or None."""
    node = end.producer if isinstance(end, PCollection) else None
    while node is not None and not (type(node.transform).__module__ or "").startswith("llmdo.transforms."):
        node = node.parent
    while node is not None and node.parent is not None and _is_ours(node.parent):
        node = node.parent
    return node


def _is_ours(node: AppliedPTransform) -> bool:
    return type(node.transform).__module__.startswith("llmdo.transforms.")


def _check_same(step: Any, ours: Any, name: str, names: Any) -> None:
    other = [one for one in names if getattr(step, one) != getattr(ours, one)]
    if other:
        raise UsageError(
            [f"{' and '.join(other)} of {type(step).__name__} is not the run's: take the step from steps.{name}()"]
        )


def _between(name: str, behind: str, end: Any) -> str:
    if not behind:
        return f"the graph ends with something else than steps.{name}(): return its output, and use it in branches"
    label = end.producer.full_label.partition("/")[0] if isinstance(end, PCollection) and end.producer else "nothing"
    said = f"{label!r} stands between steps.{name}() and steps.{behind}(), where it could lose or double lines"
    if (name, behind) == _CHANGED:
        return f"{said}: put what it does into steps.change_lines(function)"
    return f"{said}: connect the two, and put it into a branch"
