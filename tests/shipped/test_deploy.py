"""What examples/deploy shows is what the program takes, and what cron, systemd, Kubernetes, Flink and Google accept."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from llmdo.pipelines.options import JsonlOptions
from llmdo.runners.cli.main import main
from llmdo.runners.exit_codes import EXIT_SOME_ERRORS, EXIT_USAGE
from llmdo.runners.exporting import metrics
from llmdo.runners.flink import loopback_agent
from llmdo.runners.flink.jar import FLINK_VERSION, JAR_VARIABLE
from llmdo.runners.running import stop
from llmdo.runners.running.cron import Cron
from llmdo.runners.showing.summary import Summary
from llmdo.settings.secrets import SECRET_VARIABLES
from llmdo.transforms.run_state import Counts
from tests.integration.test_end_to_end import wait_until

DEPLOY = Path(__file__).parents[2] / "examples" / "deploy"
# file → commands of llmdo in it; what is below dataflow/ has tests of its own.
FILES: dict[str, list[str]] = {
    "crontab": ["run"],
    "systemd/llmdo-run.service": ["run"],
    "systemd/llmdo-run.timer": [],
    "systemd/llmdo-stream.service": ["stream"],
    "grafana.json": [],
    "kubernetes/cronjob.yaml": ["run"],
    "kubernetes/deployment.yaml": ["stream"],
    "kubernetes/networkpolicy.yaml": [],
    "kubernetes/schedule.yaml": ["schedule"],
    "flink/Dockerfile": [],
    "flink/networkpolicy.yaml": [],
    "flink/session.yaml": [],
    "flink/run.yaml": ["run"],
    "flink/stream.yaml": ["stream"],
    "cloud-scheduler/create.sh": [],
    "cloud-scheduler/launch.json": [],
}
MANIFESTS = [name for name in FILES if name.endswith(".yaml")]
POLICIES = ["kubernetes/networkpolicy.yaml", "flink/networkpolicy.yaml"]
COMMANDS = [(name, number) for name, commands in FILES.items() for number in range(len(commands))]
SERVING = ["kubernetes/deployment.yaml", "kubernetes/schedule.yaml"]
KUBERNETES = "1.32"
# Of the CustomResourceDefinition flinkdeployments.flink.apache.org, v1beta1, of the operator's releases 1.10 to 1.15.
FLINK_SPEC = {
    *("flinkConfiguration", "flinkVersion", "image", "imagePullPolicy", "ingress", "job", "jobManager"),
    *("logConfiguration", "mode", "podTemplate", "restartNonce", "serviceAccount", "taskManager"),
}
FLINK_VERSIONS = {"v1_16", "v1_17", "v1_18", "v1_19", "v1_20", "v2_0", "v2_1"}
# https://cloud.google.com/dataflow/docs/reference/rest/v1b3/projects.locations.flexTemplates/launch
LAUNCH = {
    "jobName",
    "parameters",
    "launchOptions",
    "environment",
    "update",
    "transformNameMappings",
    "containerSpecGcsPath",
}
LAUNCH_ENVIRONMENT = {
    *(
        "numWorkers",
        "maxWorkers",
        "zone",
        "serviceAccountEmail",
        "tempLocation",
        "machineType",
        "network",
        "subnetwork",
    ),
    *("additionalExperiments", "additionalUserLabels", "kmsKeyName", "ipConfiguration", "workerRegion", "workerZone"),
    *("enableStreamingEngine", "flexrsGoal", "stagingLocation", "sdkContainerImage", "diskSizeGb", "streamingMode"),
    *("autoscalingAlgorithm", "dumpHeapOnOom", "saveHeapDumpsToGcsPath", "launcherMachineType"),
}
# https://cloud.google.com/sdk/gcloud/reference/scheduler/jobs/create/http
SCHEDULER = {
    *("--project", "--location", "--schedule", "--uri", "--attempt-deadline", "--description", "--headers"),
    *("--http-method", "--max-backoff", "--max-doublings", "--max-retry-attempts", "--max-retry-duration"),
    *("--min-backoff", "--time-zone", "--message-body", "--message-body-from-file", "--oauth-service-account-email"),
    *("--oauth-token-scope", "--oidc-service-account-email", "--oidc-token-audience"),
}


def read(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


def document(name: str) -> dict:
    (found,) = yaml.safe_load_all(read(name))
    return found


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read_string(read(name))
    return parser


def pods(name: str) -> list[dict]:
    """The specs of the pods that a manifest makes."""

    def found(node):
        if isinstance(node, dict):
            if "containers" in node:
                yield node
            for value in node.values():
                yield from found(value)

    return list(found(document(name)))


def crontab_line() -> tuple[str, str]:
    """The times, and the command."""
    (line,) = [line for line in read("crontab").splitlines() if not re.match(r"#|\w+=", line)]
    *times, command = line.split(None, 5)
    return " ".join(times), command


def commands(name: str) -> list[list[str]]:
    """The command lines of llmdo in a file, each without the program's path."""
    if name == "crontab":
        parts = [part for part in crontab_line()[1].split(";") if "bin/llmdo" in part]
        lines = [shlex.split(re.sub(r"\d?>>.*", "", part)) for part in parts]
    elif name.endswith(".service"):
        lines = [shlex.split(unit(name)["Service"]["ExecStart"])]
    elif name.endswith(".yaml"):
        lines = [container.get("command", []) for pod in pods(name) for container in pod["containers"]]
    else:
        lines = []
    programs = [(line, [n for n, word in enumerate(line) if Path(word).name == "llmdo"]) for line in lines]
    return [line[at[0] :] for line, at in programs if at]


