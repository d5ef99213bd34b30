import gzip
import json

import pytest
from rich.console import Console

from llmdo.backends.limits.rates import Rates
from llmdo.backends.money.prices import Prices
from llmdo.backends.responses import ModelInfo, Models, Price
from llmdo.pipelines.options import check_options
from llmdo.pipelines.usage import UsageError
from llmdo.runners.cli.main import main
from llmdo.runners.inspecting import dryrun
from llmdo.runners.inspecting.dryrun import plan_run
from llmdo.runners.showing.plan import show_plan
from llmdo.storage.objects.opening import open_store
from llmdo.storage.output.manifests import Manifest, write_manifest
from llmdo.transforms.elements import FileVersion
from llmdo.transforms.files.folders import folder_of

MODEL = "workers-ai/@cf/meta/llama"
EMBEDS = "workers-ai/@cf/baai/bge-m3"


@pytest.fixture(autouse=True)
def outside(monkeypatch):
    """A list of models and rates instead of a network; nothing listens where calls would go."""
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", "0123456789abcdef" * 2)
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "token-value")
    monkeypatch.setenv("CLOUDFLARE_BASE_URL", "http://127.0.0.1:9/client/v4")
    monkeypatch.setenv("R2_ACCESS_KEY_ID", "key-value")
    monkeypatch.setenv("R2_SECRET_ACCESS_KEY", "secret-value")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    listed = Models((ModelInfo(MODEL, price=Price(1.0, 10.0)), ModelInfo(EMBEDS, price=Price(0.5))))
    monkeypatch.setattr(dryrun, "Prices", lambda own: Prices(lambda provider: listed, own))
    rates = {MODEL: Rates(rpm=300), EMBEDS: Rates(rpm=3000, tpm=600)}
    monkeypatch.setattr(dryrun, "published_rates", lambda provider, model: rates.get(f"{provider}/{model}", Rates()))


def write(folder, name, *lines):
    data = b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    path = folder / "in" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return data


def options(folder, **given):
    return check_options(
        **{"files": (str(folder / "in"),), "output": str(folder / "out"), "model": MODEL, "max_tokens": 100, **given}
    )


def test_lines_tokens_cost_and_time_are_told_for_each_model(tmp_path):
    write(tmp_path, "a.jsonl", *({"prompt": "x" * 400} for _ in range(600)))
    write(tmp_path, "b.jsonl.gz", b"", *({"text": "y" * 40, "model": EMBEDS} for _ in range(250)))
    found = plan_run(options(tmp_path))
    chat, embed = found.models[MODEL], found.models[EMBEDS]
    assert (found.files, found.lines, found.blank, found.broken) == (2, 850, 1, 0)
    assert (chat.lines, chat.calls, chat.input_tokens, chat.output_tokens) == (600, 600, 600 * 148, 60_000)
    assert (embed.lines, embed.calls, embed.output_tokens) == (250, 3, 0)  # 100 texts a call
    assert chat.cost.usd == pytest.approx((600 * 148 * 1.0 + 60_000 * 10.0) / 1e6)
    assert chat.seconds == pytest.approx(120) and chat.limit == "300 requests a minute"
    assert embed.seconds == pytest.approx(60 * embed.input_tokens / 600) and embed.limit == "600 tokens a minute"
    said = found.as_json()
    assert (said["exit_code"], said["calls"], said["seconds"]) == (0, 603, round(embed.seconds, 1))
    assert said["cost_usd_at_most"] == pytest.approx(chat.cost.usd + embed.cost.usd)
    assert said["models"][MODEL]["limited_by"] == "300 requests a minute"


def test_the_texts_of_a_line_share_calls_and_have_their_models_price(tmp_path):
    write(tmp_path, "a.jsonl", {"text": ["x" * 40] * 130, "model": EMBEDS}, {"text": "x" * 40, "model": EMBEDS})
    embed = plan_run(options(tmp_path)).models[EMBEDS]
    assert (embed.lines, embed.calls, embed.input_tokens, embed.output_tokens) == (2, 2, 131 * 18, 0)
    assert embed.cost.usd == pytest.approx(131 * 18 * 0.5 / 1e6)


