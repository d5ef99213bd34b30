"""Pictures, sounds and files that lines name: what a service receives, and what is paid and fetched again."""

from __future__ import annotations

import base64
import json
from collections import Counter
from contextlib import nullcontext
from typing import Any

import pytest

from llmdo.pipelines.usage import UsageError
from llmdo.runners.running.retry import retry, retry_options
from llmdo.storage.errors import BucketNotFound
from llmdo.storage.objects.r2 import R2Store
from tests.fakes.media import pdf, png, wav
from tests.integration.services.seeing import MODEL, answer, as_text, data_url, lines, picture, put
from tests.integration.test_flink import worker_pool

RUNNERS = pytest.mark.parametrize(
    "runner", ["direct", pytest.param("prism", marks=pytest.mark.prism), pytest.param("flink", marks=pytest.mark.flink)]
)


@RUNNERS
@pytest.mark.timeout(600)
def test_bytes_are_sent_in_the_place_of_each_name(cloud, seeing, runner):
    put(cloud, "media/a.png", png())
    put(cloud, "media/no-ending", wav())
    put(cloud, "media/bill.pdf", pdf())

    def asks(part: dict[str, Any]) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, part]}]}

    files = [
        {"type": "image_url", "image_url": {"url": "r2://llmdo/media/a.png", "detail": "low"}},
        {"type": "image_url", "image_url": "r2://llmdo/media/a.png"},
        {"type": "input_audio", "input_audio": {"data": "r2://llmdo/media/no-ending"}},
        {"type": "input_audio", "input_audio": {"url": "r2://llmdo/media/no-ending", "format": "mp3"}},
        {"type": "file", "file": {"file_data": "r2://llmdo/media/bill.pdf"}},
        {"type": "file", "file": {"url": "r2://llmdo/media/bill.pdf", "filename": "mine.pdf"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/stays.png"}},
        {"type": "image_url", "image_url": {"url": data_url("image/png", png(9))}},
    ]
    cloud.upload("a.jsonl", lines(*map(asks, files)))
    cloud.upload("empty.jsonl", b"")
    cloud.upload("one.jsonl", lines(asks(files[0])))
    summary = answer(cloud, runner=runner)
    assert (summary.problem, summary.exit_code, summary.counts.failed) == (None, 0, 0)
    sound = base64.b64encode(wav()).decode()
    expected = [
        {"type": "image_url", "image_url": {"url": data_url("image/png", png()), "detail": "low"}},
        {"type": "image_url", "image_url": {"url": data_url("image/png", png())}},
        {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}},
        {"type": "file", "file": {"filename": "bill.pdf", "file_data": data_url("application/pdf", pdf())}},
        {"type": "file", "file": {"filename": "mine.pdf", "file_data": data_url("application/pdf", pdf())}},
        *files[6:],
        {"type": "image_url", "image_url": {"url": data_url("image/png", png()), "detail": "low"}},
    ]
    assert sorted(map(as_text, seeing.parts())) == sorted(map(as_text, expected))


@pytest.fixture
def read(monkeypatch):
    """Which media of R2 were looked at ("stat") and read ("stream"), by this process."""
    calls: Counter[tuple[str, str]] = Counter()

    def counted(name: str) -> None:
        plain = getattr(R2Store, name)

        def call(self, key, *more):
            calls[name, key] += key.startswith("media/")
            return plain(self, key, *more)

        monkeypatch.setattr(R2Store, name, call)

    counted("stat")
    counted("stream")
    return calls


def test_an_answer_is_paid_again_only_when_the_picture_has_changed(cloud, seeing, read, tmp_path):
    ledger = f"sqlite:///{tmp_path}/ledger.sqlite"
    put(cloud, "media/a.png", png(1))
    put(cloud, "media/b.png", png(2))
    cloud.upload("a.jsonl", lines(picture("r2://llmdo/media/a.png", 1), picture("r2://llmdo/media/b.png", 2)))
    assert answer(cloud, ledger=ledger).exit_code == 0
    put(cloud, "media/b.png", png(3))
    again = answer(cloud, output="r2://llmdo/elsewhere/", ledger=ledger)
    assert (again.exit_code, again.counts.answered) == (0, 2)
    sent = [part["image_url"]["url"] for part in seeing.parts()]
    assert sorted(sent[:2]) == sorted(data_url("image/png", png(shade)) for shade in (1, 2))
    assert sent[2:] == [data_url("image/png", png(3))]
    # Of the picture that is the same, only the head was read again.
    assert (read["stat", "media/a.png"], read["stream", "media/a.png"]) == (2, 1)
    assert (read["stat", "media/b.png"], read["stream", "media/b.png"]) == (2, 2)


def test_one_picture_of_many_lines_is_fetched_once(cloud, seeing, read):
    put(cloud, "media/a.png", png())
    cloud.upload("a.jsonl", lines(*(picture("r2://llmdo/media/a.png", number) for number in range(200))))
    assert answer(cloud).exit_code == 0
    assert len(seeing.asked) == 200
    assert (read["stat", "media/a.png"], read["stream", "media/a.png"]) == (1, 1)


NOT_GIVEN = (
    "r2://other/media/a.png",
    "r2://llmdo2/media/a.png",
    "r2://llmdo/input/../media/a.png",
    "r2://llmdo/./a.png",
    "r2://llmdo/",
    "r2://llmdo",
    "r2://",
    "r2:///media/a.png",
    "r2://LLMDO/media/a.png",
    "r2://user@llmdo/media/a.png",
)


def test_a_place_that_was_not_given_is_never_read(cloud, seeing, read):
    cloud.s3.create_bucket(Bucket="other")
    cloud.s3.put_object(Bucket="other", Key="media/a.png", Body=png())
    put(cloud, "media/a.png", png())
    cloud.upload("a.jsonl", lines(*(picture(name, number) for number, name in enumerate(NOT_GIVEN))))
    summary = answer(cloud)
    assert (summary.exit_code, summary.counts.failed) == (3, len(NOT_GIVEN))
    assert (seeing.asked, +read) == ([], Counter())
    errors = [row["error"] for row in cloud.rows("a.jsonl")]
    assert {(error["class"], error["retryable"], error["attempts"]) for error in errors} == {
        ("MediaNotAllowed", True, 0)
    }
    assert "--media-from r2://other/" in errors[0]["message"]
    # The line stands as it was, so a retry that allows the place answers it.
    retried = retry(
        retry_options("r2://llmdo/output/", "retryable", media_from=("r2://other/media/",)), lambda _: nullcontext()
    )
    assert (retried.counts.answered, retried.counts.failed) == (1, len(NOT_GIVEN) - 1)
    assert [part["image_url"]["url"] for part in seeing.parts()] == [data_url("image/png", png())]


def test_none_closes_the_own_bucket_and_a_prefix_opens_a_part_of_it(cloud, seeing):
    put(cloud, "media/a.png", png(1))
    put(cloud, "media-of-others/b.png", png(2))
    cloud.upload("a.jsonl", lines(picture("r2://llmdo/media/a.png", 1), picture("r2://llmdo/media-of-others/b.png", 2)))
    summary = answer(cloud, media_from=("none", "r2://llmdo/media"))
    assert (summary.counts.answered, summary.counts.failed) == (1, 1)
    assert [part["image_url"]["url"] for part in seeing.parts()] == [data_url("image/png", png(1))]


def test_what_cannot_be_used_is_an_error_of_its_line_without_a_call(cloud, seeing):
    put(cloud, "media/large.png", png() + bytes(5000))
    put(cloud, "media/empty.png", b"")
    put(cloud, "media/a.wav", wav())
    put(cloud, "media/odd.bin", bytes(range(256)))
    names = ["none.png", "large.png", "empty.png", "a.wav", "odd.bin"]
    cloud.upload("a.jsonl", lines(*(picture(f"r2://llmdo/media/{name}", number) for number, name in enumerate(names))))
    summary = answer(cloud, max_media_bytes=4096)
    assert (summary.counts.answered, summary.counts.failed, seeing.asked) == (0, 5, [])
    errors = [row["error"] for row in cloud.rows("a.jsonl")]
    assert {error["class"] for error in errors} == {"MediaUnusable"}
    for error, name, words in zip(
        errors,
        names,
        ("does not exist", "raise it", "is empty", "is audio/wav", "neither a picture"),
        strict=True,
    ):
        assert name in error["message"]
        assert words in error["message"]


def test_an_outage_of_the_place_ends_no_line(cloud, seeing):
    put(cloud, "media/a.png", png())
    cloud.upload("a.jsonl", lines(*(picture("r2://llmdo/media/a.png", number) for number in range(3))))
    cloud.fault(target="r2", match="media/", status=503, count=20)
    summary = answer(cloud)
    assert (summary.problem, summary.counts.answered, summary.counts.failed) == (None, 3, 0)


def test_an_outage_that_outlasts_the_patience_leaves_the_lines_open(cloud, seeing):
    put(cloud, "media/a.png", png())
    cloud.upload("a.jsonl", lines(*(picture("r2://llmdo/media/a.png", number) for number in range(3))))
    cloud.fault(target="r2", match="media/", status=503)
    summary = answer(cloud, patience=0.5)
    assert summary.exit_code == 1
    assert (summary.counts.failed, seeing.asked) == (0, [])
    cloud.no_faults()
    assert answer(cloud).counts.answered == 3
    cloud.check()


def test_a_bucket_that_is_not_there_is_said_before_any_line(cloud, seeing):
    cloud.upload("a.jsonl", lines(picture("r2://no-such-bucket/media/a.png")))
    with pytest.raises(BucketNotFound, match="r2://no-such-bucket"):
        answer(cloud, media_from=("r2://no-such-bucket/",))
    assert seeing.asked == []


def test_keys_that_stop_to_work_end_the_run_and_no_line(cloud, seeing, monkeypatch):
    put(cloud, "media/a.png", png())
    cloud.upload("a.jsonl", lines(picture("r2://llmdo/media/a.png")))
    cloud.fault(target="r2", match="media/", status=403)
    summary = answer(cloud)
    assert (summary.exit_code, summary.counts.failed, seeing.asked) == (1, 0, [])
    assert "R2_ACCESS_KEY_ID" in str(summary.problem)


def test_a_folder_that_is_not_there_is_said_before_any_line(cloud, seeing, tmp_path):
    cloud.upload("a.jsonl", lines(picture(f"{tmp_path}/none/a.png")))
    with pytest.raises(UsageError, match="there is no such folder"):
        answer(cloud, media_from=(f"{tmp_path}/none",))
    assert seeing.asked == []


def test_lines_of_files_that_a_queue_announces_may_name_what_is_in_their_bucket(cloud, seeing):
    put(cloud, "media/a.png", png())
    cloud.upload("a.jsonl", lines(picture("r2://llmdo/media/a.png"), picture("r2://other/media/a.png")))
    summary = cloud.run(model=MODEL)
    assert (summary.problem, summary.counts.answered, summary.counts.failed) == (None, 1, 1)
    assert cloud.backlog() == 0


@pytest.mark.slow
@pytest.mark.flink
@pytest.mark.timeout(600)
def test_workers_in_other_processes_know_the_places(cloud, seeing, monkeypatch):
    cloud.s3.create_bucket(Bucket="other")
    cloud.s3.put_object(Bucket="other", Key="media/a.png", Body=png())
    cloud.upload("a.jsonl", lines(picture("r2://other/media/a.png", 1), picture("r2://third/media/a.png", 2)))
    monkeypatch.setattr(cloud, "env", cloud.env | {"OPENAI_BASE_URL": seeing.url, "OPENAI_API_KEY": "sk-loopback"})
    with worker_pool(cloud) as address:
        process = cloud.command(
            *("run", "r2://llmdo/input/", "--output", "r2://llmdo/output/", "--model", MODEL, "--runner", "flink"),
            *("--environment-type", "EXTERNAL", "--environment-config", address, "--json", "--ledger", "none"),
            *("--media-from", "r2://other/media/"),
        )
        out, err = process.communicate(timeout=300)
    assert process.returncode == 3, err.decode()
    said = json.loads(out)
    assert (said["answered"], said["failed"]) == (1, 1)
    assert [part["image_url"]["url"] for part in seeing.parts()] == [data_url("image/png", png())]
