"""The notebook of examples/ runs as it stands, and what is stored in it is what it gives."""

from __future__ import annotations

import ast
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

from tests.pages.blocks import ROOT

NOTEBOOK = ROOT / "examples" / "ten_rows.ipynb"
ROWS = 10


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def said(cell: Any) -> str:
    """The text of all that a cell has put out."""
    return "".join(out["text"] if out["output_type"] == "stream" else out["data"]["text/plain"] for out in cell.outputs)


def shown(notebook: Any) -> dict[str, Any]:
    """What a reader sees below the cells: the counters of both runs, and the answers' lines."""
    cells = {cell.id: said(cell) for cell in code(notebook)}
    return {
        "first": ast.literal_eval(cells["counters"]),
        "again": ast.literal_eval(cells["run-again"]),
        "lines": cells["show"].splitlines(),
    }


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Executes a notebook in a folder of its own, by a kernel that is reached by sockets in a folder, not by ports."""
    places = Path(tempfile.mkdtemp(prefix="nb-"))  # a socket's path has at most 107 characters
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(places))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path / "jupyter"))
    config = Config({"KernelManager": {"transport": "ipc", "ip": str(places / "kernel")}})
    yield lambda notebook: NotebookClient(
        notebook,
        timeout=240,
        startup_timeout=240,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
        config=config,
    )
    shutil.rmtree(places)


def check(notebook: Any) -> None:
    """That its runs have answered all rows: the first by calls, the second by the ledger."""
    seen = shown(notebook)
    assert (seen["first"]["calls"], seen["first"]["lines_answered"]) == (ROWS, ROWS)
    assert (seen["again"]["answers_reused"], seen["again"]["lines_answered"]) == (ROWS, ROWS)
    assert "calls" not in seen["again"]
    assert [line.partition(" ")[0] for line in seen["lines"]] == [str(number + 1) for number in range(ROWS)]
    assert all(line.partition(" → ")[2].strip() for line in seen["lines"])


def test_what_is_stored_in_the_notebook_is_a_whole_run():
    notebook = read()
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert {out["output_type"] for cell in code(notebook) for out in cell.outputs} == {"stream", "execute_result"}
    assert str(ROOT.parent) not in NOTEBOOK.read_text(encoding="utf-8")
    check(notebook)


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(600)
def test_the_notebook_writes_a_parquet_file_with_an_answer_to_each_row(client, tmp_path):
    notebook = read()
    for cell in code(notebook):
        cell.outputs, cell.execution_count = [], None
    client(notebook).execute()
    check(notebook)
    table = pq.read_table(tmp_path / "answers.parquet")
    assert table.schema.names == ["id", "text", "answer", "error"]
    assert table.schema.types == [pa.int64(), pa.string(), pa.string(), pa.string()]
    rows = table.sort_by("id").to_pylist()
    assert [row["id"] for row in rows] == list(range(1, ROWS + 1))
    assert all(row["text"] and row["answer"] and row["error"] is None for row in rows)
    again = pq.read_table(tmp_path / "again.parquet").sort_by("id").to_pylist()
    assert again == rows


@pytest.mark.slow
def test_a_cell_that_fails_is_seen(client):
    notebook = read()
    notebook.cells = [nbformat.v4.new_code_cell("raise ValueError('a wrong cell')")]
    with pytest.raises(CellExecutionError, match="a wrong cell"):
        client(notebook).execute()
