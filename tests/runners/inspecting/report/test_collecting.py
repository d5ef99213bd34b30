"""What a report counts is what the manifests say, and what it draws is a fair sample."""

import gzip
import random
from collections import Counter
from datetime import UTC, datetime

import pytest

from llmdo.runners.inspecting.report import collecting, samples
from llmdo.runners.inspecting.report.collecting import Collector, Wanted
from llmdo.runners.inspecting.report.sampling import Lowest
from llmdo.runners.inspecting.report.tally import finish_reason
from llmdo.storage.output.jobs import JobRecord, Jobs
from llmdo.storage.runs.histories import RunHistory, leave_history
from tests.runners.inspecting.report.outputs import Output, answer, failure


@pytest.fixture
def output(tmp_path):
    return Output(tmp_path)


def collect(output, lines=1000, samples=10):
    return Collector(output.store, "", output.place, Wanted(lines, samples), lambda _: None).collect()


def texts(parts):
    return [one.text for one in parts]


def mixed(output, files=3, lines=40):
    chance = random.Random(7)
    for number in range(files):
        outcomes = []
        for line in range(lines):
            model, usd = chance.choice((("openai/a", 0.5), ("openai/b", None), ("workers-ai/c", 0.125)))
            tokens = chance.randrange(1, 50), chance.randrange(0, 90)
            row = answer("x", model=model, usd=usd, tokens=tokens, latency_ms=chance.randrange(1, 999))
            if chance.random() < 0.2:
                row = failure(chance.choice(("Refused", "BadLine")), "1", f"no {line}", retryable=True, prompt="why?")
            outcomes.append(({"prompt": f"{number} {line}"}, row))
        output.file(f"{number}.jsonl", outcomes, shard=7)


def test_where_every_line_is_read_the_sums_are_those_of_the_manifests(output):
    mixed(output)
    found = collect(output)
    tally = found.tally
    assert (found.files_done, len(found.files), found.answered + found.failed) == (3, 3, 120)
    assert (tally.answers, tally.error_lines, tally.unreadable) == (found.answered, found.failed, 0)
    for name in ("input_tokens", "output_tokens"):
        read = sum(getattr(model, name) for model in tally.models.values())
        assert read == sum(getattr(file, name) for file in found.files) > 0
    assert sum(model.cost_usd for model in tally.models.values()) == pytest.approx(found.cost.usd)
    assert sum(model.unpriced for model in tally.models.values()) == found.cost.unpriced > 0
    assert set(tally.models) == {"openai/a", "openai/b", "workers-ai/c"}


def test_more_lines_than_are_wanted_are_a_sample_of_whole_shards_and_the_same_one_each_time(output):
    mixed(output, files=8, lines=70)
    found, again = collect(output, lines=50), collect(output, lines=50)
    assert 50 <= found.tally.answers < 50 + 16 * 7 < found.answered
    assert found.answered + found.failed == 560  # counts are of all
    assert [one.id for one in found.samples] == [one.id for one in again.samples]


def test_each_member_is_drawn_as_often_as_any_other():
    drawn = Counter[int]()
    for stream in range(2_000):
        lowest = Lowest[int](5)
        for member in range(50):
            lowest.offer(f"{stream}/{member}", lambda member=member: member)
        assert len(lowest.chosen()) == 5
        drawn.update(lowest.chosen())
    # 200 of each are expected; beyond these bounds is a chance of 1 in 10,000 for all 50 together.
    assert set(drawn) == set(range(50)) and min(drawn.values()) > 130 and max(drawn.values()) < 275


def test_of_nothing_nothing_is_drawn_and_only_what_is_kept_is_made():
    none, made = Lowest[int](0), []
    none.offer("a", lambda: 1)
    assert none.chosen() == []
    few = Lowest[int](2)
    for member in range(1_000):
        few.offer(str(member), lambda member=member: made.append(member) or member)
    assert len(made) < 60


def test_answers_without_a_call_of_their_own_have_no_latency_and_are_paid_once(output):
    paid = answer("x", latency_ms=7, usd=1.0)
    lines = [paid, answer("x", attempts=0, latency_ms=0), answer("x", shared=True, usd=0.0, latency_ms=9)]
    output.file("a.jsonl", [({"prompt": str(number)}, row) for number, row in enumerate(lines)])
    model = collect(output).tally.models["openai/m"]
    assert (model.answers, model.reused, list(model.latencies)) == (3, 2, [7.0])
    assert (model.cost_usd, model.input_tokens, len(model.inputs)) == (1.25, 20, 3)


def test_errors_are_counted_by_class_and_code_with_other_examples(output):
    rows = [failure("Refused", "429", f"wait {number % 2} s", retryable=True) for number in range(9)]
    rows += [failure("BadLine"), failure("BadLine", retryable=True)]
    output.file("a.jsonl", [({"prompt": "x"}, row) for row in rows])
    errors = collect(output).tally.errors
    assert {kind: (one.lines, one.retryable) for kind, one in errors.items()} == {
        ("Refused", "429"): (9, 9),
        ("BadLine", ""): (2, 1),
    }
    assert [one.message for one in errors["Refused", "429"].examples] == ["wait 0 s", "wait 1 s"]
    assert errors["Refused", "429"].examples[1].place == "a.jsonl, byte 16"


