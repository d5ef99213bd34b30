"""What Beam's RunInference does with ModelHandler: its models, batches, errors and updates, over HTTP on loopback."""

import pickle
import subprocess
import sys
import threading
import time

import apache_beam as beam
import pytest
from apache_beam.internal import pickler
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.ml.inference.base import (
    KeyedModelHandler,
    KeyModelMapping,
    KeyModelPathMapping,
    MaybeKeyedModelHandler,
    ModelMetadata,
    RunInference,
    _RunInferenceDoFn,
)
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to

from llmdo import ModelHandler
from llmdo.backends.engine import registry
from llmdo.backends.errors import InvalidRequest, ModelNotFound, Unauthorized

MODEL = "openai/adding"


def ask(handler, *examples):
    return handler.run_inference(examples, handler.load_model())


def wait_until(condition):
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_an_engine_is_shared_by_equal_handlers_alone_and_closed_when_the_last_model_is_dropped(adding):
    one, other, wider = (ModelHandler(MODEL, concurrency=n).load_model() for n in (51, 51, 52))
    engine = one._held.get()
    assert other._held.get() is engine and wider._held.get() is not engine
    del one
    wait_until(lambda: not any(thread.name == "llmdo-release" for thread in threading.enumerate()))
    assert engine.usable and other._held.get() is engine
    del other
    wait_until(lambda: not engine.usable)
    assert wider._held.get().usable


def test_a_model_that_is_loaded_again_gets_an_engine_that_works(adding):
    for number in range(5):
        (result,) = ask(ModelHandler(MODEL, concurrency=53), str(number))
        assert result.inference.text == str(number + 1)
    wait_until(lambda: all(calls.window != 53 for calls in (*registry._engines, *registry._holders)))


def test_the_next_try_of_a_bundle_calls_again_although_beam_keeps_the_model(adding):
    sent = pickler.dumps(_RunInferenceDoFn(ModelHandler(MODEL), time, None))

    def a_try():
        step = pickler.loads(sent)
        step.setup()
        return step._model.models[0], [one.inference.text for one in step.process(["1", "2"], None, None)]

    adding.key_is_wrong = True
    with pytest.raises(Unauthorized):
        a_try()
    adding.key_is_wrong = False
    model, found = a_try()
    assert found == ["2", "3"]
    assert a_try()[0] is model


def test_what_a_step_has_paid_for_is_in_the_ledger_and_two_ledgers_do_not_meet(adding, tmp_path):
    for ledger in (str(tmp_path / "a"), str(tmp_path / "a"), f"sqlite:///{tmp_path}/b.db"):
        found = [one.inference for one in ask(ModelHandler(MODEL, ledger=ledger), "1", "2", "2", "word")]
        assert [one.text for one in found[:3]] == ["2", "3", "3"]
        assert isinstance(found[3], InvalidRequest)
    assert adding.paid == {"1": 2, "2": 2}


