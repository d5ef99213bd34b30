"""llmdo's models in Beam's RunInference: a pipeline of your own, with llmdo's engine, its limits and retries.

    python examples/run_inference.py [PROVIDER/MODEL]

The default model runs in this process and needs no account.
"""

from __future__ import annotations

import sys

import apache_beam as beam
from apache_beam.ml.inference.base import PredictionResult, RunInference
from apache_beam.options.pipeline_options import PipelineOptions

import llmdo

REVIEWS = [
    {"id": 1, "text": "It broke after a day."},
    {"id": 2, "text": "My children love it!"},
    {"id": 3},  # no text: an error of its own, which does not affect the others
]


def to_sentence(result: PredictionResult) -> str:
    """Describes the result for one review."""
    name, answer = result.example["id"], result.inference
    if isinstance(answer, llmdo.ModelError):
        return f"{name}: no answer, {answer.message}"
    return f"{name}: {answer.text} ({answer.usage.output_tokens} tokens)"


def main(model: str = "local/smollm2-135m-instruct") -> None:
    """Asks the model about each review and prints the results."""
    prompt = "Is this review happy or angry? Review: {text}"
    handler = llmdo.ModelHandler(model, prompt=prompt, parameters={"max_tokens": 12})
    with beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"])) as pipeline:
        _ = (
            pipeline
            | "Reviews" >> beam.Create(REVIEWS)
            | "Ask" >> RunInference(handler)
            | "To sentences" >> beam.Map(to_sentence)
            | "Print" >> beam.Map(print)
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