def test_names_that_models_and_services_invent_do_not_grow_without_bound(output):
    rows = [answer("x", model=f"openai/{number}") for number in range(50)]
    rows += [failure(f"E{number}") for number in range(150)]
    output.file("a.jsonl", [({"prompt": "x"}, row) for row in rows])
    tally = collect(output).tally
    assert (len(tally.models), tally.models["other models"].answers) == (31, 20)
    assert (len(tally.errors), tally.errors["other errors", ""].lines) == (101, 50)


def test_rows_and_manifests_that_cannot_be_read_are_counted_and_said(output):
    output.file("a.jsonl", [({"prompt": "x"}, answer("x")), ({"prompt": "y"}, answer("y"))])
    output.file("b.jsonl", [({"prompt": "x"}, answer("x"))])
    (shard,) = [info.key for info in output.store.list("a.jsonl/") if "shard-" in info.key]
    output.store.put(shard, b'torn\n{"id":1}\n[]\n')
    (manifest,) = [info.key for info in output.store.list("b.jsonl/") if "_manifest" in info.key]
    output.store.put(manifest, b"torn")
    found = collect(output)
    assert (found.tally.unreadable, found.tally.answers, found.files_done, len(found.files)) == (3, 0, 2, 1)
    assert "is not a manifest that this version can read" in found.problems[0]


def test_only_the_newest_manifests_are_read_where_there_are_too_many(output, monkeypatch):
    monkeypatch.setattr(collecting, "MOST_MANIFESTS", 2)
    for number in range(4):
        output.file(f"{number}.jsonl", [({"prompt": "x"}, answer("x"))])
    found = collect(output)
    assert (found.files_done, sorted(file.name for file in found.files)) == (4, ["2.jsonl", "3.jsonl"])


def test_what_is_in_work_and_how_runs_went_are_there_too(output):
    jobs = Jobs(output.store, "")
    job = {"store_url": "r2://bucket", "etag": "e", "size": 1, "notification": {}, "configuration": "c", "run_id": "r"}
    jobs.claim(JobRecord(key="open.jsonl", **job), lambda _: False)
    jobs.claim(JobRecord(key="torn.jsonl", dead=True, problem="torn", **job), lambda _: False)
    now = datetime.now(UTC)
    leave_history(output.store, "", RunHistory(run_id="r", started=now, ended=now, answered=3))
    found = collect(output)
    assert (found.in_work, found.dead) == (["r2://bucket/open.jsonl"], 1)
    assert [one.answered for one in found.histories] == [3]


# What was asked


@pytest.mark.parametrize(("key", "pack"), [("a.jsonl", bytes), ("a.jsonl.gz", gzip.compress)])
def test_what_was_asked_is_read_from_the_source_and_filled_into_the_template(tmp_path, key, pack):
    output = Output(tmp_path, {"prompt": "Is this {word}?", "system": "Be brief."})
    output.file(key, [({"word": f"w{number}"}, answer(f"a{number}")) for number in range(20)], pack=pack)
    for one in collect(output, samples=20).samples:
        number = texts(one.answer)[0][1:]
        assert [(part.label, part.text) for part in one.prompt] == [
            ("system", "Be brief."),
            ("user", f"Is this w{number}?"),
        ]


def test_a_source_that_has_changed_or_is_gone_is_not_shown(output):
    output.file("a.jsonl", [({"prompt": "x"}, answer("a"))])
    output.file("b.jsonl", [({"prompt": "x"}, answer("b"))])
    (output.root / "in/a.jsonl").write_text('{"prompt": "y"}\n')
    (output.root / "in/b.jsonl").unlink()
    found = {texts(one.answer)[0]: (one.prompt, one.problem) for one in collect(output).samples}
    assert found["a"][0] == found["b"][0] == []
    assert "changed" in found["a"][1] and "there is no such file" in found["b"][1]


def test_a_file_of_this_machine_is_only_read_if_a_hash_of_its_content_names_it(output, monkeypatch):
    """Anybody who can write into an output can name any file in a manifest."""
    output.file("a.jsonl", [({"prompt": "secret"}, answer("a"))])
    (sample,) = collect(output).samples
    assert texts(sample.prompt) == ["secret"]
    status = (output.root / "in/a.jsonl").stat()
    by_time = samples.SourcePlace(
        str(output.root / "in"), "a.jsonl", f"{status.st_size}-{status.st_mtime_ns}", status.st_size
    )
    guessed = samples.Sample(by_time, 0, 20, "", "", "answer")
    samples.find_prompts([guessed], samples.Templates())
    assert guessed.prompt == [] and "did not record the content" in guessed.problem


def test_an_error_line_brings_what_was_asked_itself(output):
    output.file("a.jsonl", [(b"{broken", failure(message="not JSON", raw="{broken"))])
    output.file("b.jsonl", [({"prompt": "x"}, failure(prompt="why?"))])
    found = {one.place.name: one for one in collect(output).samples}
    assert texts(found["a.jsonl"].prompt) == ["{broken"] and texts(found["b.jsonl"].prompt) == ["why?"]
    assert texts(found["a.jsonl"].answer) == ["not JSON"]


def test_a_response_has_ended_as_a_chat_does():
    said = [{"type": "message", "content": [{"type": "output_text", "text": "x"}]}]
    body = {"object": "response", "status": "completed", "output": said}
    cut = {**body, "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    calls = {**body, "output": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]}
    assert [finish_reason(answer(one)) for one in (body, cut, calls)] == ["stop", "length", "tool_calls"]
