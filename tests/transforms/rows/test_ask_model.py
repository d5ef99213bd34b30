"""AskModel in pipelines of others: rows in, rows out, each answer paid once."""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.error_handling import CollectingErrorHandler
from apache_beam.transforms.window import FixedWindows, GlobalWindow, IntervalWindow, TimestampedValue
from apache_beam.typehints.schemas import named_fields_from_element_type
from apache_beam.utils.timestamp import Timestamp

import llmdo
from llmdo import AskModel
from llmdo.backends.engine import registry
from llmdo.backends.engine.registry import close_engines
from llmdo.backends.errors import BadReply, EngineClosed, InvalidRequest, ModelNotFound, Unauthorized
from llmdo.backends.limits import retry
from llmdo.backends.responses import ChatResponse, EmbedResponse
from llmdo.backends.usage import Usage
from llmdo.transforms.rows.ask_model import _Ask
from llmdo.transforms.rows.asking import Asking
from llmdo.transforms.rows.columns import answer_values, property_columns

CHAT, EMBED = "workers-ai/@cf/chat", "@cf/baai/bge-m3"


@dataclass
class Provider:
    """Stands for a provider; ``calls`` counts the questions that were paid for."""

    name: str = "workers-ai"
    calls: Counter[str] = field(default_factory=Counter)
    most: int = 0
    _running: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    async def execute(self, request):
        text = request.messages[-1].content
        with self._lock:
            self._running += 1
            self.most = max(self.most, self._running)
        await asyncio.sleep(0.01)
        with self._lock:
            self._running -= 1
            self.calls[text] += 1
        if "bad" in text:
            raise InvalidRequest("does not fit", code=5006)
        if "gone" in text:
            raise ModelNotFound("the account does not have this model", about="account")
        if "locked" in text:
            raise Unauthorized("the token is wrong")
        if "response_format" in request.parameters:
            text = '{"label": "good", "score": 3, "tags": ["a", "b"], "place": {"x": 1.5}, "any": [1, null]}'
            return ChatResponse(text, "stop", Usage(3, 2), request.model)
        return ChatResponse(f"re: {text}", "stop", Usage(3, 2), request.model)

    async def embed(self, request):
        self.calls.update(request.texts)
        return EmbedResponse(tuple((float(len(t)), 0.5) for t in request.texts), Usage(1), request.model)

    def max_texts(self, model):
        return 10 if "bge" in model else 1

    async def aclose(self):
        pass


@pytest.fixture
def provider(monkeypatch) -> Iterator[Provider]:
    provider = Provider()
    monkeypatch.setattr(registry, "connect", lambda name, gateway: provider)
    close_engines()
    retry.set_instant(True)
    yield provider
    retry.set_instant(False)
    close_engines()


Ticket = NamedTuple("Ticket", [("id", int), ("text", str)])  # noqa: UP014  Beam reads no postponed annotations


def asked(
    rows: Sequence[Any], step: beam.PTransform, checks: Callable[[Any], object], kind: Any = None
) -> beam.runners.runner.PipelineResult:
    with TestPipeline(runner="FnApiRunner") as pipeline:
        create = beam.Create(rows, reshuffle=False)
        checks(pipeline | (create.with_output_types(kind) if kind else create) | step)
    return pipeline.result


@pytest.mark.parametrize("count", [0, 1, 3, 100])
def test_rows_with_a_schema_keep_their_fields_and_get_an_answer(provider, count):
    def checks(answers):
        fields = named_fields_from_element_type(answers.element_type)
        assert [name for name, _ in fields] == ["id", "text", "answer", "error"]
        assert [kind for _, kind in fields][1:] == [str, str | None, str | None]  # Beam has an int as NumPy's
        plain = answers | beam.Map(lambda row: (row.id, row.text, row.answer, row.error))
        assert_that(plain, equal_to([(i, f"t{i}", f"re: Sum: t{i}", None) for i in range(count)]))

    asked([Ticket(i, f"t{i}") for i in range(count)], AskModel(CHAT, "Sum: {text}"), checks, Ticket)
    assert sum(provider.calls.values()) == count


