"""A real Flink cluster for tests: one JobManager, two TaskManagers of two slots each, and a pool of Python workers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.flink import LocalCluster, running_cluster


@pytest.fixture(scope="module")
def flink_cluster() -> Iterator[LocalCluster]:
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def fresh_cluster() -> Iterator[LocalCluster]:
    """For one test alone, which may kill what it likes; workers have the environment of this moment."""
    with running_cluster() as cluster:
        yield cluster