@pytest.mark.parametrize(
    ("given", "seconds", "limit"),
    [
        ({}, 120, "300 requests a minute"),  # what is published
        ({"rpm": 1200}, 30, "1200 requests a minute"),
        ({"rpm": 1200, "workers": 4}, 120, "300 requests a minute (one of 4 workers' part)"),
        ({"workers": 3}, 360, "100 requests a minute (one of 3 workers' part)"),
        ({"tpm": 29_760}, 300, "29760 tokens a minute"),  # 600 lines of 148 tokens in and 100 out
        ({"tpm": 29_760, "rpm": 60}, 600, "60 requests a minute"),
        ({"tpm": 29_760, "workers": 2}, 600, "14880 tokens a minute (one of 2 workers' part)"),
    ],
)
def test_the_time_is_that_of_the_rates_that_the_user_sets_else_of_those_published(tmp_path, given, seconds, limit):
    write(tmp_path, "a.jsonl", *({"prompt": "x" * 400} for _ in range(600)))
    found = plan_run(options(tmp_path, **given)).models[MODEL]
    assert found.seconds == pytest.approx(seconds)
    assert found.limit == limit


def test_nothing_is_written_and_no_model_is_called(tmp_path):
    write(tmp_path, "a.jsonl", {"prompt": "x"})
    before = sorted(tmp_path.rglob("*"))
    plan_run(options(tmp_path))  # a call would be refused by the address that nothing listens at, and raise
    assert sorted(tmp_path.rglob("*")) == before