@pytest.mark.parametrize(
    ("row", "whole"),
    [
        ("hello", {"text": "hello", "answer": "re: hello", "error": None}),
        (beam.Row(text="hello", n=1), {"text": "hello", "n": 1, "answer": "re: hello", "error": None}),
        ({"text": "hello", "when": object}, {"text": "hello", "when": object, "answer": "re: hello", "error": None}),
    ],
    ids=["text", "Row", "dict"],
)
def test_texts_rows_and_dicts_are_asked_alike(provider, row, whole):
    def checks(answers):
        assert_that(answers | beam.Map(lambda one: one if isinstance(one, dict) else one._asdict()), equal_to([whole]))

    asked([row], AskModel(CHAT, "{text}"), checks)


def _of_any_kind(number):  # no hint: Beam cannot tell what it gives
    return ("t0", {"text": "t1"}, eval("beam.Row(text='t2')"), Ticket(3, "t3"))[number]


def test_rows_of_which_beam_knows_nothing_are_answered_each_in_its_own_kind(provider):
    with TestPipeline(runner="FnApiRunner") as pipeline:
        rows = pipeline | beam.Create(range(4)) | beam.Map(_of_any_kind)
        answers = rows | AskModel(CHAT, "{text}")
        found = answers | beam.Reshuffle() | beam.Map(lambda row: row if isinstance(row, dict) else row._asdict())
        plain = found | "Plain" >> beam.Map(lambda row: (row["text"], row["answer"], len(row)))
        assert_that(plain, equal_to([(f"t{n}", f"re: t{n}", 3 + (n == 3)) for n in range(4)]))


@pytest.mark.parametrize(
    "rows", [["t0", {"text": "t1"}], [{"text": "t0"}, {"text": "t1", "n": 1}]], ids=["both", "dicts"]
)
def test_texts_and_dicts_in_one_collection_are_answered(provider, rows):
    asked(
        rows,
        AskModel(CHAT, "{text}"),
        lambda a: assert_that(
            a | beam.Reshuffle() | beam.Map(lambda r: r["answer"] if isinstance(r, dict) else r.answer),
            equal_to(["re: t0", "re: t1"]),
        ),
    )


def test_a_text_without_a_prompt_is_the_prompt(provider):
    asked(["hi"], AskModel(CHAT), lambda a: assert_that(a | beam.Map(lambda r: r.answer), equal_to(["re: hi"])))


def test_a_row_without_an_answer_says_why_and_the_others_go_on(provider):
    def checks(answers):
        found = answers | beam.Map(lambda row: (row["id"], row["answer"], row["error"]))
        missing = "BadLine: the line has no 'text', which the template needs: add it, or leave the line out"
        assert_that(
            found,
            equal_to([(1, "re: a", None), (2, None, "InvalidRequest: does not fit"), (3, None, missing)]),
        )

    asked([{"id": 1, "text": "a"}, {"id": 2, "text": "bad"}, {"id": 3}], AskModel(CHAT, "{text}"), checks)


def test_failures_leave_by_another_way(provider):
    def checks(both):
        answers, failures = both
        assert [name for name, _ in named_fields_from_element_type(answers.element_type)] == ["id", "text", "answer"]
        assert_that(answers | "1" >> beam.Map(lambda r: r.answer), equal_to(["re: a"]), label="answers")
        known = failures | "2" >> beam.Map(lambda r: (r.row.id, r.error_class, r.code, r.message, r.retryable))
        assert_that(known, equal_to([(2, "InvalidRequest", "5006", "does not fit", False)]), label="failures")

    rows = [Ticket(1, "a"), Ticket(2, "bad")]
    asked(rows, AskModel(CHAT, "{text}").with_exception_handling(), checks, Ticket)


def test_failures_go_to_beams_error_handler(provider):
    with TestPipeline(runner="FnApiRunner") as pipeline:
        with CollectingErrorHandler() as handler:
            rows = pipeline | beam.Create([{"text": "a"}, {"text": "bad"}], reshuffle=False)
            answers = rows | AskModel(CHAT, "{text}").with_error_handler(handler)
        assert_that(answers | beam.Map(sorted), equal_to([["answer", "text"]]), label="answers")
        bad = handler.output() | beam.Map(lambda failure: failure.row)
        assert_that(bad, equal_to([{"text": "bad"}]), label="failures")


