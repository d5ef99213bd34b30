"""The page: whole, escaped, without a network, with nothing of what it is not to show."""

import json
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import pytest

from llmdo.runners.inspecting.report.charts import bins, rate, run_over_time
from llmdo.runners.inspecting.report.collecting import Collector, Wanted
from llmdo.runners.inspecting.report.page import page
from llmdo.storage.runs.histories import LimitsChange, LimitsThen, Moments, RunHistory, leave_history
from tests.runners.inspecting.report.outputs import Output, answer, failure

NOW = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'`{{ 7*7 }}\x1b[31m\u202e&lt;"
    '</pre></style><svg onload=alert(3)><a href="javascript:alert(4)">'
)


class Seen(HTMLParser):
    """Elements with their attributes, and the texts in them."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def run(**more):
    at = [float(second) for second in range(0, 100, 10)]
    counts = [second * 4 for second in range(0, 100, 10)]
    changes = [
        LimitsChange(at=NOW + timedelta(seconds=20), window=4, requests_per_s=2.5, pause_s=1.5, reason="Refused (429)"),
        LimitsChange(at=NOW + timedelta(seconds=50), window=9, reason="the window was full"),
    ]
    return RunHistory(
        **{"run_id": "r", "command": "run", "started": NOW, "ended": NOW + timedelta(seconds=90), "answered": 360},
        spent={"calls": 360, "cost_usd": 0.5, "cost_is_lower_bound": True},
        limits=[LimitsThen(model="openai/m", calls=360, refused=3, window=9, throttled_s=12, changes=changes)],
        moments=Moments(
            **{"at": at, "lines": counts, "calls": counts, "tokens": counts, "cost_usd": [0.0] * 10},
            **{"throttled_s": [0.0] * 10, "in_flight": [4] * 10, "window": [8] * 10, "batched": [0] * 10, **more},
        ),
    )


@pytest.fixture
def output(tmp_path):
    made = Output(tmp_path, {"model": "openai/m", "prompt": "Is {word} it?"})
    lines = [({"word": f"word{number}"}, answer(f"said{number}", latency_ms=1 + number)) for number in range(40)]
    made.file(
        "a.jsonl", [*lines, ({"word": "sour"}, failure("Refused", "429", "wait a bit", retryable=True, word="sour"))]
    )
    leave_history(made.store, "", run())
    return made


def written(output, samples=50, lines=1000):
    found = Collector(output.store, "", output.place, Wanted(lines, samples), lambda _: None).collect()
    return page(found, NOW, with_texts=samples > 0)


def test_all_sections_are_there_with_headings_labels_and_captions(output):
    text = written(output)
    seen = Seen(text)
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", text)
    assert headings == [
        *("Outcome and cost", "By model", "By file", "Latency", "Tokens", "Runs", "Errors"),
        "Answers and errors to look through",
    ]
    assert len(seen.of("h1")) == 1 and seen.of("html") == [{"lang": "en"}]
    linked = {one["href"].removeprefix("#") for one in seen.of("a")}
    ids = [attributes["id"] for _, attributes in seen.elements if "id" in attributes]
    assert linked <= set(ids) and len(ids) == len(set(ids))
    named = [one["aria-labelledby"] for _, one in seen.elements if "aria-labelledby" in one]
    assert set(named) <= set(ids)
    labels = {one["for"] for one in seen.of("label")}
    assert {one["id"] for tag in ("input", "select") for one in seen.of(tag)} == labels
    assert all(one.get("role") == "img" and one["aria-label"] and one["viewbox"] for one in seen.of("svg"))
    assert all("scope" in one for one in seen.of("th"))
    assert all(
        "aria-label" in one or "aria-labelledby" in one for _, one in seen.elements if one.get("role") == "region"
    )
    references = set(re.findall(r'(?:href="|url\()#([\w.-]+)', text))
    assert references <= set(ids)


def test_a_run_is_drawn_with_the_reasons_of_its_changes(output):
    text = written(output)
    assert "Refused (429)" in text and "the window was full" in text
    svg = run_over_time(run(), "Figures", "x")
    assert "calls allowed at once" in svg and "requests in batches" not in svg
    assert "requests in batches" in run_over_time(run(batched=[0, 5, *[0] * 8]), "Figures", "x")
    assert rate([0.0, 2.0, 4.0], [0, 10, 10]) == [5.0, 0.0]


def test_nothing_can_be_loaded_and_only_its_own_script_runs(output):
    text = written(output)
    seen = Seen(text)
    (policy,) = [one["content"] for one in seen.of("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")
    assert [one for tag in ("link", "img", "iframe", "object", "base") for one in seen.of(tag)] == []
    assert len(seen.of("script")) == 1 and not any("src" in one for _, one in seen.elements)
    outward = [value for _, one in seen.elements for name, value in one.items() if value and "://" in value]
    assert outward == []
    assert "http" not in re.sub(r'http-equiv="', "", text) and "@import" not in text


def test_whatever_an_answer_or_a_name_holds_stays_text(tmp_path):
    output = Output(tmp_path, {"model": HOSTILE, "prompt": HOSTILE + "{word}"})
    hostile = answer(HOSTILE, model=f"openai/{HOSTILE}", warnings=[HOSTILE], id=HOSTILE)
    rows = [hostile, failure(HOSTILE, HOSTILE, HOSTILE, retryable=True, word=HOSTILE)]
    output.file("a<b>&\"'.jsonl", [({"word": HOSTILE}, row) for row in rows])
    output.file("b.jsonl", [({"word": HOSTILE}, answer({HOSTILE: HOSTILE}))])
    leave_history(output.store, "", run().model_copy(update={"problem": HOSTILE, "command": HOSTILE}))
    text = written(output)
    seen = Seen(text)
    assert len(seen.of("script")) == 1 and seen.of("img") == []
    assert not [name for _, one in seen.elements for name in one if name.startswith("on")]
    assert {one["href"][0] for one in seen.of("a")} == {"#"}
    assert not {"\x1b", "\u202e"} & set(text)
    assert "49" not in "".join(seen.texts).replace("{{ 7*7 }}", "")[-2000:] and "{{ 7*7 }}" in "".join(seen.texts)
    assert "alert(1)" in "".join(seen.texts)


def test_without_samples_nothing_of_what_users_models_and_services_said_is_in_it(output):
    found = Collector(output.store, "", output.place, Wanted(1000, 50), lambda _: None).collect()
    text = page(found, NOW, with_texts=False)
    for said in ("word1", "said1", "sour", "wait a bit", "Is {word}"):
        assert said in written(output) and said not in text, said
    for told in ("Refused", "429", "openai/m", "a.jsonl", "Latency"):
        assert told in text


def test_a_sample_says_so_and_counts_stay_those_of_all(output):
    output.file("b.jsonl", [({"word": "x"}, answer("y"))] * 500, shard=10)
    text = written(output, lines=100)
    assert "541 lines of 2 files. Counts and costs are of all of them" in text
    about = 540 * 0.25
    assert f"<td>≈ ${about:.2f}</td>" in text and "Cost of all" not in written(output)
    assert "A random sample of 1" in text and ">540<" in re.sub("<small>.*?</small>", "", text)


def test_an_output_without_files_is_a_page_too(tmp_path):
    text = written(Output(tmp_path))
    assert "No file is done." in text and "No answer was read." in text and "NaN" not in text


@pytest.mark.parametrize("values", [[1], [5, 5, 5], [1, 2, 3], list(range(1, 5000)), [0, 0, 7], [0.25, 1e6], [0]])
def test_every_value_is_in_one_range(values):
    found = bins(values)
    assert sum(count for *_, count in found) == len(values) and len(found) <= 45
    for low, high, count in found:
        assert count == sum(low <= value < high or (low == high == value == 0) for value in values)


# The command


def llmdo(*words, cwd):
    command = [sys.executable, "-m", "llmdo", "report", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, cwd=cwd)


def test_the_command_writes_one_file_for_its_user_alone(output, tmp_path):
    ended = llmdo(output.place, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "report.html: 41 lines of 1 file, all of them read\n"
    assert (tmp_path / "report.html").stat().st_mode & 0o777 == 0o600
    ended = llmdo(output.place, "-o", "b.html", "--no-samples", "--json", cwd=tmp_path)
    made = json.loads(ended.stdout)
    assert (made["report"], made["lines"], made["lines_read"], made["samples"]) == ("b.html", 41, 41, 0)
    assert made["bytes"] == (tmp_path / "b.html").stat().st_size


def test_what_cannot_be_reported_is_a_sentence(output, tmp_path):
    ended = llmdo(tmp_path / "none", cwd=tmp_path)
    assert ended.returncode == 1 and "is empty: name the --output of a run" in ended.stderr
    ended = llmdo(output.place, "-o", "none/report.html", cwd=tmp_path)
    assert ended.returncode == 2 and "--report none/report.html cannot be written" in ended.stderr


def test_without_the_extra_it_says_what_to_install(output, tmp_path):
    first = "import sys; sys.modules['matplotlib'] = None; from llmdo.runners.cli.main import main; "
    code = f"{first}main({['report', output.place]!r})"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=240, cwd=tmp_path
    )
    assert (ended.returncode, "pip install 'jinja2<" in ended.stderr) == (2, True), ended.stderr
