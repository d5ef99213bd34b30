import pytest

from backends.errors import AccountBlocked, QuotaExhausted, Unauthorized
from runners import attempt
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


@pytest.mark.parametrize(
    ("reason", "until"),
    [
        (QuotaExhausted("used up", until=5000.0, retry_after=7.0), 5000.0),
        (AccountBlocked("blocked", retry_after=60.0), 1060.0),
        (Unauthorized("wrong"), None),
        (AccessDenied("wrong"), None),
        ("SIGTERM", None),
        (None, None),
    ],
)
def test_a_run_can_go_on_when_the_error_that_stopped_it_says_so(monkeypatch, reason, until):
    monkeypatch.setattr(attempt.time, "time", lambda: 1000.0)
    assert attempt.until_of(reason) == until