SCHEMA = {
    "type": "object",
    "properties": {
        "label": {"type": "string"},
        "score": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "place": {"$ref": "#/$defs/Place"},
        "any": {},
        "text": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "$defs": {"Place": {"type": "object", "properties": {"x": {"type": "number"}}}},
}


def test_a_schema_gives_typed_columns(provider):
    def checks(answers):
        kinds = dict(named_fields_from_element_type(answers.element_type))
        assert list(kinds) == ["id", "text", "answer", "label", "score", "tags", "place", "any", "answer_text", "error"]
        assert "Sequence[typing.Optional[str]]" in str(kinds["tags"])
        assert {kinds[name] for name in ("label", "any", "answer_text")} == {str | None}
        cells = answers | beam.Map(lambda r: (r.label, r.score, list(r.tags), r.place.x, r.any, r.answer_text, r.error))
        assert_that(cells, equal_to([("good", 3, ["a", "b"], 1.5, "[1,null]", None, None)]))

    step = AskModel(CHAT, "{text}", schema=SCHEMA)

    # Rows are encoded and decoded between stages.
    asked([Ticket(1, "x")], step, lambda answers: checks(answers | beam.Reshuffle()), Ticket)


def test_a_number_that_a_column_cannot_hold_is_an_error_of_its_row():
    columns = property_columns({"properties": {"n": {"type": "integer"}}}, ())
    assert answer_values(f'{{"n": {2**63 - 1}}}', columns) == {"n": 2**63 - 1}
    assert answer_values(f'{{"n": {-(2**63)}}}', columns) == {"n": -(2**63)}
    for number in (2**63, -(2**63) - 1, "true", 1.5, '"1"'):
        with pytest.raises(BadReply, match="'n' is "):
            answer_values(f'{{"n": {number}}}', columns)


def test_an_answer_that_its_columns_cannot_hold_fails_its_row_alone(provider):
    step = AskModel(CHAT, "{text}", schema={"properties": {"label": {"type": "integer"}}})
    why = "BadReply: the answer does not fit its columns: 'label' is 'good', and its column is of another type"

    def checks(answers):
        cells = answers | beam.Map(lambda row: (row["answer"], row["label"], row["error"]))
        assert_that(cells, equal_to([(None, None, why)]))

    asked([{"text": "x"}], step, checks)


@pytest.mark.parametrize("text", ["a", "bad"])
def test_rows_keep_their_times_and_windows(provider, text):
    def seen(row, time=beam.DoFn.TimestampParam, window=beam.DoFn.WindowParam):
        return time, window, row["text"]

    with TestPipeline(runner="FnApiRunner") as pipeline:
        row = pipeline | beam.Create([{"text": text}]) | beam.Map(lambda row: TimestampedValue(row, 15))
        answers = row | beam.WindowInto(FixedWindows(10)) | AskModel(CHAT, "{text}")
        assert_that(answers | beam.Map(seen), equal_to([(Timestamp(15), IntervalWindow(10, 20), text)]))


def test_columns_never_share_a_name():
    schema = {"properties": {key: {"type": "string"} for key in ("answer", "answer_answer", "text", "answer_text")}}
    names = [one.column for one in property_columns(schema, ["answer", "text", "error"])]
    assert names == ["answer_answer", "answer_answer_answer", "answer_text", "answer_answer_text"]


@pytest.mark.parametrize(
    ("schema", "value", "column"),
    [
        ({"oneOf": [{"type": "null"}, {"type": "integer"}]}, "3", 3),
        ({"type": ["null", "number"]}, "3", 3.0),
        ({"type": ["string", "number"]}, "3", "3"),
        ({"enum": [True, False, None]}, "true", True),
        ({"enum": [1, 2]}, "1", 1),
        ({"enum": ["a", 1]}, "1", "1"),
        ({"type": "object", "properties": {}}, '{"a":1}', '{"a":1}'),
        ({"type": "array", "items": {"type": "number"}}, "[1,null]", [1.0, None]),
        ({"type": "array"}, "[1]", "[1]"),
        ({"$ref": "#/$defs/a~1b~0c"}, "1", 1),
        ({"$ref": "#/$defs/none"}, "1", "1"),
        ({"type": "string"}, "null", None),
    ],
    ids=str,
)
def test_a_column_has_its_propertys_type(schema, value, column):
    whole = {"properties": {"x": schema}, "$defs": {"a/b~c": {"type": "integer"}}}
    (found,) = answer_values(f'{{"x": {value}}}', property_columns(whole, ())).values()
    assert (found, type(found)) == (column, type(column))


@pytest.mark.parametrize("text", [None, "", "no JSON", "[1]", "{}"])
def test_an_answer_without_the_properties_has_null_in_their_columns(text):
    assert answer_values(text, property_columns({"properties": {"x": {"type": "integer"}}}, ())) == {"x": None}


def test_no_row_is_lost_before_a_step_that_takes_batches(provider, tmp_path):
    with TestPipeline(runner="FnApiRunner") as pipeline:
        create = beam.Create([Ticket(i, f"t{i}") for i in range(3)], reshuffle=False).with_output_types(Ticket)
        _ = pipeline | create | AskModel(CHAT, "{text}") | beam.io.WriteToParquet(str(tmp_path / "answers"))
    (file,) = tmp_path.iterdir()
    assert sorted(pq.read_table(file)["answer"].to_pylist()) == ["re: t0", "re: t1", "re: t2"]


def test_a_class_is_a_schema_too(provider):
    @dataclass
    class Verdict:
        label: str
        score: int | None = None

    asked(
        ["x"],
        AskModel(CHAT, schema=Verdict),
        lambda a: assert_that(a | beam.Map(lambda r: (r.label, r.score)), equal_to([("good", 3)])),
    )


def test_texts_are_embedded_in_few_calls(provider):
    rows = [{"body": "x" * n} for n in range(1, 26)]

    def checks(answers):
        assert_that(answers | beam.Map(lambda r: r["embedding"]), equal_to([[float(n), 0.5] for n in range(1, 26)]))

    asked(rows, AskModel(EMBED, embed="body"), checks)


def test_what_was_paid_is_not_paid_again_and_two_keys_are_two_answers(provider, tmp_path):
    rows = [{"id": i % 4, "text": f"t{i % 2}"} for i in range(8)]
    for _ in range(2):
        asked(rows, AskModel(CHAT, "{text}", ledger=str(tmp_path / "same")), lambda a: a)
    assert provider.calls == {"t0": 1, "t1": 1}
    provider.calls.clear()
    rows = [{"id": i, "text": f"t{i % 2}"} for i in range(4)]
    for _ in range(2):
        asked(rows, AskModel(CHAT, "{text}", ledger=str(tmp_path / "keys"), key="id"), lambda a: a)
    assert provider.calls == {"t0": 2, "t1": 2}


def test_an_error_of_every_call_fails_the_pipeline_and_the_next_one_calls_again(provider):
    with pytest.raises(Exception, match="the token is wrong"):
        asked(["locked"], AskModel(CHAT), lambda a: a)
    asked(["open"], AskModel(CHAT), lambda a: assert_that(a | beam.Map(lambda r: r.answer), equal_to(["re: open"])))


@pytest.mark.parametrize(
    ("step", "field"),
    [
        (AskModel(CHAT, "{body}"), "body"),
        (AskModel(CHAT, system="In {language}."), "language"),
        (AskModel(CHAT, "{text}", key="number"), "number"),
        (AskModel(EMBED, embed="body"), "body"),
    ],
    ids=["prompt", "system", "key", "embed"],
)
def test_a_field_that_no_row_has_is_said_before_the_pipeline_runs(step, field):
    rows = TestPipeline(runner="FnApiRunner") | beam.Create([Ticket(1, "a")]).with_output_types(Ticket)
    with pytest.raises(ValueError, match=f"the rows have no field '{field}'.*name one of id, text"):
        _ = rows | step


def test_an_error_of_every_call_comes_without_the_engines_own_trace(provider):
    with pytest.raises(Exception, match="the token is wrong") as failed:
        asked(["locked"], AskModel(CHAT), lambda a: a)
    places = []
    error = failed.value
    while error is not None:
        places += [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
        error = error.__cause__ or error.__context__
    assert any(place.endswith("rows/ask_model.py") for place in places)
    assert not [place for place in places if "/backends/" in place]


def test_a_limit_ends_the_pipeline_before_it_is_exceeded(provider):
    with pytest.raises(Exception, match=r"and max_tokens_total=400 could be exceeded.*run the same pipeline again"):
        asked([f"t{i}" for i in range(50)], AskModel(CHAT, max_tokens_total=400, concurrency=2), lambda a: a)
    assert sum(provider.calls.values()) < 50


def test_a_step_that_is_applied_twice_has_its_limit_twice(provider):
    step = AskModel(CHAT, "{text}", max_tokens_total=150, parameters={"max_tokens": 5}, concurrency=1)
    with TestPipeline(runner="FnApiRunner") as pipeline:
        rows = pipeline | beam.Create([{"text": f"t{i}"} for i in range(20)], reshuffle=False)
        for name in ("one", "two"):
            answers = rows | name >> step
            assert_that(answers | name + "s" >> beam.Map(lambda r: r["error"]), equal_to([None] * 20), label=name)
    assert provider.calls == {f"t{i}": 2 for i in range(20)}


def test_two_steps_have_their_own_windows_limits_and_ledgers(provider, tmp_path):
    def checks(answers):
        first, second = answers
        assert_that(first | "1" >> beam.Map(lambda r: r["error"]), equal_to([None] * 20), label="first")
        assert_that(second | "2" >> beam.Map(lambda r: r["error"]), equal_to([None] * 20), label="second")

    with TestPipeline(runner="FnApiRunner") as pipeline:
        rows = pipeline | beam.Create([{"text": f"t{i}"} for i in range(20)], reshuffle=False)
        first = rows | "one" >> AskModel(CHAT, "{text}", concurrency=2, ledger=str(tmp_path / "a"))
        second = rows | "two" >> AskModel(CHAT, "{text}", concurrency=3, ledger=str(tmp_path / "b"))
        checks((first, second))
    assert provider.calls == {f"t{i}": 2 for i in range(20)}
    assert provider.most <= 5


def test_chained_steps_name_their_columns(provider):
    first, second = AskModel(CHAT, "{text}"), AskModel(CHAT, "{answer}", into="again")

    def checks(answers):
        assert_that(answers | beam.Map(lambda r: (r.again, r.again_error)), equal_to([("re: re: a", None)]))

    with TestPipeline(runner="FnApiRunner") as pipeline:
        rows = pipeline | beam.Create(["a"]) | "one" >> first
        with pytest.raises(ValueError, match="'answer' already: name another column with into="):
            _ = rows | "taken" >> AskModel(CHAT, "{text}")
        checks(rows | "two" >> second)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"prompt": "no field"}, "has no field"),
        ({"embed": "text", "prompt": "{text}"}, "leave out"),
        ({"embed": "text", "system": "Be brief."}, "leave out"),
        ({"embed": "text", "schema": SCHEMA}, "leave out"),
        ({"schema": 5}, "JSON schema"),
        ({"concurrency": 0}, "from 1 to"),
        ({"headers": ("x",)}, "HEADER=VARIABLE"),
        ({"prices": {}}, None),
        ({"prices": {"m": {}}}, "PROVIDER/MODEL"),
    ],
    ids=str,
)
def test_wrong_arguments_are_said_when_the_step_is_made(wrong, why):
    if why is None:
        assert AskModel(CHAT, **wrong)
        return
    with pytest.raises(ValueError, match=why):
        AskModel(CHAT, **wrong)


