"""The operations of R2 that a one-line file costs: an exact number, which nobody raises unnoticed."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.integration.cloud import OUTPUT

# Of each file: its job record, its content, its shard, its manifest. Records go together, and folders are listed so.
A_NEW_FILE = {"PutObject": 3, "GetObject": 1}
# A listing of inputs names finished files as well, so there the manifest is read first.
A_LISTED_FILE = {"PutObject": 3, "GetObject": 2}
A_FINISHED_FILE = {"GetObject": 1, "DeleteObject": 1}


def operations(cloud, first, number, **given):
    """What a run costs after ``number`` one-line files were uploaded, by operation."""
    for name in range(first, first + number):
        cloud.upload(f"{name:03d}.jsonl", b'{"prompt": "say %d"}\n' % name)
    cloud.api.delete("/_stats").raise_for_status()
    summary = cloud.run(**given)
    assert (summary.exit_code, summary.in_work, summary.left) == (0, (), {})
    return Counter(cloud.stats()["r2"]["by_operation"])


@pytest.mark.parametrize(("listed", "a_file"), [(False, A_NEW_FILE), (True, A_LISTED_FILE)], ids=["queue", "listing"])
def test_a_one_line_file_costs_exactly_these_operations(cloud, listed, a_file):
    cloud.fault(target="r2", match="list-type=2&max-keys", latency_s=0.3)  # folders that are asked for meanwhile wait
    few = operations(cloud, 100, 2, output=OUTPUT + "few/", **({"input": "r2://llmdo/input/1"} if listed else {}))
    many = operations(cloud, 200, 34, output=OUTPUT + "many/", **({"input": "r2://llmdo/input/2"} if listed else {}))
    many.subtract(few)
    assert many.pop("ListObjects") <= 32 / 4
    assert {name: count / 32 for name, count in many.items() if count} == a_file


def test_a_finished_file_costs_no_write(cloud):
    given = {"input": "r2://llmdo/input/"}
    operations(cloud, 0, 12, **given)
    twelve = operations(cloud, 0, 0, **given)
    given = {"input": "r2://llmdo/input/00"}
    ten = operations(cloud, 0, 0, **given)
    twelve.subtract(ten)
    assert {name: count / 2 for name, count in twelve.items() if count} == A_FINISHED_FILE
