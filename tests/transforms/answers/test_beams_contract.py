"""ModelHandler in the tests that Beam ships for handlers: they are run as they stand, with ours in place of theirs."""

import pytest
from apache_beam.ml.inference import base_test
from apache_beam.testing.test_pipeline import TestPipeline

from llmdo import ModelError, ModelHandler
from tests.fakes.adding import AddingService

FAST = (
    "keyed_examples_many_model_handlers",
    "maybe_keyed_examples",
    "prebatched",
)
SLOW = (
    "pre_and_post_processing_dlq",
    "dlq",
    "postprocessing_multiple_fns",
    "preprocessing_multiple_fns",
    "keyed_examples",
    "simple_examples",
    "simple_examples_multi_process_shared",
    "keyed_examples_many_model_handlers_metrics",
    "keyed_examples_many_mhs_max_models_hint",
    "keyed_examples_multi_process_shared",
    "maybe_keyed_examples_multi_process_shared",
    "preprocessing",
    "preprocessing_dlq",
    "postprocessing",
    "postprocessing_dlq",
    "keyed_pre_and_post_processing",
    "maybe_keyed_pre_and_post_processing",
    "metrics_with_custom_namespace",
    "counted_metrics",
    "unkeyed_examples_with_keyed_model_handler",
    "keyed_many_model_handlers_validation",
    "with_iterable_side_input",
    "with_iterable_side_input_multi_process_shared",
    "watch_file_pattern_side_input_label",
    "watch_file_pattern_keyword_arg_side_input_label",
)


class Adding(ModelHandler):
    """Takes and gives numbers as Beam's FakeModelHandler, whose arguments it has, and fails where it does."""

    def __init__(self, clock=None, min_batch_size=1, max_batch_size=9999, multi_process_shared=False, state=None):
        super().__init__("openai/adding", min_batch_size=min_batch_size, max_batch_size=max_batch_size)
        self._across, self._state = multi_process_shared, state

    def share_model_across_processes(self):
        return self._across

    def run_inference(self, batch, model, inference_args=None):
        found = [one.inference for one in super().run_inference([str(n) for n in batch], model, inference_args)]
        for error in found:
            if isinstance(error, ModelError):
                raise error
        return [int(answer.text) if self._state is None else self._state for answer in found]


def named(words):
    """The test of Beam's with these words; there is exactly one."""
    names = [name for name in dir(base_test.RunInferenceBaseTest) if name.startswith("test_")]
    (found,) = [
        name
        for name in names
        if name in (f"test_run_inference_impl_with_{words}", f"test_run_inference_impl_{words}", f"test_{words}")
        or name in (f"test_run_inference_{words}", f"test_runinference_{words}")
    ]
    return found


@pytest.mark.fast(*FAST)
@pytest.mark.parametrize("words", [*FAST, *SLOW])
def test_it_passes_what_beam_asks_of_a_handler(words, adding: AddingService, monkeypatch):
    monkeypatch.setattr(base_test, "FakeModelHandler", Adding)
    monkeypatch.setattr(base_test, "TestPipeline", lambda runner="FnApiRunner", **how: TestPipeline(runner, **how))
    name = named(words)
    base_test.RunInferenceBaseTest(name).debug()