def test_a_model_without_a_provider_is_not_known():
    with pytest.raises(ModelNotFound):
        llmdo.AskModel("gpt-4o")


def counters(result: beam.runners.runner.PipelineResult) -> dict[str, int]:
    found = result.metrics().query()["counters"]
    return {c.key.metric.name: c.committed for c in found if c.key.metric.namespace == "llmdo"}


def test_a_call_that_rows_share_is_counted_once_and_none_where_answers_were_kept(provider, tmp_path):
    dollar_a_token = {"workers-ai/*": {"input": 1e6, "output": 1e6}}
    step = AskModel(CHAT, "{text}", ledger=str(tmp_path / "paid"), prices=dollar_a_token)
    first, second = (counters(asked([{"text": "a"}] * 4, step, lambda a: a)) for _ in range(2))
    assert (first["lines_answered"], first["calls"]) == (4, 1)
    assert (first["input_tokens"], first["output_tokens"], first["cost_microdollars"]) == (3, 2, 5_000_000)
    assert (second["lines_answered"], second["answers_reused"]) == (4, 4)
    assert "calls" not in second


def test_a_model_that_only_a_row_names_fails_that_row_alone_and_the_steps_own_the_pipeline(provider):
    rows = [{"prompt": "a"}, {"prompt": "gone", "model": "@cf/other"}]

    def checks(answers):
        found = answers | beam.Map(lambda row: (row["answer"], row["error"]))
        assert_that(found, equal_to([("re: a", None), (None, "ModelNotFound: the account does not have this model")]))

    asked(rows, AskModel(CHAT), checks)
    with pytest.raises(Exception, match="the account does not have this model"):
        asked([{"prompt": "gone"}], AskModel(CHAT), lambda a: a)


