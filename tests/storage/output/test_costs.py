import pytest

from llmdo.storage.output.costs import NOTHING, Cost, total, unknown


@pytest.mark.parametrize(
    ("costs", "sum_"),
    [
        ([], NOTHING),
        ([Cost(0.1), Cost(0.2)], Cost(0.3)),
        ([Cost(0.1, 0, 2.0), unknown(3)], Cost(0.1, 3, 2.0)),
        ([unknown(3), NOTHING], Cost(None, 3)),
        ([Cost(0.0, 0, 0.0)], Cost(0.0, 0, 0.0)),
        ([Cost(1e-8)] * 100_000, Cost(0.001)),
    ],
)
def test_a_sum_knows_what_it_does_not_know(costs, sum_):
    assert total(costs) == sum_
