import pytest

from benchmarks.outputs.export import make_output, measure

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_an_export_of_all_rows_is_measured(tmp_path, form):
    make_output(tmp_path, 1_000, late=True)
    row = measure(tmp_path, 1_000, form, form)
    assert row["rows"] == 1_000
    assert row["rows_per_s"] > 0 and row["peak_mb"] > 10 and row["bytes"] > 1_000
