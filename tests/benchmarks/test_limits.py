import json

import pytest

from benchmarks import limits

pytestmark = pytest.mark.slow


def test_each_way_is_measured_and_only_the_engine_is_refused_little(capsys):
    results = limits.run([20.0], seconds=4.0)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == results
    assert [result["name"] for result in results] == [way.name for way in limits.WAYS]
    for result in results:
        assert result["calls"] > 40
        # No figures: so short a run only shows that they are of the right size.
        assert 0.2 < result["warm"] < 2.5
        assert 0.2 < result["found"] < 5  # of half the rate, and a busy machine may halve it late
    engine, fixed, unlimited = (result["refused"] for result in results)
    assert engine < 0.3 < min(fixed, unlimited)


def test_a_part_is_refused_by_chance_beside_a_bucket_or_alone(capsys):
    chances = limits.Chance(0.2, 4), limits.Chance(0.05, 4, per_s=5.0)
    alone, beside = results = limits.run_chances(chances, seconds=6.0)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == results
    assert 0.08 < alone["refused"] < 0.35
    assert beside["refused"] > 0
    assert all(0 < result["warm"] < 2.5 for result in results)
    assert [chance.goal.bound for chance in chances] == [0.72, 0.9]
