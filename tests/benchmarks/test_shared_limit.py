import pytest

from benchmarks import shared_limit

pytestmark = pytest.mark.slow


def test_processes_that_share_a_server_are_measured_together():
    learning = shared_limit.share("learning", 8.0, processes=2)
    divided = shared_limit.share("divided", 8.0, processes=2, rpm=60 * shared_limit.PER_S)
    for result in (learning, divided):
        assert 0.3 < result["answered"] <= 1.3
        assert len(result["shares"]) == 2
        assert sum(result["shares"]) / 2 == pytest.approx(result["answered"], abs=0.02)
    # A server that stands still for a second gets all calls of it at once. That nothing is refused without such a pause
    # is tested on a fake clock: tests/integration/services/test_shared_limit.py.
    assert divided["refused_all"] < min(0.02, learning["refused_all"])
