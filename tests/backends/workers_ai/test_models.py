import pytest

from llmdo.backends.workers_ai import models


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ("@cf/meta/llama-3.3-70b-instruct-fp8-fast", "native"),
        ("@hf/thebloke/zephyr-7b-beta-awq", "native"),
        ("@cf/qwen/qwen3-30b-a3b-fp8", "native"),
        ("@cf/google/gemma-3-12b-it", "native"),
        ("@cf/google/gemma-4-26b-a4b-it", "chat"),
        ("@cf/zai-org/glm-4.7-flash", "chat"),
        ("@cf/zai-org/glm-5.3-flash", "chat"),
        ("@cf/moonshotai/kimi-k2.6", "chat"),
        ("@cf/nvidia/nemotron-3-120b-a12b", "chat"),
        ("@cf/qwen/qwen3.8-27b", "chat"),
        ("@cf/deepseek-ai/deepseek-v4-flash", "chat"),
        ("@cf/deepseek-ai/deepseek-r1-distill-qwen-32b", "native"),
        ("@cf/openai/gpt-oss-20b", "chat"),
        ("@cf/nobody/new-1", None),
    ],
)
def test_a_family_tells_its_shape(model, shape):
    assert models.shape_of(model) == shape


@pytest.mark.parametrize(
    ("schema", "shape"),
    [
        ({"properties": {"max_completion_tokens": {}}}, "chat"),
        ({"anyOf": [{"type": "object", "oneOf": [{"properties": {"max_completion_tokens": {}}}]}]}, "chat"),
        ({"oneOf": [{"properties": {"max_tokens": {}}}]}, "native"),
        (None, "native"),
        ("text", "native"),
    ],
)
def test_a_schema_tells_its_shape(schema, shape):
    assert models.shape_of_schema(schema) == shape


@pytest.mark.parametrize(
    ("model", "own", "batches", "json"),
    [
        ("@cf/meta/llama-3.3-70b-instruct-fp8-fast", False, True, True),
        ("@cf/meta/llama-3.1-8b-instruct-fast", False, False, True),
        ("@cf/meta/llama-3.2-1b-instruct", False, False, False),
        ("@cf/google/gemma-4-26b-a4b-it", False, True, True),
        ("@cf/baai/bge-m3", False, True, False),
        ("@cf/baai/bge-reranker-base", True, False, False),
        ("@cf/meta/m2m100-1.2b", True, True, False),
        ("@cf/facebook/bart-large-cnn", True, False, False),
        ("@cf/huggingface/distilbert-sst-2-int8", True, False, False),
        ("@cf/black-forest-labs/flux-1-schnell", True, False, False),
        ("@cf/openai/whisper-large-v3-turbo", True, False, False),
        ("@cf/openai/gpt-oss-120b", False, True, True),
        ("@cf/llava-hf/llava-1.5-7b-hf", False, False, False),
    ],
)
def test_a_name_tells_what_a_model_takes(model, own, batches, json):
    found = (models.takes_own_input(model), models.takes_batches(model), models.takes_json_schema(model))
    assert found == (own, batches, json)