def examples() -> set[str]:
    """Every file of the examples; what a test's import leaves beside them is none of them."""
    files = (path.relative_to(DEPLOY) for path in DEPLOY.rglob("*") if path.is_file())
    return {path.as_posix() for path in files if "__pycache__" not in path.parts}


def test_there_is_no_example_without_a_test():
    assert {name for name in examples() if not name.startswith("dataflow/")} == set(FILES)
    assert {name: [line[1] for line in commands(name)] for name in FILES} == FILES


@pytest.mark.parametrize(("name", "number"), COMMANDS)
def test_each_command_is_one_that_the_program_takes(name, number, monkeypatch):
    found = []

    def start(options, *_, **__):
        found.append(options)
        return Summary("r", Counts(), (), (), {})

    def schedule(options, *_, **__):
        found.append(options)
        return 0

    monkeypatch.setattr("llmdo.runners.running.run.run", start)
    monkeypatch.setattr("llmdo.runners.running.stream.stream", start)
    monkeypatch.setattr("llmdo.runners.running.schedule.schedule", schedule)
    for secret in ("CLOUDFLARE_API_TOKEN", "R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(secret, "x")
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", "a" * 32)
    line = commands(name)[number]
    with pytest.raises(SystemExit) as left:
        main(line[1:])
    assert left.value.code == 0
    (options,) = found
    assert options.output == "r2://bucket/output/"
    # What keeps no disk needs its ledger elsewhere.
    assert name.startswith("systemd/") or options.ledger == "r2://bucket/ledger/"


@pytest.mark.parametrize("name", [name for name in MANIFESTS if name != "flink/session.yaml"])
def test_manifests_are_what_kubernetes_takes(name):
    manifest = document(name)
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):  # so it looks at all
        kubernetes_validate.validate({**manifest, "replica": 1}, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_have_pinned_images_and_their_secrets_from_one_secret(name):
    for pod in pods(name):
        for container in pod["containers"]:
            if container["name"] == "flink-main-container":  # the operator fills it in
                continue
            assert re.fullmatch(r"registry\.example\.com/[a-z-]+:\d+\.\d+\.\d+", container["image"])
            assert container["envFrom"] == [{"secretRef": {"name": "llmdo"}}]
            assert "env" not in container
            assert container["resources"]["limits"]["memory"]
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["runAsNonRoot"] is True  # as Dockerfile has it


def pod_labels(name: str) -> list[dict[str, str]]:
    """The labels of each kind of pod that a manifest makes."""
    found = document(name)
    if found["kind"] == "NetworkPolicy":
        return []
    if found["kind"] == "FlinkDeployment":
        # Of Flink's native Kubernetes integration: KubernetesUtils.getCommonLabels, and the component.
        common = {"app": found["metadata"]["name"], "type": "flink-native-kubernetes"}
        return [common | {"component": component} for component in ("jobmanager", "taskmanager")]
    spec = found["spec"]["jobTemplate"]["spec"] if found["kind"] == "CronJob" else found["spec"]
    return [spec["template"]["metadata"]["labels"]]


def selects(selector: dict, labels: dict[str, str]) -> bool:
    """Whether a label selector is for a pod; of its operators, In."""
    listed = selector.get("matchExpressions", [])
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    assert all(one["operator"] == "In" for one in listed)
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(one["key"]) in one["values"] for one in listed
    )


