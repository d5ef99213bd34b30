"""What a user's files, folders, patterns and prefixes give, and what is skipped, with its reason."""

import os

import pytest

from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import Location
from llmdo.transforms.files.listing import (
    HIDDEN,
    NO_FILE,
    OTHER_ENDING,
    OWN,
    SAME_CONTENT,
    SAME_FILE,
    Skipped,
    list_inputs,
)
from llmdo.transforms.files.source import Listing


def listed(*inputs, output=None):
    return {(n.file.store_url, n.file.key, n.file.size) for n in list_inputs(Listing(inputs), output)}


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jsonl", "sub/b.jsonl", "sub/c.jsonl.gz", "notes.txt", "out/x/1-2/shard-000000000000-aa.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}\n")
    return tmp_path


def test_a_folder_gives_every_prompt_file_below_it_but_not_the_output(folder):
    output = Location(str(folder / "out"), "")
    assert {key for _, key, _ in listed(str(folder), output=output)} == {"a.jsonl", "sub/b.jsonl", "sub/c.jsonl.gz"}


def test_a_file_is_taken_whatever_its_name(folder):
    assert listed(str(folder / "notes.txt")) == {(str(folder), "notes.txt", 3)}


@pytest.mark.parametrize("name", [b"caf\xe9.jsonl", b"caf\xe9/d.jsonl"])
def test_a_file_whose_name_is_not_utf_8_is_left_out_with_a_warning_that_names_it(folder, caplog, name):
    path = folder / "sub" / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"{}\n")
    for place in (folder, folder / "*" / "**" / "*.jsonl*"):
        assert {key.rpartition("/")[2] for _, key, _ in listed(str(place))} >= {"b.jsonl", "c.jsonl.gz"}
        assert "caf\\udce9" in caplog.text and "is not UTF-8" in caplog.text
        caplog.clear()
    assert listed(str(path)) == set()
    assert "rename it" in caplog.text
    keys = [info.key for info in open_store(str(folder)).list("sub/")]
    assert keys == ["sub/b.jsonl", "sub/c.jsonl.gz"]


def test_a_pattern_keeps_the_path_behind_its_fixed_part(folder):
    assert listed(str(folder / "sub" / "*.jsonl")) == {(str(folder / "sub"), "b.jsonl", 3)}
    output = Location(str(folder / "out"), "")
    keys = {key for _, key, _ in listed(str(folder / "**" / "*.jsonl*"), output=output)}
    assert keys == {"a.jsonl", "sub/b.jsonl", "sub/c.jsonl.gz"}


def test_a_file_that_is_named_twice_is_listed_once(folder):
    name = str(folder / "a.jsonl")
    assert len(list(list_inputs(Listing((name, name)), None))) == 1


def taken(*inputs, output=None):
    """Keys, and for each reason the paths that were skipped."""
    skipped = Skipped()
    keys = [notice.file.key for notice in list_inputs(Listing(tuple(map(str, inputs))), output, skipped)]
    return keys, skipped.paths


def test_the_version_of_a_file_is_its_content_whatever_its_time(folder):
    path = folder / "a.jsonl"
    (before,) = list_inputs(Listing((str(path),)), None)
    os.utime(path, ns=(1, 1))
    (touched,) = list_inputs(Listing((str(path),)), None)
    status = path.stat()
    path.write_text("[]\n")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    (edited,) = list_inputs(Listing((str(path),)), None)
    assert before.file == touched.file
    assert (edited.file.size, edited.file.key) == (before.file.size, before.file.key)
    assert edited.file.etag != before.file.etag


@pytest.mark.parametrize(
    "name",
    ["a.ndjson", "b.jsonlines.gz", "C.JSONL", "d.NdJson.GZ", "e.jsonl.ZST", "f.CSV.gz", "g.Parquet", "h.pq", "i.json"],
)
def test_every_usual_ending_is_taken_in_any_case(tmp_path, name):
    (tmp_path / name).write_text("{}\n")
    (tmp_path / "table.txt").write_text("a,b\n")
    assert taken(tmp_path) == ([name], {OTHER_ENDING: [str(tmp_path / "table.txt")]})
    packed = {"gz": "gzip", "zst": "zstd"}.get(name.rpartition(".")[2].lower())
    assert [notice.file.compression for notice in list_inputs(Listing((str(tmp_path),)), None)] == [packed]


def test_a_mounted_config_map_gives_each_file_once(tmp_path):
    (tmp_path / "..2026_01_01").mkdir()
    (tmp_path / "..2026_01_01" / "q.jsonl").write_text("{}\n")
    (tmp_path / "..data").symlink_to("..2026_01_01")
    (tmp_path / "q.jsonl").symlink_to("..data/q.jsonl")
    keys, skipped = taken(tmp_path)
    assert keys == ["q.jsonl"]
    assert skipped == {HIDDEN: [str(tmp_path / "..2026_01_01"), str(tmp_path / "..data")]}


@pytest.mark.parametrize(
    "hidden", [".ipynb_checkpoints/a-checkpoint.jsonl", "._a.jsonl", ".git/x.jsonl", "s/.b/c.jsonl"]
)
@pytest.mark.parametrize("pattern", ["", "**/*.jsonl"])
def test_hidden_files_and_folders_are_skipped_unless_they_are_named(tmp_path, hidden, pattern):
    (tmp_path / "a.jsonl").write_text("{}\n")
    path = tmp_path / hidden
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[]\n")
    keys, skipped = taken(tmp_path / pattern)
    assert keys == ["a.jsonl"]
    assert list(skipped) == [HIDDEN]
    assert taken(path) == ([path.name], {})


