from typing import get_args

import pytest

from llmdo.backends.errors import AccountBlocked, QuotaExhausted, Unauthorized
from llmdo.pipelines.options import JsonlOptions
from llmdo.runners.running import attempt
from llmdo.runners.running.attempt import RUNNERS, is_passing_failure, sentence
from llmdo.storage.errors import AccessDenied, QueueError, QueueUnauthorized, StorageUnavailable


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
    ("error", "passing"),
    [
        (StorageUnavailable("R2 sleeps"), True),
        (QueueError("busy", 503), True),
        (QueueUnauthorized("wrong token", 401), False),
        (RuntimeError("Traceback:\nstorage.errors.StorageUnavailable: R2 sleeps [while running 'Put']\n"), True),
        (RuntimeError("StorageUnavailable: R2 sleeps\n\nstorage.errors.AccessDenied: wrong key [while x]"), False),
        (RuntimeError("Prism was ended by signal 9"), False),
    ],
)
def test_a_pipeline_that_failed_since_a_service_did_not_answer_says_so(error, passing):
    assert is_passing_failure(error) == passing


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


def test_every_runner_that_an_option_names_can_be_started():
    assert set(get_args(JsonlOptions.model_fields["runner"].annotation)) == set(RUNNERS)
