"""What tests of several rooms share: one local Cloudflare, with the environment that leads to it."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("tests.backends.conformance")  # before any module of tests is imported

from llmdo.runners.flink import jar, loopback_agent  # noqa: E402
from llmdo.runners.flink.jar import find_jar, java  # noqa: E402
from llmdo.runners.prism import binary  # noqa: E402
from llmdo.settings.environment import cache_folder  # noqa: E402
from llmdo.settings.private import make_folder  # noqa: E402
from llmdo.settings.tools import ToolError  # noqa: E402
from tests.fakes.clocks import AheadClock  # noqa: E402
from tests.local.cloudflare import Running, running  # noqa: E402
from tests.servers import flink  # noqa: E402
from tests.states import forget_runs  # noqa: E402
from tests.tiers import pytest_pycollect_makeitem  # noqa: E402

__all__ = ["pytest_pycollect_makeitem"]  # a hook

# A process that a shell has started in the background ignores Ctrl-C, and so would all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# An example takes as long as it takes: other work may keep the machine busy. On CI its own profile says the same.
settings.register_profile("patient", parent=settings(), deadline=None)
settings.load_profile("patient")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Passes over the tests on Flink where it cannot be had; not so where all must run."""
    if item.get_closest_marker("flink") and (missing := _missing_for_flink()):
        if os.environ.get("CI") == "true":
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)


@functools.cache
def _missing_for_flink() -> str | None:
    try:
        java()
        loopback_agent.find_agent(find_jar(None))
    except ToolError as error:
        return str(error)
    return None


# What takes minutes to fetch or to build stays in the user's cache.
TOOLS = (
    binary.cached_prism().parent.name,
    jar.cached_jar().parent.name,
    loopback_agent.cached_agent().parent.name,
    f"flink-{flink.FLINK}",
    "google-packages",
    "servers",
)


@pytest.fixture(scope="session", autouse=True)
def own_places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's cache and ledgers are left alone, also by processes that tests start."""
    users, own = cache_folder(), tmp_path_factory.mktemp("own")
    (own / "cache" / "llmdo").mkdir(parents=True)
    for name in TOOLS:
        make_folder(users / name)
        (own / "cache" / "llmdo" / name).symlink_to(users / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(own / "cache"))
        patch.setenv("XDG_STATE_HOME", str(own / "state"))
        yield


@pytest.fixture(autouse=True)
def own_run() -> Iterator[None]:
    """Each test is a run of its own: where the one before has stopped its run, this one's reading would end at once."""
    yield
    forget_runs()


@pytest.fixture
def queue_clock() -> AheadClock:
    """The clock by which leases of the queues of ``cloudflare`` end."""
    return AheadClock()


@pytest.fixture
def cloudflare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, queue_clock: AheadClock) -> Iterator[Running]:
    """A fresh server with the bucket ``llmdo`` and the queue ``llmdo-input``; models are the echo stand-in."""
    with running(tmp_path / "cloudflare", clock=queue_clock) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        yield server