def test_linked_folders_are_followed_once_and_a_loop_of_links_ends(tmp_path):
    elsewhere, into = tmp_path / "elsewhere", tmp_path / "in"
    for name in ("a.jsonl", "sub/b.jsonl"):
        (elsewhere / name).parent.mkdir(parents=True, exist_ok=True)
        (elsewhere / name).write_text(name)
    into.mkdir()
    (into / "link").symlink_to(elsewhere)
    (into / "again").symlink_to(elsewhere / "sub")
    (elsewhere / "sub" / "loop").symlink_to(into)
    keys, skipped = taken(into)
    assert keys == ["again/b.jsonl", "link/a.jsonl"]
    assert set(skipped) == {SAME_FILE}


def test_a_file_behind_two_names_is_taken_once_by_the_name_that_is_no_link(tmp_path):
    (tmp_path / "a.jsonl").symlink_to("b.jsonl")
    (tmp_path / "b.jsonl").write_text("{}\n")
    (tmp_path / "c.jsonl").hardlink_to(tmp_path / "b.jsonl")
    assert taken(tmp_path)[0] == ["b.jsonl"]
    keys, skipped = taken(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert (keys, skipped) == (["a.jsonl"], {SAME_FILE: [str(tmp_path / "b.jsonl")]})


def test_copies_in_one_place_are_files_and_copies_with_one_name_are_one(tmp_path):
    for name in ("l/q.jsonl", "r/q.jsonl", "l/other.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    assert taken(tmp_path)[0] == ["l/other.jsonl", "l/q.jsonl", "r/q.jsonl"]
    keys, skipped = taken(tmp_path / "l", tmp_path / "r")
    assert (keys, skipped) == (["other.jsonl", "q.jsonl"], {SAME_CONTENT: [f"{tmp_path / 'r'}/q.jsonl"]})


def test_an_earlier_output_inside_the_input_is_skipped_and_said(tmp_path, caplog):
    (tmp_path / "a.jsonl").write_text("{}\n")
    old = tmp_path / "old"
    for name in (
        "_configuration.json",
        "a.jsonl/e/_manifest.json",
        "a.jsonl/e/shard-000000000000-0123456789abcdef.jsonl",
    ):
        (old / name).parent.mkdir(parents=True, exist_ok=True)
        (old / name).write_text("{}\n")
    for place in (tmp_path, tmp_path / "**/*.jsonl"):
        keys, skipped = taken(place)
        assert (keys, list(skipped)) == (["a.jsonl"], [OWN])
    list(list_inputs(Listing((str(tmp_path),)), None))
    assert "skipped 1 path" in caplog.text and OWN in caplog.text


def test_an_output_that_holds_its_inputs_gives_them_and_not_its_own_objects(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n")
    own = (
        "_ledger.sqlite",
        "_stdin/x/stdin.jsonl",
        "_dead/x.jsonl",
        "a.jsonl.d/e/errors-000000000000-0123456789abcdef.jsonl",
    )
    for name in own:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    output = Location(str(tmp_path), "")
    assert taken(tmp_path, output=output) == (["a.jsonl"], {})
    assert taken(tmp_path / "a.jsonl", output=output) == (["a.jsonl"], {})
    assert taken(tmp_path / "*.jsonl", output=output) == (["a.jsonl"], {})


@pytest.mark.parametrize("spelled", ["data/../data/out", "link/out", "linked_out"])
def test_an_output_is_known_by_every_path_that_leads_to_it(tmp_path, spelled):
    """By ``..`` and by links; below it is nothing to answer, and nothing to say."""
    (tmp_path / "link").symlink_to("data")
    (tmp_path / "linked_out").symlink_to("data/out")
    shard = "a.jsonl/e/shard-000000000000-0123456789abcdef.jsonl"
    for name in ("a.jsonl", "out/_configuration.json", f"out/{shard}", "out/_stdin/x/stdin.jsonl", "out/b.jsonl"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text("{}\n")
    output = Location(str(tmp_path / spelled), "")
    for place in ("data", "link", "data/../data", "data/**/*.jsonl"):
        assert taken(tmp_path / place, output=output) == (["a.jsonl"], {})
    (tmp_path / "data/out/_configuration.json").unlink()  # as before the first run
    assert taken(tmp_path / "data", output=output) == (["a.jsonl"], {})


@pytest.mark.parametrize("spelled", ["data", "data/../data", "link"])
def test_an_output_that_holds_its_inputs_says_nothing_of_its_own_folders(tmp_path, spelled):
    (tmp_path / "link").symlink_to("data")
    done, open_ = (
        "1f/2e/shard-000000000000-0123456789abcdef.jsonl",
        "a.jsonl.d/3d/shard-000000000000-0123456789abcdef.jsonl",
    )
    names = ("_configuration.json", "_stdin/x/stdin.jsonl", "1f/2e/_manifest.json", done, open_)
    for name in ("a.jsonl", *names, "old/_configuration.json", "old/c.jsonl"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text("{}\n")
    output = Location(str(tmp_path / spelled), "")
    for place in ("data", "link"):
        assert taken(tmp_path / place, output=output) == (["a.jsonl"], {OWN: [str(tmp_path / place / "old")]})


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert taken(tmp_path) == ([], {NO_FILE: [str(tmp_path / "pipe.jsonl")]})
    assert taken(tmp_path / "pipe.jsonl") == ([], {NO_FILE: [str(tmp_path / "pipe.jsonl")]})
