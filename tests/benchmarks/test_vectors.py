import pytest

from benchmarks import vectors

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("packs", "sends"), [(True, "base64"), (False, "numbers")])
def test_a_run_over_texts_is_measured_whatever_the_endpoint_sends(packs, sends):
    row = vectors.measure(600, 64, packs=packs)
    assert (row["lines"], row["dimensions"], row["sends"]) == (600, 64, sends)
    assert row["lines_per_s"] > 0 and row["cpu_ms_per_line"] > 0
    assert 64 * 5 < row["row_bytes"] < 64 * 30


def test_packed_rows_are_measured_too():
    numbers, packed = (vectors.measure(300, 64, packs=True, options=given) for given in ("", "--vectors base64"))
    assert packed["row_bytes"] < numbers["row_bytes"]