@pytest.mark.parametrize("name", [name for name in MANIFESTS if name not in POLICIES])
def test_every_pod_is_closed_by_a_network_policy(name):
    specs = [document(policy)["spec"] for policy in POLICIES]
    all_labels = pod_labels(name)
    assert all_labels
    for labels in all_labels:
        chosen = [spec for spec in specs if selects(spec["podSelector"], labels)]
        assert [spec["policyTypes"] for spec in chosen] == [["Ingress"]]
        if "app" not in labels:  # to llmdo only Prometheus connects
            (rule,) = chosen[0]["ingress"]
            ((peer,), ports) = rule["from"], rule["ports"]
            assert peer["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "prometheus"}
            assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "monitoring"}
            assert [one["port"] for one in ports] == [9464]


@pytest.mark.parametrize("name", SERVING)
def test_probes_and_prometheus_ask_the_port_that_the_command_listens_at(name):
    (pod,) = pods(name)
    (container,) = pod["containers"]
    (port,) = container["ports"]
    (line,) = commands(name)
    assert f"--metrics-port={port['containerPort']}" in line and "--metrics-host=0.0.0.0" in line
    (rule,) = document("kubernetes/networkpolicy.yaml")["spec"]["ingress"]
    assert [one["port"] for one in rule["ports"]] == [port["containerPort"]]
    probes = [container[probe]["httpGet"] for probe in ("livenessProbe", "readinessProbe")]
    assert {probe["port"] for probe in probes} == {port["name"]}
    assert {probe["path"] for probe in probes} == metrics._PROBES.keys()


def test_flink_is_reached_by_itself_and_its_rest_api_by_those_who_submit_and_the_operator():
    spec = document("flink/networkpolicy.yaml")["spec"]
    flink = pod_labels("flink/session.yaml")
    submitting = [labels for name in ("flink/run.yaml", "flink/stream.yaml") for labels in pod_labels(name)]
    operator = {"app.kubernetes.io/name": "flink-kubernetes-operator"}
    strangers = [{}, {"app": "other"}, *pod_labels("kubernetes/deployment.yaml")]

    def ports(labels: dict[str, str]) -> list[int | str]:
        """What a pod with these labels reaches."""
        rules = [rule for rule in spec["ingress"] if any(selects(peer["podSelector"], labels) for peer in rule["from"])]
        return [port for rule in rules for port in [p["port"] for p in rule.get("ports", [{"port": "any"}])]]

    assert {str(ports(labels)) for labels in flink} == {"['any']"}
    assert {str(ports(labels)) for labels in [*submitting, operator]} == {"[8081]"}
    assert [ports(labels) for labels in strangers] == [[], [], []]
    # Only pods of its own namespace, but for the operator, which is in one of its own.
    elsewhere = [peer for rule in spec["ingress"] for peer in rule["from"] if "namespaceSelector" in peer]
    assert [peer["podSelector"]["matchLabels"] for peer in elsewhere] == [operator]


def drain_seconds() -> float:
    return JsonlOptions.model_fields["drain_seconds"].default + stop._LAST_WRITES


@pytest.mark.parametrize("name", [name for name in MANIFESTS if FILES[name]])
def test_pods_may_drain_before_they_are_killed(name):
    assert [pod["terminationGracePeriodSeconds"] >= drain_seconds() for pod in pods(name)] == [True]


@pytest.mark.parametrize("name", ["kubernetes/cronjob.yaml", "flink/run.yaml"])
def test_jobs_that_would_end_the_same_way_again_are_not_repeated(name):
    job = document(name)
    spec = job["spec"]["jobTemplate"]["spec"] if job["kind"] == "CronJob" else job["spec"]
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["values"] == [EXIT_USAGE, EXIT_SOME_ERRORS]
    assert rule["onExitCodes"]["containerName"] in [c["name"] for c in spec["template"]["spec"]["containers"]]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # else Kubernetes refuses the policy


@pytest.mark.parametrize("name", ["kubernetes/deployment.yaml", "kubernetes/schedule.yaml", "flink/stream.yaml"])
def test_deployments_find_their_pods(name):
    spec = document(name)["spec"]
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()


