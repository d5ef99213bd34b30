import pytest

from backends.errors import Unauthorized
from runners.attempt import sentence
from storage.errors import AccessDenied


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (AccessDenied("r2://b/k: wrong key"), "r2://b/k: wrong key"),
        (Unauthorized("token refused"), "token refused"),
        (
            RuntimeError(
                "Traceback (most recent call last):\n  File x\nstorage.errors.AccessDenied: r2://b/k: wrong key "
                "[while running 'Open files/ParDo']\n"
            ),
            "r2://b/k: wrong key",
        ),
        (ValueError("something else"), "something else"),
        (KeyError(), "KeyError"),
    ],
)
def test_an_error_is_one_sentence_without_beams_traceback(error, said):
    assert sentence(error) == said
