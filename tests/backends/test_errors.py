import inspect
import pickle

import pytest

from llmdo.backends import errors
from llmdo.backends.errors import LONGEST, ModelError, short
from llmdo.backends.openai import errors as openai_errors
from llmdo.backends.usage import Usage
from llmdo.backends.workers_ai import errors as workers_ai_errors


def classes():
    found = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__]
    return [c for c in found if not c.__name__.startswith("_")]


@pytest.mark.parametrize("kind", classes(), ids=lambda kind: kind.__name__)
def test_every_error_survives_pickling_with_all_it_knows(kind):
    error = kind(
        "one sentence",
        status=429,
        code=3040,
        retry_after=1.5,
        request_id="ray",
        provider="workers-ai",
        until=9.0,
        usage=Usage(1, 2),
        about="unclear",
    )
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert vars(copy) == vars(error)
    assert str(copy) == "one sentence"


def test_every_error_below_the_base_says_one_of_four_things_to_do():
    for kind in classes():
        branches = [
            b for b in (errors.Retryable, errors.StaysOpen, errors.StopRun, errors.LineError) if issubclass(kind, b)
        ]
        assert len(branches) == (0 if kind is errors.ModelError else 1), kind


def test_the_picture_in_the_docstring_shows_every_class():
    assert all(kind.__name__ in errors.__doc__ for kind in classes())


def test_a_sentence_is_cut_off_where_it_is_a_book_and_hides_secrets_all_the_same(monkeypatch):
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "s3cret-" * 4)
    error = ModelError("x" * (LONGEST - 10) + "s3cret-" * 4 + "y" * 5000)
    assert len(error.message) == LONGEST + 1
    assert "s3cret" not in error.message
    assert short("x" * 100_000) == f"'{'x' * 76}..."
    assert (short("x"), short(3), short([1] * 1000)[-3:]) == ("'x'", "3", "...")


def test_an_error_speaks_of_the_line_or_of_all_that_lines_share_by_its_class_unless_the_reply_leaves_it_open():
    assert [kind("m").about for kind in (errors.InvalidRequest, errors.ModelNotFound, errors.Unauthorized)] == [
        "line",
        "account",
        "account",
    ]
    assert errors.Unauthorized("m", about="unclear").about == "unclear"


@pytest.mark.parametrize("status", [401, 402, 403, 404, 451])
def test_a_status_alone_does_not_say_whom_it_means(status):
    bare = openai_errors.refusal(status, {}, {}, "m", "openai", "KEY", 0.0)
    assert bare.about == "unclear"
    if status != 451:
        assert workers_ai_errors.refusal(status, {}, {}, "m", 0.0).about == "unclear"
    known = {"error": {"message": "no", "code": "invalid_api_key"}}
    assert openai_errors.refusal(status, {}, known, "m", "openai", "KEY", 0.0).about == "account"
    coded = {"errors": [{"code": 10000, "message": "no"}]}
    assert workers_ai_errors.refusal(status, {}, coded, "m", 0.0).about == "account"
