"""Background windows against the local OpenAI: each line once, paid once, whoever fetches its answer."""

from __future__ import annotations

import json
import signal

import pytest

from llmdo.pipelines.options import check_options
from llmdo.pipelines.usage import UsageError
from llmdo.runners.exit_codes import EXIT_ANSWERED, EXIT_HANDED_OVER
from tests.fakes.media import png
from tests.integration.batches.commands import Commands, wait_until
from tests.integration.batches.user import MODEL, prompts

PRICES = {"openai/gpt-4o-mini": {"input": 1.0, "output": 10.0, "lanes": {"2h": 0.7, "8h": 0.6}}}
WINDOW = {"mode": "sync", "lane": "2h", "price_file": PRICES}


def test_every_line_is_answered_in_the_window_at_its_price(user):
    asked = prompts(30)
    summary = user.run(asked, **WINDOW, max_cost=1.0)
    assert summary.exit_code == EXIT_ANSWERED
    assert {row["lane"] for row in user.rows()} == {"2h"}
    ways = summary.receipt.ways
    assert (set(ways), ways["2h"].calls) == ({"2h"}, 30)
    assert ways["2h"].usd == pytest.approx(0.7 * ways["2h"].list_usd)
    assert summary.spent.cost_usd == pytest.approx(ways["2h"].usd)
    assert summary.spent.lost_calls == 0
    user.check(asked)
    again = user.run(
        asked, **WINDOW | {"output": str(user.folder / "again")}, ledger=f"sqlite:///{user.folder}/out/_ledger.sqlite"
    )
    assert (again.exit_code, again.spent.calls) == (EXIT_ANSWERED, 0)


def test_an_empty_file_and_a_single_line(user):
    assert user.run([], **WINDOW).exit_code == EXIT_ANSWERED
    assert user.run(["line 0 ✓"], **WINDOW).exit_code == EXIT_ANSWERED
    user.check(["line 0 ✓"])


def test_bodies_of_responses_and_what_has_no_place_there_stand_side_by_side(user):
    response = {
        "custom_id": "r",
        "method": "POST",
        "url": "/v1/responses",
        "body": {"model": "gpt-4o-mini", "input": "a b"},
    }
    stops = {"id": "s", "prompt": "c d", "stop": ["x"]}
    summary = user.run([], json.dumps(response), json.dumps(stops), **WINDOW)
    assert summary.exit_code == EXIT_ANSWERED
    by_id = {row.get("custom_id") or row.get("id"): row for row in user.rows()}
    assert by_id["r"]["lane"] == "2h"
    assert by_id["r"]["response"]["body"]["object"] == "response"
    assert "lane" not in by_id["s"]
    assert any(warning.startswith("asked at list price: ") and "stop" in warning for warning in by_id["s"]["warnings"])


def test_what_a_line_refers_to_is_sent_by_a_call_and_its_row_says_so(user):
    (user.folder / "media").mkdir()
    (user.folder / "media" / "a.png").write_bytes(png())
    part = {"type": "image_url", "image_url": {"url": f"file://{user.folder}/media/a.png"}}
    said = [{"role": "user", "content": [{"type": "text", "text": "what?"}, part]}]
    line = json.dumps({"id": "p", "messages": said})
    summary = user.run(["other"], line, **WINDOW, media_from=(str(user.folder / "media"),))
    assert summary.exit_code == EXIT_ANSWERED
    by_id = {row["id"]: row for row in user.rows()}
    assert (by_id[0]["lane"], by_id["p"].get("lane")) == ("2h", None)
    assert by_id["p"]["warnings"] == ["asked at list price: what it refers to is sent with a call"]


def test_what_fails_in_the_background_is_called_at_list_price(user):
    user.server.fault("openai", batch="fail", match="line 3 ✓")
    asked = prompts(5)
    summary = user.run(asked, **WINDOW)
    assert summary.exit_code == EXIT_ANSWERED
    lanes = {row["id"]: row.get("lane") for row in user.rows()}
    assert lanes == {0: "2h", 1: "2h", 2: "2h", 3: None, 4: "2h"}
    (row,) = [row for row in user.rows() if row["id"] == 3]
    assert row["warnings"] == ["asked at list price: it was not answered in the background"]
    user.check(asked)


