"""Our steps in Beam YAML: the examples as they stand, by Beam's own command."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

import llmdo

ROOT = Path(llmdo.__file__).parent.parent
EXAMPLES = ROOT / "examples" / "beam_yaml"
pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def place(tmp_path):
    """A copy of the examples beside a link to the package, as in a checkout."""
    shutil.copytree(EXAMPLES, tmp_path / "examples" / "beam_yaml")
    (tmp_path / "llmdo").symlink_to(ROOT / "llmdo")
    return tmp_path / "examples" / "beam_yaml"


def run_yaml(place: Path, name: str) -> None:
    command = [sys.executable, "-m", "apache_beam.yaml.main", f"--yaml_pipeline_file={name}", "--runner=FnApiRunner"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def written(folder: Path) -> list[dict]:
    return [json.loads(line) for file in sorted(folder.glob("shard-*.jsonl")) for line in file.read_text().splitlines()]


def test_a_table_is_answered_into_parquet_and_asked_for_free_the_second_time(place):
    run_yaml(place, "tickets.yaml")
    table = pq.read_table(next((place / "answers").glob("tickets.parquet*"))).sort_by("id")
    assert table.column_names == ["id", "customer", "text", "answer", "error"]
    assert table["id"].to_pylist() == ["1", "2", "3"]
    assert table["text"][2].as_py() == "Please send a refund, and tell me\nwhen it comes."
    assert all(table["answer"].to_pylist()) and table["error"].null_count == 3
    kept = sorted(path for path in (place / "answers" / "ledger").rglob("*") if path.is_file())
    run_yaml(place, "tickets.yaml")
    assert pq.read_table(next((place / "answers").glob("tickets.parquet*"))).sort_by("id")["answer"] == table["answer"]
    assert sorted(path for path in (place / "answers" / "ledger").rglob("*") if path.is_file()) == kept


@pytest.mark.slow
def test_lines_get_vectors_and_those_without_a_text_go_elsewhere(place):
    run_yaml(place, "search.yaml")
    rows = sorted(written(place / "vectors"), key=lambda row: row["id"])
    assert [(row["id"], len(row["embedding"]) > 100) for row in rows] == [("help-01", True), ("help-02", True)]
    (failed,) = written(place / "vectors-errors")
    assert (failed["element"]["id"], failed["element"]["title"]) == ("help-03", "Where is my parcel?")
    assert failed["msg"] and failed["retryable"] is False


def test_the_package_names_its_steps_for_includes():
    (provider,) = yaml.safe_load((ROOT / "llmdo" / "providers.yaml").read_text())
    assert set(provider["transforms"]) == {"AskModel", "EmbedText", "ReadPrompts", "WriteShards"}
    for place in provider["transforms"].values():
        module, _, name = place.rpartition(".")
        assert callable(getattr(__import__(module, fromlist=[name]), name))