def a_do_fn() -> _Ask:
    step = AskModel(CHAT, max_tokens_total=10**6)
    calls = replace(step._calls, run_id="one step")
    return _Ask(Asking(step._defaults, calls, "", "", "answer", "error", (), ("answer", "error")))


def answers_of(do_fn: _Ask, text: str) -> list[str]:
    do_fn.start_bundle()
    given = list(do_fn.process(text, Timestamp(1), GlobalWindow()))
    return [one.value.answer for one in (*given, *do_fn.finish_bundle())]


def test_instances_of_a_step_share_its_limits_and_its_engine_until_the_last_one_ends(provider):
    one, other = a_do_fn(), a_do_fn()
    one.setup()
    other.setup()
    assert one._budget is other._budget and one._engine is other._engine
    assert answers_of(one, "a") == ["re: a"]
    one.teardown()
    assert answers_of(other, "b") == ["re: b"]
    other.teardown()
    late = a_do_fn()
    late.setup()
    assert late._budget is not other._budget and late._engine is not other._engine
    late.teardown()


def test_a_bundle_whose_engine_was_closed_fails_and_loses_no_row(provider):
    do_fn = a_do_fn()
    do_fn.setup()
    close_engines("one step")
    with pytest.raises(EngineClosed):
        answers_of(do_fn, "a")
    do_fn.teardown()