def test_every_broken_line_is_told_with_file_and_offset(tmp_path):
    data = write(
        tmp_path,
        "a.jsonl",
        {"text": "good"},
        b"{broken",
        {"other": 1},
        {"text": "x", "model": "openai/gpt-4o"},
        {"text": "z" * 500},
    )
    starts = [data.index(part) for part in (b"{broken", b'{"other', b'{"text": "x"', b'{"text": "zz')]
    (tmp_path / "in" / "torn.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 50)[:-9])
    found = plan_run(
        options(tmp_path, prompt="Say {text}", max_line_bytes=300, line_models="any", line_parameters=True)
    )
    assert (found.lines, found.broken, found.unreadable, found.exit_code) == (5 + 50, 4, 1, 3)
    file = tmp_path / "in" / "a.jsonl"
    said = ["not valid JSON", "the line has no 'text'", "OPENAI_API_KEY is not set", "raise --max-line-bytes"]
    assert len(found.problems) == 5
    for start, what, problem in zip(starts, said, found.problems, strict=False):
        assert problem.startswith(f"{file}:{start}: ") and what in problem
    assert "torn.jsonl.gz ends in the middle of its gzip data: upload it again" in found.problems[4]


def test_a_file_that_a_run_would_refuse_as_too_large_is_named_with_the_remedy(tmp_path):
    write(tmp_path, "a.jsonl", {"prompt": "x" * 100})
    (tmp_path / "in" / "b.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "x"}\n' * 50))
    (tmp_path / "in" / "c.jsonl").write_bytes(b"")
    found = plan_run(options(tmp_path, max_file_bytes=90))
    assert (found.files, found.unreadable, found.blank, found.exit_code) == (3, 2, 0, 3)
    for name, problem in zip(("a.jsonl", "b.jsonl.gz"), sorted(found.problems), strict=True):
        place = tmp_path / "in" / name
        assert problem == f"{place} holds more than 90 bytes: raise --max-file-bytes, or split the file"


def test_a_line_that_may_not_choose_its_provider_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a-key-that-is-there")
    write(tmp_path, "a.jsonl", {"prompt": "x"}, {"prompt": "x", "model": "openai/gpt-4o"})
    found = plan_run(options(tmp_path))
    assert (found.broken, found.exit_code, list(found.models)) == (1, 3, [MODEL])
    assert "allow it with --line-models 'same-provider,openai/*'" in found.problems[0]
    allowed = plan_run(options(tmp_path, line_models="same-provider,openai/*"))
    assert (allowed.broken, list(allowed.models)) == (0, [MODEL, "openai/gpt-4o"])


def test_only_some_problems_are_shown_and_the_rest_is_counted(tmp_path):
    write(tmp_path, "a.jsonl", *([b"{"] * 50))
    found = plan_run(options(tmp_path))
    assert (found.broken, len(found.problems)) == (50, dryrun.PROBLEMS_SHOWN)
    console = Console(width=200, record=True)
    console.print(show_plan(found))
    assert "and 30 more" in console.export_text()


def test_without_a_price_or_a_rate_it_says_so(tmp_path):
    write(tmp_path, "a.jsonl", {"prompt": "x"}, *({"prompt": "x", "model": "@cf/new"} for _ in range(65)))
    found = plan_run(options(tmp_path, concurrency=64))
    assert (found.models["workers-ai/@cf/new"].cost.usd, found.cost.unpriced) == (None, 65)
    assert found.models["workers-ai/@cf/new"].seconds == 2 * dryrun.ASSUMED_CALL_S
    assert "64 calls in flight" in found.models["workers-ai/@cf/new"].limit
    assert found.as_json()["cost_is_lower_bound"] is True
    (note,) = found.notes
    assert "@cf/new is not in its provider's list: 65 lines ask it, first" in note and note.endswith("a.jsonl:16")
    console = Console(width=200, record=True)
    console.print(show_plan(found))
    said = console.export_text()
    assert "at most $0.00" in said and "and the cost of 65 lines without a known price at list prices" in said
    assert "workers-ai/@cf/new\n  65 lines, 65 calls" in said and "≥" not in said


def test_models_without_a_rate_share_the_calls_in_flight(tmp_path):
    write(tmp_path, "a.jsonl", *({"prompt": "x", "model": f"@cf/new/{n % 7}"} for n in range(14)))
    assert plan_run(options(tmp_path, concurrency=64)).seconds == dryrun.ASSUMED_CALL_S
    assert plan_run(options(tmp_path, concurrency=4)).seconds == 4 * dryrun.ASSUMED_CALL_S


def test_what_a_run_would_refuse_without_a_call_is_told_with_its_offset(tmp_path):
    good = {"prompt": "x"}
    refused = {
        '"max_tokens": 0': "max_tokens is 0: write a whole number",
        '"model": "@cf/a b"': "is not the name of a model",
        '"response_format": "json"': "response_format is",
        '"model": "local/other"': "is not an embedded model",
    }
    lines = [f'{{"prompt": "x", {field}}}'.encode() for field in refused]
    data = write(tmp_path, "a.jsonl", good, *lines, good)
    found = plan_run(options(tmp_path, line_models="any"))
    assert (found.lines, found.broken, found.models[MODEL].lines) == (6, 4, 2)
    for line, says, problem in zip(lines, refused.values(), found.problems, strict=True):
        assert problem.startswith(f"{tmp_path / 'in' / 'a.jsonl'}:{data.index(line)}: ") and says in problem


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_plan_names_each_model_whole_at_any_width(tmp_path, width):
    write(tmp_path, "a.jsonl", *({"prompt": "x"} for _ in range(3)))
    console = Console(width=width, record=True)
    console.print(show_plan(plan_run(options(tmp_path))))
    said = console.export_text()
    assert said.startswith(f"{MODEL}\n  3 lines, 3 calls")
    assert "by 300 requests a minute" in " ".join(said.split())


def test_files_that_are_done_by_this_configuration_are_left_out(tmp_path):
    write(tmp_path, "a.jsonl", {"prompt": "x"})
    given = options(tmp_path)
    info = open_store(str(tmp_path / "in")).stat("a.jsonl")
    file = FileVersion(str(tmp_path / "in"), "a.jsonl", info.etag, info.size)
    manifest = Manifest(
        bucket="", key="a.jsonl", etag=info.etag, size=info.size, length=info.size, configuration=given.configuration,
        run_id="r", created_at="t", answered=1, failed=0, blank=0, input_tokens=1, output_tokens=1, shards=(),
    )  # fmt: skip
    write_manifest(open_store(str(tmp_path / "out")), folder_of(given.output_location, file), manifest)
    assert (plan_run(given).files_done, plan_run(given).lines) == (1, 0)
    assert (plan_run(options(tmp_path, max_tokens=7)).files_done, plan_run(options(tmp_path, max_tokens=7)).lines) == (
        0,
        1,
    )


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"files": (), "queue": "q"}, "--dry-run needs FILES"),
        ({"files": ("no/*.jsonl",)}, "matches no file"),
    ],
)
def test_what_cannot_be_planned_is_a_usage_error(tmp_path, given, says):
    with pytest.raises(UsageError, match=says):
        plan_run(options(tmp_path, **given))