@pytest.mark.parametrize("later", [{"mode": "sync"}, {"mode": "batch"}, {**WINDOW, "lane": "8h"}])
def test_what_is_left_is_fetched_by_any_later_run(user, later):
    user.server.fault("openai", batch="hold", state="in_progress")
    asked = prompts(12)
    left = user.run(asked, **WINDOW, detach=True)
    assert left.exit_code == EXIT_HANDED_OVER
    handed_over = left.as_json()["handed_over"]
    assert handed_over["lines"] == 12
    assert user.rows() == []
    user.server.clear_faults()
    assert user.run(asked, **later).exit_code == EXIT_ANSWERED
    assert {row["lane"] for row in user.rows()} == {"2h"}
    user.check(asked)


def test_a_service_that_has_forgotten_an_answer_is_called(user):
    user.server.fault("openai", batch="forget", match="line 1 ✓")
    asked = prompts(3)
    assert user.run(asked, **WINDOW).exit_code == EXIT_ANSWERED
    assert {row["id"]: row.get("lane") for row in user.rows()} == {0: "2h", 1: None, 2: "2h"}


def test_a_call_whose_reply_is_lost_is_made_again_and_counts_as_lost(user):
    user.server.fault("openai", match="#responses", drop=True, after=True, count=1)
    summary = user.run(prompts(3), **WINDOW)
    assert summary.exit_code == EXIT_ANSWERED
    assert summary.spent.lost_calls == 1
    assert {row["lane"] for row in user.rows()} == {"2h"}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"mode": "batch"}, "--mode batch hands lines over in batches, and --lane 2h one by one"),
        ({"ready_by": "8h"}, "--ready-by hands lines over in batches, and --lane 2h one by one"),
        ({"runner": "flink"}, "--lane 2h: one process is enough for this lane, and --runner flink has several"),
        ({"ledger": "none"}, "--lane 2h: without a ledger nobody would know what was handed over"),
        ({"processes": 2, "runner": "direct"}, "--lane 2h is polled by one process: leave it out"),
    ],
)
def test_what_windows_do_not_go_with_is_said(monkeypatch, other, said):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-any")
    with pytest.raises(UsageError, match=said):
        check_options(
            **{"files": ("in.jsonl",), "output": "out", "model": MODEL, "lane": "2h", "runner": "direct"} | other
        )


@pytest.mark.parametrize("stop", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
@pytest.mark.timeout(400)
def test_a_command_that_is_stopped_leaves_its_answers_to_the_next_one(cloudflare, tmp_path, stop):
    one = Commands(cloudflare, tmp_path, "openai", quick=True)
    try:
        one.ask(40)
        cloudflare.fault("openai", batch="hold", state="queued")
        one.hold("responses.retrieve", 0.0)
        process = one.start("--lane", "2h", "--concurrency", "4")
        wait_until(lambda: one.is_held("responses.retrieve"), process)  # some names are known
        process.send_signal(stop)
        code, summary, err = one.end(process)
        asked = len(cloudflare.stats()["paid"]["by_prompt"])
        assert asked == 0
        if stop == signal.SIGINT:
            assert code == EXIT_HANDED_OVER, (summary, err)
            assert 1 <= summary["handed_over"]["lines"] <= 40
        cloudflare.clear_faults()
        code, summary, err = one.end(one.start("--lane", "8h", "--concurrency", "4"))
        assert code == EXIT_ANSWERED, (summary, err)
        if stop == signal.SIGINT:
            one.check(40)
        else:  # what was asked within the window when it was killed may be paid again
            paid = cloudflare.stats()["paid"]["by_prompt"]
            assert (len(paid), sum(paid.values()) <= 44, max(paid.values()) <= 2) == (40, True, True)
    finally:
        one.kill_all()
