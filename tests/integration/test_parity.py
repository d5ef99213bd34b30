"""The same twelve files come out the same on every runner, bounded and continuous, and as a plain reading says."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llmdo.runners.inspecting.verify import verify
from llmdo.storage.output.manifests import file_folder, read_manifest
from tests.integration.cloud import Cloud
from tests.integration.parity import (
    INPUTS,
    LARGE,
    OPTIONS,
    Input,
    comparable,
    comparable_manifest,
    etag_of,
    plain_manifest,
    plain_rows,
    without_messages,
)
from tests.local.cloudflare import running

pytestmark = pytest.mark.timeout(900)
ALL_S = 400  # at most, for all files on one runner

# One row a runner and mode: the command, and its arguments.
LISTED, ANNOUNCED = ("--input", "r2://llmdo/input/"), ("--queue", "llmdo-input")
WAYS = {
    "run-direct": ("run", "--runner", "direct", *LISTED),
    "run-prism": ("run", "--runner", "prism", *LISTED),
    "run-flink": ("run", "--runner", "flink", *LISTED),
    "stream-prism": ("stream", "--runner", "prism", *ANNOUNCED, "--batch-seconds", "1"),
    "stream-flink": ("stream", "--runner", "flink", *ANNOUNCED, "--batch-seconds", "1"),
}
ONE = "run-direct"  # with which the others are compared
MARKS = {"prism": pytest.mark.prism, "flink": pytest.mark.flink}


def rows_of(names: dict[str, Any], *without: str) -> list[Any]:
    """As parameters of a test."""
    return [pytest.param(name, marks=MARKS.get(name.partition("-")[2], ())) for name in names if name not in without]


@dataclass(frozen=True, slots=True)
class Answered:
    """What one way has left: of each input the manifest and the rows by offset, as they may be compared."""

    summary: dict[str, Any]
    manifests: dict[str, dict[str, Any]]
    rows: dict[str, list[dict[str, Any]]]


class World:
    """One bucket with these inputs; each way answers them once, when it is first asked for."""

    def __init__(self, cloud: Cloud, env: Mapping[str, str], inputs: Mapping[str, Input]) -> None:
        self.cloud = cloud
        self.env = env
        self.inputs = inputs
        self._answered: dict[str, Answered | str] = {}
        self._announce_all()

    def answered(self, way: str) -> Answered:
        """By this way. Fails at once where it failed before."""
        if way not in self._answered:
            self._answered[way] = "it failed before"
            self._answered[way] = self._answer(way)
        found = self._answered[way]
        assert isinstance(found, Answered), found
        return found

    def _answer(self, way: str) -> Answered:
        for name, given in self.inputs.items():
            self.cloud.upload(name, given.body)  # again the same, which is announced again
        process = self.cloud.command(*WAYS[way], "--output", output_of(way), *OPTIONS, "--json")
        try:
            if WAYS[way][0] == "stream":
                deadline = time.monotonic() + ALL_S
                while not self._all_settled(way):
                    assert process.poll() is None, process.communicate()[1].decode()[-3000:]
                    assert time.monotonic() < deadline, f"only these are done: {self._settled(way)}"
                    time.sleep(0.2)
                process.terminate()
            out, err = process.communicate(timeout=ALL_S)
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
        assert out, err.decode()[-3000:]
        return Answered(
            json.loads(out),
            {name: self._manifest(way, name) for name in self.inputs},
            {name: self._rows(way, name) for name in self.inputs},
        )

    def _announce_all(self) -> None:
        """Gives the bucket a rule of its own: without one, files that end in .zst are not announced."""
        account = f"/client/v4/accounts/{self.cloud.env['CLOUDFLARE_ACCOUNT_ID']}"
        queues = self.cloud.api.get(f"{account}/queues").raise_for_status().json()["result"]
        (queue,) = [queue["queue_id"] for queue in queues if queue["queue_name"] == "llmdo-input"]
        rule = {"prefix": "input/", "actions": ["PutObject"]}
        path = f"{account}/event_notifications/r2/llmdo/configuration/queues/{queue}"
        self.cloud.api.put(path, json={"rules": [rule]}).raise_for_status()

    def _all_settled(self, way: str) -> bool:
        return (
            len(self._settled(way)) == len(self.inputs)
            and not self.cloud.keys(f"{way}/_open/")
            and not self.cloud.backlog()
        )

    def _settled(self, way: str) -> list[str]:
        return [key for key in self.cloud.keys(f"{way}/llmdo/") if key.endswith("/_manifest.json")]

    def _folder(self, way: str, name: str) -> str:
        return file_folder(way, "llmdo", f"input/{name}", etag_of(name))

    def _manifest(self, way: str, name: str) -> dict[str, Any]:
        body, _ = self.cloud.store.read(f"{self._folder(way, name)}_manifest.json")
        manifest: dict[str, Any] = json.loads(body)
        return comparable_manifest(manifest)

    def _rows(self, way: str, name: str) -> list[dict[str, Any]]:
        folder, found = self._folder(way, name), []
        manifest = read_manifest(self.cloud.store, folder)
        assert manifest is not None
        for shard in manifest.shards:
            body, _ = self.cloud.store.read(folder + shard.name)
            rows = [json.loads(line) for line in body.splitlines()]
            assert all((row["error"] is not None) == (shard.kind == "errors") for row in rows)
            found += rows
        return [comparable(row) for row in sorted(found, key=lambda row: (row["error"] or row["source"])["offset"])]


def output_of(way: str) -> str:
    return f"r2://llmdo/{way}/"


@pytest.fixture(scope="module")
def all_kinds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with opened(tmp_path_factory.mktemp("parity"), INPUTS) as world:
        yield world


@pytest.fixture(scope="module")
def many_lines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with opened(tmp_path_factory.mktemp("parity"), LARGE) as world:
        yield world


@contextmanager
def opened(folder: Path, inputs: Mapping[str, Input]) -> Iterator[World]:
    """Tests that use it need its environment."""
    with running(folder / "cloudflare") as server:
        env = server.env | {"XDG_STATE_HOME": str(folder / "state")}
        with pytest.MonkeyPatch.context() as patch:
            set_all(patch, env)
            world = World(Cloud(server), env, inputs)
        yield world


def set_all(patch: pytest.MonkeyPatch, env: Mapping[str, str]) -> None:
    for name, value in env.items():
        patch.setenv(name, value)


@pytest.fixture
def world(all_kinds: World, monkeypatch: pytest.MonkeyPatch) -> World:
    set_all(monkeypatch, all_kinds.env)
    return all_kinds


@pytest.fixture
def large_world(many_lines: World, monkeypatch: pytest.MonkeyPatch) -> World:
    set_all(monkeypatch, many_lines.env)
    return many_lines


FAST = ("run-direct*", "*-prism*")


@pytest.mark.fast(*FAST)
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("way", rows_of(WAYS))
def test_rows_and_manifest_say_what_a_plain_reading_says(world: World, way: str, name: str) -> None:
    check_file(world, way, name)


@pytest.mark.fast("*-prism*")
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("way", rows_of(WAYS, ONE))
def test_rows_and_manifest_are_the_same_as_on_the_direct_runner(world: World, way: str, name: str) -> None:
    check_same(world, way, name)


@pytest.mark.fast(*FAST)
@pytest.mark.parametrize("way", rows_of(WAYS))
def test_the_summary_tells_it_all_and_nothing_is_left_in_work(world: World, way: str) -> None:
    check_summary(world, way, 3 if WAYS[way][0] == "run" else 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("way", rows_of(WAYS))
def test_all_this_holds_for_ten_thousand_lines(large_world: World, way: str, name: str) -> None:
    check_file(large_world, way, name)
    check_same(large_world, way, name)
    check_summary(large_world, way, 0)


def check_file(world: World, way: str, name: str) -> None:
    answered = world.answered(way)
    assert list(without_messages(answered.rows[name])) == plain_rows(name)
    manifest = {key: value for key, value in answered.manifests[name].items() if key != "configuration"}
    assert manifest == plain_manifest(name)


def check_same(world: World, way: str, name: str) -> None:
    answered, one = world.answered(way), world.answered(ONE)
    assert answered.rows[name] == one.rows[name]
    assert answered.manifests[name] == one.manifests[name]


def check_summary(world: World, way: str, exit_code: int) -> None:
    summary = world.answered(way).summary
    wanted = [plain_manifest(name) for name in world.inputs]
    assert (summary["problem"], summary["in_work"], summary["left"], summary["restarts"]) == (None, [], {}, 0)
    assert summary["exit_code"] == exit_code
    assert (summary["files_done"], summary["files_stale"]) == (len(world.inputs), 0)
    for count in ("answered", "failed", "input_tokens", "output_tokens"):
        assert summary[count] == sum(manifest[count] for manifest in wanted), count
    assert {file["file"]: (file["answered"], file["failed"]) for file in summary["files"]} == {
        f"r2://llmdo/{manifest['key']}": (manifest["answered"], manifest["failed"]) for manifest in wanted
    }
    checked = verify(output_of(way), ["r2://llmdo/input/"])
    assert (checked.ok, checked.differences, checked.in_work) == (True, (), ())
    left = [key for key in world.cloud.keys(f"{way}/") if "/_open/" in key]
    assert (left, world.cloud.alive(f"{way}/")) == ([], [])
