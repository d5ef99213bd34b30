"""DuckDB and polars read tables back: counts, order, types, nulls."""

import duckdb
import polars as pl

from tests.runners.inspecting.export.tables import made
from tests.runners.inspecting.export.test_types import embedded, vectors
from tests.runners.inspecting.report.outputs import Output, answer, failure


def everything(tmp_path, rows=3_000):
    output, at = Output(tmp_path), rows * 9 // 10
    outcomes = []
    for n in range(rows):
        line = {"id": n, "text": f"Zeile\n{n}", "weight": n if n < at else n + 0.5, "late": None if n < at else "yes"}
        outcomes.append((line, failure(**line) if n % 100 == 7 else answer(f"ü{n}", id=n, usd=None if n % 2 else 0.25)))
    output.file("a.jsonl", outcomes)
    return output


def test_duckdb_reads_counts_order_types_and_nulls(tmp_path):
    output = everything(tmp_path)
    for form in ("jsonl", "csv", "parquet"):
        made(output, tmp_path / f"t.{form}", errors="inline")
        table = f"'{tmp_path}/t.{form}'"
        if form == "jsonl":
            table = f"read_json({table}, format='newline_delimited')"
        sums = "count(*), count(answer), count(cost_usd), count(late), sum(weight), min(typeof(weight))"
        (found,) = duckdb.sql(f"select {sums} from {table}").fetchall()
        assert found[:4] == (3000, 2970, 1500 - 0, 300 - 3 + 3)
        assert found[4] == sum(range(3000)) + 150
        assert found[5] == "DOUBLE"
        assert [one for (one,) in duckdb.sql(f"select id from {table}").fetchall()] == list(range(3000))
        assert duckdb.sql(f"select text from {table} where id = 5").fetchall() == [("Zeile\n5",)]


def test_polars_reads_counts_order_types_and_nulls(tmp_path):
    output = everything(tmp_path)
    readers = {"jsonl": pl.read_ndjson, "csv": pl.read_csv, "parquet": pl.read_parquet}
    for form, read in readers.items():
        made(output, tmp_path / f"t.{form}", errors="inline")
        how = {} if form == "parquet" else {"infer_schema_length": None}
        frame = read(tmp_path / f"t.{form}", **how)
        assert frame.height == 3000
        assert frame["id"].to_list() == list(range(3000))
        assert frame.schema["weight"] == pl.Float64
        assert frame["answer"].null_count() == 30
        assert frame["late"].null_count() == 2700
        assert frame["text"][5] == "Zeile\n5"
        assert frame["error"].null_count() == 2970


def test_duckdb_and_polars_read_vectors(tmp_path):
    output = embedded(tmp_path, *(vectors([n, n + 0.5]) for n in range(5)))
    made(output, tmp_path / "t.parquet")
    frame = pl.read_parquet(tmp_path / "t.parquet")
    assert frame.schema["embedding"] == pl.Array(pl.Float32, 2)
    assert frame["embedding"].to_list() == [[n, n + 0.5] for n in range(5)]
    found = duckdb.sql(f"select embedding from '{tmp_path}/t.parquet' order by id").fetchall()
    assert [list(one) for (one,) in found] == [[n, n + 0.5] for n in range(5)]