def test_a_ledger_that_cannot_be_opened_fails_before_a_call(adding, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(Exception, match="file"):
        ModelHandler(MODEL, ledger=str(tmp_path / "file" / "ledger")).load_model()
    assert not adding.asked


def test_batches_are_large_at_once_and_what_was_done_is_counted(adding):
    with TestPipeline(runner="FnApiRunner") as pipeline:
        numbers = pipeline | beam.Create([str(n) for n in range(70)], reshuffle=False)
        _ = numbers | RunInference(ModelHandler(MODEL, concurrency=8))
    metrics = pipeline.result.metrics()
    (sizes,) = metrics.query(MetricsFilter().with_name("inference_request_batch_size"))["distributions"]
    assert (sizes.key.metric.namespace, sizes.result.count, sizes.result.max) == ("BeamML_LLMDO", 3, 32)
    counters = metrics.query(MetricsFilter().with_namespace("llmdo"))["counters"]
    counted = {one.key.metric.name: one.result for one in counters}
    assert {name: counted[name] for name in ("lines_answered", "calls", "input_tokens", "output_tokens")} == {
        "lines_answered": 70,
        "calls": 70,
        "input_tokens": 210,
        "output_tokens": 140,
    }


def test_what_fails_is_counted_and_a_call_that_examples_share_is_counted_once(adding, tmp_path):
    examples = ["7", "7", "no number", {"prompt": 5}]
    with TestPipeline(runner="FnApiRunner") as pipeline:
        given = pipeline | beam.Create(examples, reshuffle=False)
        _ = given | RunInference(ModelHandler(MODEL, ledger=str(tmp_path / "paid")))
    found = pipeline.result.metrics().query(MetricsFilter().with_namespace("llmdo"))["counters"]
    counted = {one.key.metric.name: one.result for one in found}
    assert (counted["lines_answered"], counted["lines_failed"]) == (2, 2)
    assert (counted["lines_failed.BadLine"], counted["lines_failed.InvalidRequest"]) == (1, 1)
    assert (counted["input_tokens"], counted["output_tokens"]) == (3, 2)
    assert adding.paid == {"7": 1}


@pytest.mark.parametrize(
    ("given", "passed_on"),
    [
        ({"concurrency": 3}, {"min_batch_size": 12, "max_batch_size": 12}),
        ({"max_batch_size": 7}, {"max_batch_size": 7}),
        ({"min_batch_size": 2, "max_batch_size": 9}, {"min_batch_size": 2, "max_batch_size": 9}),
        (
            {"concurrency": 1, "max_batch_duration_secs": 5},
            {"min_batch_size": 4, "max_batch_size": 4, "max_batch_duration_secs": 5},
        ),
    ],
    ids=str,
)
def test_beam_measures_batches_only_where_a_size_is_given(given, passed_on):
    assert ModelHandler(MODEL, **given).batch_elements_kwargs() == passed_on


class Locked:
    """Pickle does not take it."""

    def __reduce__(self):
        raise TypeError("locked")


def test_an_example_that_cannot_be_pickled_fails_no_batch_that_is_paid_for(adding):
    step = _RunInferenceDoFn(ModelHandler(MODEL), time, None)
    step.setup()
    found = step.process([{"prompt": "1", "metadata": Locked()}, "2"], None, None)
    assert [type(one.inference).__name__ for one in found] == ["BadLine", "ChatResponse"]
    assert ModelHandler(MODEL).get_num_bytes(["a"]) == len(pickle.dumps(["a"]))


def test_inference_args_override_parameters(adding):
    handler = ModelHandler(MODEL, parameters={"temperature": 0.5, "max_tokens": 7})
    with TestPipeline(runner="FnApiRunner") as pipeline:
        numbers = pipeline | beam.Create(["1"])
        _ = numbers | RunInference(handler, inference_args={"temperature": 0})
    (asked,) = adding.asked
    assert asked["temperature"] == 0 and 7 in asked.values()


@pytest.mark.parametrize("wrong", [{"model": "m"}, {"messages": []}, {5: 5}], ids=str)
def test_inference_args_that_are_no_parameters_are_refused_when_the_pipeline_is_made(wrong):
    with pytest.raises(ValueError, match="inference_args are parameters"):
        _ = (
            TestPipeline(runner="FnApiRunner")
            | beam.Create(["1"])
            | RunInference(ModelHandler(MODEL), inference_args=wrong)
        )


def by_key(answers):
    return answers | beam.Map(lambda pair: (pair[0], pair[1].inference.text, pair[1].model_id))


def test_keys_have_their_own_models_and_windows(adding):
    wide, narrow = ModelHandler("openai/wide"), ModelHandler("openai/narrow", concurrency=1)
    handler = KeyedModelHandler([KeyModelMapping(["a"], wide), KeyModelMapping(["b", "c"], narrow)])
    with TestPipeline(runner="FnApiRunner") as pipeline:
        numbers = pipeline | beam.Create([("a", "1"), ("b", "2"), ("c", "3")], reshuffle=False)
        expected = [("a", "2", "openai/wide"), ("b", "3", "openai/narrow"), ("c", "4", "openai/narrow")]
        assert_that(by_key(numbers | RunInference(handler)), equal_to(expected))


def test_keys_are_optional_and_steps_before_and_after_are_kept(adding):
    handler = MaybeKeyedModelHandler(ModelHandler(MODEL)).with_preprocess_fn(str)
    handler = handler.with_postprocess_fn(lambda result: int(result.inference.text))
    with TestPipeline(runner="FnApiRunner") as pipeline:
        assert_that(pipeline | beam.Create([1, 2], reshuffle=False) | RunInference(handler), equal_to([2, 3]))


def test_what_fails_a_batch_leaves_apart(adding):
    adding.key_is_wrong = True
    with TestPipeline(runner="FnApiRunner") as pipeline:
        numbers = pipeline | beam.Create(["1", "word"], reshuffle=False)
        found, failed = numbers | RunInference(ModelHandler(MODEL)).with_exception_handling()
        batches = failed.failed_inferences | beam.Map(lambda pair: (sorted(pair[0]), pair[1][0].__name__))
        assert_that(found, equal_to([]), label="found")
        assert_that(batches, equal_to([(["1", "word"], "Unauthorized")]), label="failed")


@pytest.mark.fast("file")
@pytest.mark.parametrize("by_file", [False, True], ids=["name", "file"])
def test_a_side_input_names_another_model(adding, by_file, tmp_path):
    named = "openai/newer"
    if by_file:
        (tmp_path / "model-2").write_text("openai/newer\n")
        named = str(tmp_path / "model-2")
    with TestPipeline(runner="FnApiRunner") as pipeline:
        update = pipeline | "Update" >> beam.Create([ModelMetadata(named, "newer")])
        found = pipeline | beam.Create(["1"]) | RunInference(ModelHandler(MODEL), model_metadata_pcoll=update)
        assert_that(found | beam.Map(lambda one: (one.inference.text, one.model_id)), equal_to([("2", "openai/newer")]))
    assert [asked["model"] for asked in adding.asked] == ["newer"]


@pytest.mark.slow
def test_without_a_side_input_the_handlers_model_is_asked(adding):
    with TestPipeline(runner="FnApiRunner") as pipeline:
        nothing = pipeline | "Update" >> beam.Create([]).with_output_types(ModelMetadata)
        found = pipeline | beam.Create(["1"]) | RunInference(ModelHandler(MODEL), model_metadata_pcoll=nothing)
        assert_that(found | beam.Map(lambda one: one.model_id), equal_to([MODEL]))


@pytest.mark.slow
def test_keys_are_given_other_models_by_a_side_input(adding):
    handler = KeyedModelHandler([KeyModelMapping(["a", "b"], ModelHandler(MODEL))])
    mapping = [KeyModelPathMapping(["a"], "openai/x", "x"), KeyModelPathMapping(["b"], "openai/y", "y")]
    with TestPipeline(runner="FnApiRunner") as pipeline:
        update = pipeline | "Update" >> beam.Create([mapping])
        numbers = pipeline | beam.Create([("a", "0"), ("a", "1"), ("b", "2")], reshuffle=False)
        found = by_key(numbers | RunInference(handler, model_metadata_pcoll=update))
        # Beam applies such an update after the first batch, which has one example.
        later = found | beam.Filter(lambda one: one[1] != "1")
        assert_that(later, equal_to([("a", "2", "openai/x"), ("b", "3", "openai/y")]))


def test_a_model_of_another_provider_has_an_engine_whose_refusals_count_as_its_own(adding):
    handler = ModelHandler("@cf/chat")
    handler.update_model_path("openai/adding")
    adding.key_is_wrong = True
    with pytest.raises(Unauthorized):
        ask(handler, "1")
    handler.update_model_path("")
    handler.update_model_path()
    adding.key_is_wrong = False
    assert [one.inference.text for one in ask(handler, "1")] == ["2"]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("gpt-4o", "'gpt-4o' is neither PROVIDER/MODEL nor a file"),
        ("gopher://x/y", "is neither PROVIDER/MODEL nor a file"),
        ("{folder}/wrong", "wrong: 'gpt-4o' is not PROVIDER/MODEL"),
        ("{folder}/binary", "binary: .{,100} is not PROVIDER/MODEL"),
    ],
)
def test_an_update_that_names_no_model_says_so_and_changes_nothing(path, why, tmp_path):
    (tmp_path / "wrong").write_text("gpt-4o")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\0" * 1000)
    handler = ModelHandler(MODEL)
    with pytest.raises(ModelNotFound, match=why):
        handler.update_model_path(path.format(folder=tmp_path))
    assert handler._defaults.model == MODEL


# Beam calls a model that several processes share by multiprocessing's proxies: only what can be pickled goes through.
OTHER_PROCESS = """
import sys
from apache_beam.utils.multi_process_shared import MultiProcessShared
from llmdo import ModelHandler
handler = ModelHandler("openai/adding")
shared = MultiProcessShared(handler.load_model, tag=sys.argv[2], path=sys.argv[1], always_proxy=True)
results = handler.run_inference(["7", "word"], shared.acquire())
print([getattr(one.inference, "text", None) or type(one.inference).__name__ for one in results])
"""


@pytest.mark.slow
def test_another_process_can_ask_the_model_of_this_one(adding, tmp_path):
    from apache_beam.utils.multi_process_shared import MultiProcessShared  # it changes multiprocessing

    handler = ModelHandler(MODEL)
    shared = MultiProcessShared(handler.load_model, tag="shared", path=str(tmp_path))
    model = shared.acquire()
    command = [sys.executable, "-c", OTHER_PROCESS, str(tmp_path), "shared"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "['8', 'InvalidRequest']\n", done.stderr
    assert registry.calls_made("RunInference") == 2
    shared.release(model)
    assert isinstance(ask(handler, "word")[0].inference, InvalidRequest)