def test_the_cron_job_runs_one_at_a_time_at_valid_times():
    spec = document("kubernetes/cronjob.yaml")["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    Cron(spec["schedule"], spec["timeZone"])


def test_the_crontab_line_is_one_that_cron_and_the_shell_take():
    times, command = crontab_line()
    Cron(times, "UTC")
    assert "%" not in command  # a line's end to cron
    assert subprocess.run(["bash", "-n", "-c", command], check=False).returncode == 0
    assert "flock --nonblock" in command


def test_the_crontab_line_runs_once_at_a_time_with_a_lock_that_others_cannot_hold(tmp_path):
    _, command = crontab_line()
    program, settings = tmp_path / "llmdo" / ".venv" / "bin" / "llmdo", tmp_path / ".config" / "llmdo" / "env"
    for path, text in ((program, '#!/bin/sh\necho "$SETTING $*"; sleep 60\n'), (settings, "SETTING=there\n")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    program.chmod(0o755)
    line = ["bash", "-c", command]
    first = subprocess.Popen(line, env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]}, start_new_session=True)
    try:
        log = tmp_path / "llmdo-runs.jsonl"
        wait_until(lambda: log.exists() and log.read_text())
        second = subprocess.run(line, env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]}, check=False, timeout=50)
        assert (second.returncode, log.read_text().splitlines()) == (
            1,
            [f"there {' '.join(commands('crontab')[0][1:])}"],
        )
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    assert stat.S_IMODE((tmp_path / ".cache" / "llmdo").stat().st_mode) == 0o700
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_no_example_keeps_anything_at_a_place_that_all_users_may_write():
    texts = [(DEPLOY / name).read_text(encoding="utf-8") for name in examples()]
    assert texts and not [text for text in texts if re.search(r"/(var/)?tmp/|/dev/shm", text)]


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("systemd/")])
def test_units_are_what_systemd_takes(name, tmp_path):
    parsed = unit(name)
    assert parsed["Unit"]["Description"]
    if name.endswith(".timer"):
        assert re.fullmatch(r"\*:00/\d+", parsed["Timer"]["OnCalendar"])
        assert parsed["Timer"]["Persistent"] == "true"
        assert (DEPLOY / name).with_suffix(".service").exists()
    else:
        service = parsed["Service"]
        assert service["EnvironmentFile"] == "/etc/llmdo/env"
        assert service["KillMode"] == "mixed"  # SIGTERM to Prism would end the job at once
        assert float(service["TimeoutStopSec"]) >= drain_seconds()
        assert service["Environment"].split()[0] == f"XDG_STATE_HOME=/var/lib/{service['StateDirectory']}"
    if shutil.which("systemd-analyze"):
        for one in (DEPLOY / "systemd").iterdir():
            text = one.read_text().replace("/opt/llmdo/.venv/bin/llmdo", "/bin/true")
            (tmp_path / one.name).write_text(text)
        verified = subprocess.run(
            ["systemd-analyze", "verify", str(tmp_path / Path(name).name)], check=False, capture_output=True, text=True
        )
        assert (verified.returncode, verified.stderr) == (0, "")


def test_systemd_knows_the_exit_codes():
    assert unit("systemd/llmdo-run.service")["Service"]["SuccessExitStatus"] == str(EXIT_SOME_ERRORS)
    assert unit("systemd/llmdo-stream.service")["Service"]["RestartPreventExitStatus"] == str(EXIT_USAGE)


def test_the_flink_cluster_is_what_its_operator_takes():
    deployment = document("flink/session.yaml")
    spec = deployment["spec"]
    assert (deployment["apiVersion"], deployment["kind"]) == ("flink.apache.org/v1beta1", "FlinkDeployment")
    assert set(spec) <= FLINK_SPEC
    assert spec["flinkVersion"] in FLINK_VERSIONS
    assert spec["flinkVersion"] == "v" + FLINK_VERSION.replace(".", "_")
    assert spec["image"].startswith(f"flink:{FLINK_VERSION}.")
    assert all(isinstance(value, str) for value in spec["flinkConfiguration"].values())
    for role in ("jobManager", "taskManager"):
        assert set(spec[role]) <= {"podTemplate", "replicas", "resource"}
        assert re.fullmatch(r"\d+m", spec[role]["resource"]["memory"])
        assert isinstance(spec[role]["resource"]["cpu"], int | float)
    template = spec["taskManager"]["podTemplate"]
    kubernetes_validate.validate(template, KUBERNETES, strict=True)
    assert template["spec"]["containers"][0]["name"] == "flink-main-container"


