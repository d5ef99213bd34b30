from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llmdo.pipelines.options import JsonlOptions
from llmdo.pipelines.usage import UsageError
from llmdo.runners.flink import checks as flink_checks
from llmdo.runners.flink import rest as flink_rest
from llmdo.runners.flink.checks import FlinkPlan, check
from llmdo.runners.flink.jar import FlinkError
from tests.runners.flink.test_jar import fake_jar

ELSEWHERE = "192.0.2.1"  # an address for documentation, never this machine's (RFC 5737)


@dataclass
class FakeCluster:
    """The replies of a JobManager's REST API, and what was cancelled.

    They are as Flink 1.19.0 gave them. The fields that later versions add are those of the classes of 1.20.5 and 2.2.1
    which make the replies (JobDetails, TaskManagerInfo, ClusterOverview); neither has run here.
    """

    port: int = 0
    version: str = "1.19.0"
    slots: int = 4
    hosts: tuple[str, ...] = ("localhost", "localhost")
    settings: dict[str, str] = field(default_factory=lambda: {"state.checkpoints.dir": "s3://bucket/checkpoints"})
    jobs: list[dict[str, str]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    @property
    def master(self) -> str:
        return f"localhost:{self.port}"

    def reply(self, path: str) -> Any:
        paths = [f"pekko.tcp://flink@{host}:6122/user/rpc/taskmanager_0" for host in self.hosts]
        return {
            "/config": {
                "refresh-interval": 3000,
                "timezone-name": "Coordinated Universal Time",
                "timezone-offset": 0,
                "flink-version": self.version,
                "flink-revision": "eaffd22 @ 2024-03-06T15:18:44+01:00",
                "features": {"web-submit": True, "web-cancel": True, "web-rescale": False, "web-history": False},
            },
            "/overview": {
                "taskmanagers": len(paths),
                "slots-total": self.slots,
                "slots-available": self.slots,
                "jobs-running": 0,
                "jobs-finished": 0,
                "jobs-cancelled": 0,
                "jobs-failed": 0,
                "flink-version": self.version,
                "flink-commit": "eaffd22",
            },
            "/taskmanagers": {
                "taskmanagers": [
                    {"id": path, "path": path, "dataPort": 6121, "jmxPort": -1, "slotsNumber": 2, "freeSlots": 2}
                    for path in paths
                ]
            },
            "/jobmanager/config": [{"key": key, "value": value} for key, value in self.settings.items()],
            "/jobs/overview": {"jobs": [{**job, **self.since_2} for job in self.jobs]},
        }.get(path)

    @property
    def since_2(self) -> dict[str, Any]:
        """What 2.2's job overview has more than 1.20's."""
        return {"pending-operators": 0} if self.version >= "2" else {}


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    fake = FakeCluster()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = fake.reply(self.path)
            self.send_response(404 if found is None else 200)
            self.end_headers()
            self.wfile.write(json.dumps(found).encode())

        def do_PATCH(self) -> None:
            fake.cancelled.append(self.path)
            self.send_response(202)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.port = server.server_port
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield fake
    server.shutdown()
    server.server_close()


@pytest.fixture
def pool() -> Iterator[str]:
    """Something that takes connections, as a worker pool does."""
    with socket.create_server(("localhost", 0)) as server:
        yield f"localhost:{server.getsockname()[1]}"


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    jar = fake_jar(tmp_path / "job-server.jar")
    monkeypatch.setenv("LLMDO_FLINK_JAR", str(jar))
    monkeypatch.setattr(flink_checks, "java", lambda: Path("/usr/bin/java"))
    monkeypatch.setenv("R2_ENDPOINT_URL", "http://localhost:1")
    monkeypatch.setenv("R2_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("R2_SECRET_ACCESS_KEY", "secret")
    return jar


def options(flink: dict[str, Any] | None = None, **given: Any) -> JsonlOptions:
    place: dict[str, Any] = {"input": "r2://bucket/in/", "output": "r2://bucket/out/", "ledger": "r2://bucket/ledger/"}
    place["model"] = "@cf/a/b"
    if "files" in given:
        del place["input"]
    return JsonlOptions(**{**place, **given}, runner="flink", flink=flink or {})


def problems(flink: dict[str, Any], **given: Any) -> list[str]:
    with pytest.raises(UsageError) as raised:
        check(options(flink, **given))
    return raised.value.problems


def test_without_a_master_the_job_server_is_the_cluster_and_steps_run_here(programs: Path) -> None:
    assert check(options()) == FlinkPlan(Path("/usr/bin/java"), programs, None, "LOOPBACK", None)


def test_a_cluster_takes_its_workers_from_a_pool(cluster: FakeCluster, pool: str) -> None:
    plan = check(options({"flink_master": cluster.master, "environment_config": pool, "parallelism": 4}))
    assert plan.cluster is not None
    assert plan.cluster.url == f"http://{cluster.master}"
    assert plan.cluster.is_here
    assert (plan.environment, plan.config) == ("EXTERNAL", pool)


def test_a_master_that_does_not_answer_or_is_none_is_refused() -> None:
    (said,) = problems({"flink_master": "localhost:1", "environment_type": "LOOPBACK"})
    assert said.startswith("no Flink answers at http://localhost:1/config (")
    assert said.endswith("check --flink-master and that the JobManager runs")
    (said,) = problems({"flink_master": "[auto]", "environment_type": "LOOPBACK"})
    assert said == "--flink-master [auto]: write [local], or HOST:PORT of a JobManager's REST API"


@pytest.mark.parametrize(
    ("version", "settings"),
    [
        ("1.19.3", {"state.checkpoints.dir": "s3://bucket/checkpoints"}),
        ("1.20.5", {"execution.checkpointing.dir": "s3://bucket/checkpoints"}),
        ("1.20.0-amzn-1", {"state.checkpoints.dir": "s3://bucket/checkpoints"}),
        ("2.0.2", {"execution.checkpointing.dir": "s3://bucket/checkpoints"}),
        ("2.1.3", {"execution.checkpointing.dir": "s3://bucket/new", "state.checkpoints.dir": "file:///old"}),
        ("2.2.1", {"state.checkpoints.dir": "s3://bucket/checkpoints"}),
    ],
)
def test_a_cluster_of_each_accepted_version_takes_a_job_server_of_its_own_and_an_untested_one_is_warned_of_once(
    cluster: FakeCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture, version: str, settings: dict[str, str]
) -> None:
    cluster.version, cluster.settings, cluster.hosts = version, settings, (ELSEWHERE,)
    cluster.jobs = [{"jid": "a1", "name": "llmdo-out-1", "state": "RUNNING"}]
    flink = ".".join(version.split(".")[:2])
    jar = fake_jar(tmp_path / "theirs.jar", "2.77.0", flink=version)
    given = {"flink_master": cluster.master, "environment_type": "EXTERNAL", "flink_job_server_jar": str(jar)}
    said = warnings(caplog, given)
    plan = check(options(given))
    assert plan.jar == jar
    assert plan.cluster is not None
    assert (plan.cluster.flink, plan.cluster.free_slots, plan.cluster.hosts) == (flink, 4, ("localhost", ELSEWHERE))
    assert [job.id for job in flink_rest.jobs(plan.cluster.url, "llmdo-out-1")] == ["a1"]
    assert said == (
        []
        if flink == "1.19"
        else [
            f"llmdo is not tested on Flink {flink}, only on 1.19: try a small input first, and check its answers with "
            "llmdo verify"
        ]
    )
    assert [record.message for record in caplog.records if record.name == "llmdo.runners.flink.checks"] == said


def test_a_job_servers_own_cluster_of_an_untested_version_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    jar = fake_jar(tmp_path / "theirs.jar", "2.77.0", flink="2.1.0")
    (said,) = warnings(caplog, {"environment_type": "LOOPBACK", "flink_job_server_jar": str(jar)})
    assert said.startswith("llmdo is not tested on Flink 2.1, only on 1.19: ")


@pytest.mark.parametrize("version", ["1.18.1", "1.2.0", "2.3.0", "2.20.0", "2.2-SNAPSHOT"])
def test_a_cluster_of_a_version_without_a_job_server_is_refused(cluster: FakeCluster, version: str) -> None:
    cluster.version = version
    (said,) = problems({"flink_master": cluster.master, "environment_type": "LOOPBACK"})
    assert said == (
        f"the cluster at http://{cluster.master} is Flink {version}, and llmdo runs on Flink 1.19, 1.20, 2.0, 2.1 and "
        "2.2: use a cluster of one of these"
    )


@pytest.mark.parametrize(
    ("version", "jar", "remedy"),
    [
        (
            "1.20.1",
            "1.19.0",
            "get beam-runners-flink-1.20-job-server from Maven Central, and name it with --flink-job-server-jar or "
            "LLMDO_FLINK_JAR; llmdo builds one for Flink 1.19 only",
        ),
        ("1.19.3", "2.2.1", "omit --flink-job-server-jar and LLMDO_FLINK_JAR, so that llmdo builds one"),
    ],
)
def test_a_job_server_for_another_flink_than_the_clusters_is_refused(
    cluster: FakeCluster, programs: Path, version: str, jar: str, remedy: str
) -> None:
    cluster.version = version
    fake_jar(programs, flink=jar)
    (said,) = problems({"flink_master": cluster.master, "environment_type": "LOOPBACK"})
    assert said == (
        f"the cluster at http://{cluster.master} is Flink {version[:4]}, and {programs} is a job server for Flink "
        f"{jar[:-2]}: {remedy}"
    )


def test_no_job_server_is_built_for_a_cluster_that_it_would_not_fit(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.version = "2.0.0"
    monkeypatch.delenv("LLMDO_FLINK_JAR")
    with pytest.raises(FlinkError, match=r"^there is no job server for Flink 2\.0: get beam-runners-flink-2\.0-job-"):
        check(options({"flink_master": cluster.master, "environment_type": "LOOPBACK"}))


def test_too_few_slots_are_refused_unless_the_cluster_grows(cluster: FakeCluster) -> None:
    flink = {"flink_master": cluster.master, "environment_type": "LOOPBACK", "parallelism": 5}
    (said,) = problems(flink)
    assert said == (
        f"--parallelism 5: the cluster at http://{cluster.master} has 4 free slots: "
        "lower it, end other jobs, or start more TaskManagers"
    )
    cluster.settings["kubernetes.cluster-id"] = "llmdo"
    assert check(options(flink)).cluster is not None


def test_a_pool_that_does_not_answer_is_refused(cluster: FakeCluster) -> None:
    (said,) = problems({"flink_master": cluster.master, "environment_config": "localhost:1"})
    assert said.startswith("no worker pool answers at localhost:1 (")
    assert said.endswith("start one with python -m llmdo.runners.workers.pool --service_port=1")


@pytest.mark.parametrize("config", ["localhost", "50000", ":50000", "localhost:http"])
def test_a_pool_without_host_and_port_is_refused(config: str) -> None:
    (said,) = problems({"environment_type": "EXTERNAL", "environment_config": config})
    assert said == f"--environment-config {config}: write the worker pool's HOST:PORT"


def test_what_workers_on_other_machines_cannot_see_is_refused_all_at_once(cluster: FakeCluster) -> None:
    cluster.hosts = ("localhost", ELSEWHERE)
    said = problems(
        {"flink_master": cluster.master, "environment_type": "LOOPBACK"},
        files=("prompts.jsonl",),
        output="answers/",
        ledger=None,
    )
    assert [problem.partition(":")[0] for problem in said[:1]] == [
        "--environment-type LOOPBACK runs the steps in this process, which other machines do not reach"
    ]
    unseen = f"is on this machine, which the machines of the cluster at http://{cluster.master} do not see: use"
    assert said[1] == f"prompts.jsonl {unseen} r2://BUCKET/PREFIX/, or --queue"
    assert said[2] == f"--output answers/ {unseen} r2://BUCKET/PREFIX/"
    assert said[3].startswith("the ledger sqlite:///")
    assert said[3].endswith(f"{unseen} --ledger r2://BUCKET/PREFIX/")
    assert len(said) == 4


def test_each_machines_own_pool_is_not_looked_for_here(cluster: FakeCluster) -> None:
    cluster.hosts = (ELSEWHERE,)
    assert check(options({"flink_master": cluster.master})).config == "localhost:50000"


@pytest.mark.parametrize("config", [None, "llmdo-worker", "[1]", '{"env": {}}'])
def test_process_wants_json_with_a_command(config: str | None) -> None:
    (said,) = problems({"environment_type": "PROCESS", "environment_config": config})
    assert said == (
        f"--environment-config {config or ''}: PROCESS needs JSON with a command, "
        'such as {"command": "/path/to/.venv/bin/llmdo-worker"}'
    ).replace("config :", "config None:")


def test_a_command_that_is_not_there_is_refused() -> None:
    (said,) = problems({"environment_type": "PROCESS", "environment_config": '{"command": "/nowhere/llmdo-worker"}'})
    assert said.startswith("--environment-config: there is no program /nowhere/llmdo-worker")
    good = {"environment_type": "PROCESS", "environment_config": '{"command": "/bin/sh"}'}
    assert check(options(good)).config == '{"command": "/bin/sh"}'


def test_docker_wants_an_image_and_docker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said = problems({"environment_type": "DOCKER"})
    assert [problem.split(": ")[1].split()[0] for problem in said] == ["name", "there"]


def test_loopback_takes_no_configuration() -> None:
    (said,) = problems({"environment_config": "localhost:50000"})
    assert said == "--environment-config localhost:50000: LOOPBACK needs no configuration: omit it"


def test_splittable_reading_wants_a_job_server_that_can(tmp_path: Path) -> None:
    (said,) = problems({"flink_sdf": True})
    assert said.startswith("--flink-sdf needs a job server of Beam 2.77 or newer, and ")
    assert said.endswith("job-server.jar is 2.70.0: omit it")
    newer = fake_jar(tmp_path / "newer.jar", "2.77.0")
    assert check(options({"flink_sdf": True, "flink_job_server_jar": str(newer)})).jar == newer


def test_a_java_that_is_missing_is_said_before_all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Path:
        raise FlinkError("there is no java on PATH")

    monkeypatch.setattr(flink_checks, "java", none)
    with pytest.raises(FlinkError, match="there is no java"):
        check(options())


def warnings(caplog: pytest.LogCaptureFixture, flink: dict[str, Any], **given: Any) -> list[str]:
    caplog.clear()
    flink_checks._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="llmdo.runners.flink.checks"):
        check(options({"environment_type": "EXTERNAL", **flink}, **given))
    return [record.message for record in caplog.records if record.name == "llmdo.runners.flink.checks"]


def test_checkpoints_that_not_all_machines_see_are_warned_of(
    cluster: FakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.hosts = (ELSEWHERE,)
    flink = {"flink_master": cluster.master}
    assert warnings(caplog, flink) == []
    (said,) = warnings(caplog, {**flink, "checkpoint_dir": "file:///var/checkpoints"})
    assert said.startswith("checkpoints go to file:///var/checkpoints: if that is not one folder for all machines")
    cluster.settings.clear()
    (said,) = warnings(caplog, flink)
    assert said.startswith("the cluster keeps checkpoints in the JobManager's memory")


def test_a_rate_that_each_machine_would_take_whole_is_warned_of(
    cluster: FakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.hosts = (ELSEWHERE,) * 3
    flink = {"flink_master": cluster.master}
    (said,) = warnings(caplog, flink, rpm=300)
    assert said == "the cluster has 3 TaskManagers, each calls at the full rate: --workers 3 divides it"
    assert warnings(caplog, flink, rpm=300, workers=3) == []


def test_only_the_own_job_is_cancelled_and_only_while_it_runs(cluster: FakeCluster) -> None:
    cluster.jobs = [
        {"jid": "a1", "name": "llmdo-out-1", "state": "RESTARTING"},
        {"jid": "a2", "name": "llmdo-out-1", "state": "FINISHED"},
        {"jid": "a3", "name": "llmdo-out-2", "state": "RUNNING"},
    ]
    url = f"http://{cluster.master}"
    found = flink_rest.jobs(url, "llmdo-out-1")
    assert [(job.id, job.over) for job in found] == [("a1", False), ("a2", True)]
    flink_rest.cancel(url, found[0])
    assert cluster.cancelled == ["/jobs/a1?mode=cancel"]


@pytest.mark.parametrize(
    ("master", "url"),
    [
        ("localhost:8081", "http://localhost:8081"),
        ("https://flink.example:443/", "https://flink.example:443"),
        ("[::1]:8081", "http://[::1]:8081"),
    ],
)
def test_a_master_is_a_host_and_a_port_or_a_url(master: str, url: str) -> None:
    assert flink_rest.url_of(master) == url


@pytest.mark.parametrize(("host", "own"), [("localhost", True), ("127.0.0.1", True), (ELSEWHERE, False), ("", False)])
def test_a_machine_knows_itself(host: str, own: bool) -> None:
    assert flink_rest.is_this_machine(host) is own
