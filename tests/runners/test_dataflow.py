"""What is refused before a job is sent to Dataflow, and the arguments of the job. No Google account is needed."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from apache_beam.options.pipeline_options import (
    DebugOptions,
    GoogleCloudOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
    WorkerOptions,
)

from llmdo.pipelines.options import JsonlOptions, check_options
from llmdo.pipelines.runner_options import DataflowOptions
from llmdo.pipelines.usage import UsageError
from llmdo.runners import dataflow
from llmdo.runners.dataflow import beam_option, check, dataflow_arguments, secrets_needed
from llmdo.runners.running.checks import prepare
from llmdo.settings.installing import install_command

SECRETS = {
    "CLOUDFLARE_API_TOKEN": "cf-token-for-tests",
    "R2_ACCESS_KEY_ID": "r2-key-id-for-tests",
    "R2_SECRET_ACCESS_KEY": "r2-secret-for-tests",
}
PLACES = tuple(f"{name}=projects/my-project/secrets/{name.lower()}/versions/latest" for name in SECRETS)
GOOD: dict[str, Any] = {
    "project": "my-project",
    "region": "europe-west1",
    "temp_location": "gs://my-bucket/temp",
    "container_image": "europe-west1-docker.pkg.dev/my-project/llmdo/worker:1",
    "env_from": PLACES,
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "CLOUDFLARE_BASE_URL", "R2_ENDPOINT_URL", "LLMDO_GATEWAY", "STORE_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", "0123456789abcdef" * 2)
    monkeypatch.setattr(dataflow, "_installation", lambda _: iter(()))
    monkeypatch.setattr(dataflow, "_CHECKS", tuple(one for one in dataflow._CHECKS if one.__name__ != "_installation"))


def options(dataflow: dict[str, Any] | None = None, **given: Any) -> JsonlOptions:
    said: dict[str, Any] = {"input": "r2://bucket/in/", "output": "r2://bucket/out/", "ledger": "r2://bucket/ledger/"}
    said["model"] = "@cf/a/b"
    return JsonlOptions(**said | given, runner="dataflow", dataflow=DataflowOptions(**(GOOD | (dataflow or {}))))


def problems(options: JsonlOptions) -> list[str]:
    with pytest.raises(UsageError) as caught:
        check(options)
    return caught.value.problems


def test_a_job_that_can_work_is_not_refused() -> None:
    check(options())


def test_all_that_is_missing_is_said_at_once() -> None:
    said = problems(options({name: None for name in GOOD if name != "env_from"} | {"env_from": ()}, ledger=None))
    for option in ("--project", "--region", "--temp-location", "--container-image", "--ledger"):
        assert [one for one in said if one.startswith(option)], option
    for name in SECRETS:
        assert [one for one in said if name in one and "Secret Manager" in one], name
    assert len(said) == 8


@pytest.mark.parametrize(
    ("dataflow", "given", "sentence"),
    [
        ({"temp_location": "s3://bucket/x"}, {}, "--temp-location s3://bucket/x: write gs://BUCKET/PREFIX"),
        ({"temp_location": "gs://bucket"}, {}, "write gs://BUCKET/PREFIX"),
        ({"staging_location": "gs://UPPER/x"}, {}, "--staging-location gs://UPPER/x: write gs://BUCKET/PREFIX"),
        ({"project": "My Project"}, {}, "write the project's id"),
        ({}, {"input": None, "files": ("prompts.jsonl",)}, "workers cannot see the local prompts.jsonl"),
        ({}, {"output": "out/"}, "workers cannot write the local --output out/"),
        ({}, {"ledger": "sqlite:///l.db"}, "--ledger sqlite:///l.db cannot be seen by workers: use r2://"),
        ({}, {"ledger": "ledger/"}, "--ledger ledger/ cannot be seen by workers"),
        ({}, {"ledger": "gs://bucket/ledger/"}, "--ledger gs://bucket/ledger/ cannot be seen by workers: use r2://"),
        ({}, {"model": "local/smollm2-135m-instruct"}, "is not in the workers' image"),
        ({"env_from": PLACES[1:]}, {}, "workers need CLOUDFLARE_API_TOKEN"),
        ({}, {"system": "the token is cf-token-for-tests"}, "--system holds a password or a secret"),
        ({"beam_options": ("x=r2-secret-for-tests",)}, {}, "--beam-option holds a password or a secret"),
        ({}, {"response_schema": {"type": "object", "title": "r2-secret-for-tests"}}, "--schema holds a password"),
        ({}, {"ledger": "r2://user:word@host/1"}, "--ledger holds a password or a secret"),
    ],
)
def test_what_cannot_work_is_refused_with_the_remedy(dataflow: Any, given: Any, sentence: str) -> None:
    said = problems(options(dataflow, **given))
    assert len(said) == 1, said
    assert sentence in said[0]
    assert not any(secret in said[0] for secret in SECRETS.values())


def test_an_address_of_this_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2_ENDPOINT_URL", "http://127.0.0.1:8787")
    assert problems(options()) == [
        "R2_ENDPOINT_URL is an address of this machine, which workers cannot reach: set the service's own"
    ]


def test_a_password_in_an_address_goes_by_secret_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2_ENDPOINT_URL", "https://me:word-of-mine@r2.example")
    (said,) = problems(options())
    assert said.startswith("R2_ENDPOINT_URL holds a password")
    assert "word-of-mine" not in said
    check(options({"env_from": (*PLACES, "R2_ENDPOINT_URL=projects/p/secrets/e/versions/1")}))


def test_keys_in_a_base_url_and_in_headers_go_by_secret_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "https://llm.example/v1?subscription-key=word-of-mine")
    monkeypatch.setenv("LLM_KEY", "another-word-of-mine")
    given: dict[str, Any] = {"model": "openai/m", "header": ("api-key=LLM_KEY",)}
    said = problems(options(**given))
    assert [one.partition(":")[0] for one in said] == [
        "workers need LLM_KEY",
        "OPENAI_BASE_URL holds a password or a key, and a job's options can be read",
    ]
    assert not any("word-of-mine" in one for one in said)
    places = tuple(f"{name}=projects/p/secrets/s/versions/1" for name in ("LLM_KEY", "OPENAI_BASE_URL"))
    check(options({"env_from": (*PLACES, *places)}, **given))


def test_another_python_than_the_images_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(sys, "version_info", (3, 12, 1, "final", 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert list(dataflow._installation(options())) == [
        "this is Python 3.12 and the workers' image has 3.11: run llmdo with Python 3.11",
        f"apache-beam[gcp] 2.77.0 is not installed: run {install_command('[gcp]')}",
    ]


def test_the_check_comes_before_anything_is_asked_of_the_network() -> None:
    with pytest.raises(UsageError, match="--project is missing"):
        prepare(options({"project": None}, input=None, queue="a-queue"))


def test_secrets_are_asked_for_by_what_the_job_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-for-tests-1")
    monkeypatch.delenv("CLOUDFLARE_AI_GATEWAY_TOKEN", raising=False)
    r2 = ("R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY")
    assert secrets_needed(options(model="openai/gpt-4o")) == (*r2, "OPENAI_API_KEY")
    assert secrets_needed(options(model="openai/gpt-4o", input=None, queue="q")) == (
        *r2,
        *("OPENAI_API_KEY", "CLOUDFLARE_API_TOKEN"),
    )
    monkeypatch.setenv("CLOUDFLARE_AI_GATEWAY_TOKEN", "gw-for-tests-1")
    assert secrets_needed(options()) == (*r2, "CLOUDFLARE_API_TOKEN", "CLOUDFLARE_AI_GATEWAY_TOKEN")


def test_a_secret_in_the_place_of_its_place_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        check_options(
            input="r2://bucket/in/",
            output="r2://bucket/out/",
            runner="dataflow",
            dataflow={"env_from": ("CLOUDFLARE_API_TOKEN=the-real-token",)},
        )
    assert "--env-from 'CLOUDFLARE_API_TOKEN': write NAME=projects/" in str(caught.value)
    assert "the-real-token" not in str(caught.value)


def test_the_arguments_are_ones_that_beam_knows() -> None:
    given = {"service_account": "w@my-project.iam.gserviceaccount.com", "machine_type": "e2-standard-2"}
    given |= {"subnetwork": "regions/r/subnetworks/s", "max_num_workers": 7, "beam_options": ("no_use_public_ips",)}
    parsed = PipelineOptions(dataflow_arguments(options(given)))
    cloud, worker = parsed.view_as(GoogleCloudOptions), parsed.view_as(WorkerOptions)
    assert parsed.view_as(StandardOptions).streaming
    assert (cloud.project, cloud.region, cloud.temp_location) == ("my-project", "europe-west1", "gs://my-bucket/temp")
    assert cloud.staging_location == cloud.temp_location
    assert cloud.service_account_email == given["service_account"]
    assert cloud.enable_streaming_engine
    assert cloud.labels == ["app=llmdo", "command=run"]
    assert (worker.max_num_workers, worker.machine_type) == (7, "e2-standard-2")
    assert worker.autoscaling_algorithm == "THROUGHPUT_BASED"
    assert worker.sdk_container_image == GOOD["container_image"]
    assert worker.subnetwork == "regions/r/subnetworks/s"
    assert worker.use_public_ips is False
    assert parsed.view_as(SetupOptions).save_main_session is False
    assert parsed.view_as(SetupOptions).beam_plugins == ["llmdo.runners.workers.settings"]
    assert "no_use_multiple_sdk_containers" in parsed.view_as(DebugOptions).experiments
    assert cloud.job_name.startswith("llmdo-run-")
    unknown = PipelineOptions(dataflow_arguments(options(given))).get_all_options(retain_unknown_options=True)
    assert unknown == PipelineOptions(dataflow_arguments(options(given))).get_all_options() | {
        "job_name": unknown["job_name"]
    }


def test_two_jobs_have_two_names_unless_one_is_given() -> None:
    def name(**given: Any) -> str:
        parsed = PipelineOptions(dataflow_arguments(options(given)))
        return str(parsed.view_as(GoogleCloudOptions).job_name)

    assert name() != name()
    assert name(beam_options=("job_name=mine",)) == "mine"


def test_each_machine_keeps_to_its_part_of_the_rates() -> None:
    assert options({"max_num_workers": 6}).rates_shared_by == 6
    assert options({"max_num_workers": 6}, workers=10).rates_shared_by == 10
    assert (
        JsonlOptions(input="r2://bucket/in/", output="r2://bucket/out/", model="@cf/a/b", workers=2).rates_shared_by
        == 2
    )


def test_a_template_is_asked_for_by_its_launcher() -> None:
    given = options({"beam_options": ("template_location=gs://b/x=y", "no_use_public_ips")}).dataflow
    assert beam_option(given, "template_location") == "gs://b/x=y"
    assert beam_option(given, "no_use_public_ips") == ""
    assert beam_option(given, "job_name") is None