def test_a_model_that_embeds_nothing_fails_the_pipeline(provider):
    with pytest.raises(Exception, match="workers-ai/@cf/chat embeds nothing: name a model for embeddings"):
        asked([{"text": "a"}], AskModel(CHAT, embed="text"), lambda a: a)


def test_every_call_of_a_bundle_is_counted_at_its_end(provider):
    counted = counters(asked([f"t{n}" for n in range(30)], AskModel(CHAT, concurrency=1), lambda a: a))
    assert counted["calls"] == counted["lines_answered"] == 30


def test_what_was_spent_is_counted(provider):
    counted = counters(asked(["a", "bad"], AskModel(CHAT), lambda a: a))
    assert counted["lines_failed.InvalidRequest"] == 1
    assert (counted["lines_answered"], counted["lines_failed"], counted["input_tokens"], counted["output_tokens"]) == (
        1,
        1,
        3,
        2,
    )


def test_arguments_that_other_languages_send_are_rows_or_json_text(provider):
    class Limits(NamedTuple):
        max_tokens: int
        stop: list[str]

    by_row = AskModel(CHAT, "{text}", parameters=Limits(9, ["x"]), schema='{"type": "object", "properties": {}}')
    by_text = AskModel(CHAT, "{text}", parameters='{"max_tokens": 9, "stop": ["x"]}', schema={"properties": {}})
    sent = {"max_tokens": 9, "stop": ["x"]}
    assert sent.items() <= by_row._defaults.parameters.items()
    assert sent.items() <= by_text._defaults.parameters.items()
    assert by_row.schema == {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"schema": "{"}, "schema is not JSON"),
        ({"schema": "[1]"}, "schema is \\[1\\]: give a dict, a row or a JSON object as text"),
        ({"parameters": "no"}, "parameters is not JSON"),
        ({"parameters": 3}, "parameters is 3: give a dict"),
        ({"prices": "[]"}, "prices is \\[\\]: give a dict"),
    ],
)
def test_text_that_is_no_json_object_is_refused_by_its_name(given, why):
    with pytest.raises(ValueError, match=why):
        AskModel(CHAT, **given)