@pytest.mark.parametrize("name", ["flink/run.yaml", "flink/stream.yaml"])
def test_what_is_submitted_to_flink_finds_the_cluster_and_the_workers(name):
    session = document("flink/session.yaml")
    (line,) = commands(name)
    assert f"--flink-master={session['metadata']['name']}-rest:8081" in line
    pool = session["spec"]["taskManager"]["podTemplate"]["spec"]["containers"][1]
    port = pool["command"][-1].removeprefix("--service_port=")
    assert port.isdigit()
    assert "ports" not in pool  # it is reached from its own pod only
    assert pool["command"][1:3] == ["-m", "llmdo.runners.workers.pool"]
    assert f"--environment-config=localhost:{port}" in line
    # Each slot has a pool, and each pool's process its own part of the rates.
    assert session["spec"]["flinkConfiguration"]["taskmanager.numberOfTaskSlots"] == "1"
    options = dict(word.split("=", 1) for word in line if word.startswith("--") and "=" in word)
    assert options["--workers"] == options["--parallelism"]


def test_the_image_that_submits_to_flink_has_java_and_the_job_server():
    text = read("flink/Dockerfile")
    first, *others = re.findall(r"^FROM (\S+)|--from=(\S+)", text, re.MULTILINE)
    assert (
        first[0]
        == document("kubernetes/cronjob.yaml")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0][
            "image"
        ]
    )
    assert [re.fullmatch(r"\S+:\d\S*", image) is not None for _, image in others] == [True]
    (jar,) = re.findall(r"^COPY job-server\.jar (\S+)", text, re.MULTILINE)
    assert f"{JAR_VARIABLE}={jar}" in text
    (line,) = re.findall(r"^ADD (.+)$", text.replace("\\\n", ""), re.MULTILINE)
    mode, checksum, url, folder = line.split()
    assert mode == "--chmod=644"  # Docker would give it to root alone
    assert checksum == f"--checksum=sha256:{loopback_agent.AGENT_SHA256}"
    assert (url, folder) == (loopback_agent._URL, f"{Path(jar).parent}/")
    (tag,) = re.findall(r"--tag (\S+)", text)
    assert tag == pods("flink/run.yaml")[0]["containers"][0]["image"]


def test_the_scheduler_starts_the_template_with_parameters_that_it_takes():
    launch = json.loads(read("cloud-scheduler/launch.json"))
    assert set(launch) == {"launchParameter"}
    parameter = launch["launchParameter"]
    assert {"jobName", "containerSpecGcsPath", "parameters"} <= set(parameter) <= LAUNCH
    assert set(parameter["environment"]) <= LAUNCH_ENVIRONMENT
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", parameter["jobName"])
    taken = {one["name"]: one for one in json.loads(read("dataflow/metadata.json"))["parameters"]}
    given = parameter["parameters"]
    assert {name for name, one in taken.items() if not one["isOptional"]} <= set(given) <= set(taken)
    for name, value in given.items():
        assert all(re.fullmatch(pattern, value) for pattern in taken[name].get("regexes", [])), name


def test_the_script_for_the_scheduler_uses_flags_that_there_are():
    path = DEPLOY / "cloud-scheduler" / "create.sh"
    assert subprocess.run(["sh", "-n", str(path)], check=False).returncode == 0
    code = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    (line,) = [shlex.split(line) for line in code.splitlines() if line.startswith("gcloud")]
    assert line[:6] == ["gcloud", "scheduler", "jobs", "create", "http", "llmdo-run"]
    flags = dict(zip(line[6::2], line[7::2], strict=True))
    assert {"--schedule", "--uri", "--location"} <= set(flags) <= SCHEDULER
    Cron(flags["--schedule"], flags["--time-zone"])
    assert flags["--uri"].endswith("/flexTemplates:launch")
    assert (path.parent / flags["--message-body-from-file"]).exists()


@pytest.mark.parametrize("name", FILES)
def test_no_example_holds_a_secret(name):
    text = read(name)
    # Secret Manager's names of secrets may stand there.
    assert not [secret for secret in SECRET_VARIABLES if re.search(rf"{secret}\s*[=:](?!projects/)", text)]
    assert not re.search(r"(?i)\b(password|token|api_?key)\s*[=:]\s*\S", text)