def test_the_command_prints_the_plan_and_exits_by_it(tmp_path, capsys):
    write(tmp_path, "a.jsonl", {"text": "x"}, {"no": 1})
    command = ["run", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--model", MODEL, "--dry-run"]
    with pytest.raises(SystemExit) as left:
        main([*command, "--prompt", "Say {text}", "--json"])
    assert left.value.code == 3
    assert json.loads(capsys.readouterr().out)["broken"] == 1
    with pytest.raises(SystemExit) as left:
        main(["run", "--queue", "q", "--output", "r2://bucket/out/", "--dry-run", "--model", MODEL])
    assert left.value.code == 2
    assert "--dry-run needs FILES" in capsys.readouterr().err


def test_a_schema_that_cannot_be_checked_by_is_told_without_a_call(tmp_path):
    patterns = {"properties": {f"a{n}": {"pattern": rf"\p{{L}}{{150}}{n}"} for n in range(400)}}
    wanted = [{"type": "json_schema", "json_schema": schema} for schema in ({"pattern": "(?=a)"}, patterns)]
    write(tmp_path, "a.jsonl", *({"prompt": "x", "response_format": one} for one in wanted), {"prompt": "x"})
    found = plan_run(options(tmp_path))
    assert (found.lines, found.broken) == (3, 2)
    assert "write it without look-around such as (?=x)" in found.problems[0]
    assert "takes over 0.25 s to read: make it smaller" in found.problems[1]


def test_names_of_pictures_are_checked_and_counted_and_nothing_is_fetched(tmp_path):
    def line(name, model=MODEL):
        part = {"type": "image_url", "image_url": {"url": name}}
        return {"model": model, "messages": [{"role": "user", "content": [part, part, "?"]}]}

    old_vision = "workers-ai/@cf/llava-hf/llava-1.5-7b-hf"
    write(tmp_path, "a.jsonl", line("r2://given/a.png"), line("r2://given/a.png", old_vision), line("r2://other/a.png"))
    found = plan_run(options(tmp_path, media_from=("r2://given/",)))
    assert (found.lines, found.broken) == (3, 1)
    (problem,) = found.problems
    assert "--media-from r2://other/" in problem
    assert [note for note in found.notes if "4 images" in note] == [
        "2 lines name 4 images, sounds or files, which are fetched when they are called: they were not looked at, and "
        "only images are in the tokens"
    ]


def test_ids_that_several_lines_of_a_file_have_are_noted_once(tmp_path):
    write(tmp_path, "a.jsonl", *({"id": at % 3, "prompt": "x"} for at in range(5)))
    write(tmp_path, "b.jsonl", {"id": 0, "prompt": "x"}, {"prompt": "x"}, {"prompt": "x"})
    notes = [note for note in plan_run(options(tmp_path)).notes if " id " in note]
    assert len(notes) == 1 and "a.jsonl: 2 lines have an id that a line before has" in notes[0]
