"""``llmdo doctor`` against a stand-in for Cloudflare: each fault has its remedy, and nothing is left behind."""

from __future__ import annotations

import json
import time

import pytest

from llmdo.runners.inspecting.doctor import Asked, examine, worst
from llmdo.storage.objects.opening import open_store
from tests.integration.cloud import MODEL

EVERYTHING = Asked(MODEL, "r2://llmdo/input/", "r2://llmdo/output/", "llmdo-input")


def found(asked):
    """Findings by what they are about; of several the most serious."""
    findings = {}
    for one in examine(asked):
        if one.what not in findings or worst([findings[one.what], one]) == one.level != "ok":
            findings[one.what] = one
    return findings


def test_where_all_is_well_nothing_is_a_fault_and_nothing_is_left(cloud):
    findings = found(EVERYTHING)
    assert {one.level for one in findings.values()} <= {"ok", "warning"}, findings
    for what in ("machine", "disk, state", "keys, workers-ai", "model", "output", "ledger", "queue", "event rule"):
        assert findings[what].level == "ok", findings[what]
    assert findings["clock"].said == "agrees with that of r2://llmdo"
    assert cloud.keys("") == []


def test_a_call_is_made_only_if_it_is_asked_for(cloud):
    assert "call" not in found(Asked(MODEL)) and cloud.stats()["paid"]["calls"] == 0
    assert found(Asked(MODEL, call=True))["call"].level == "ok"
    assert cloud.stats()["paid"]["calls"] == 1
    cloud.fault(target="ai", status=403)
    assert found(Asked(MODEL, call=True))["model"].level == "fault"


@pytest.mark.parametrize(
    ("fault", "what"),
    [({"target": "r2", "status": 403}, "output"), ({"target": "queue", "status": 403}, "queue")],
)
def test_a_token_without_a_scope_is_a_fault_and_the_rest_is_still_looked_at(cloud, fault, what):
    cloud.fault(**fault)
    findings = found(EVERYTHING)
    assert findings[what].level == "fault"
    assert findings["prism"].level == "ok"  # the last one


def test_a_bucket_or_a_queue_that_is_not_there_is_named(cloud):
    findings = found(Asked(MODEL, output="r2://nothing-here/x/", queue="no-such-queue"))
    assert findings["output"].level == findings["queue"].level == "fault"
    assert "nothing-here" in findings["output"].said and "no-such-queue" in findings["queue"].said


def test_a_clock_that_is_wrong_is_told(cloud, monkeypatch):
    now = time.time
    for ahead, level in ((30.0, "ok"), (120.0, "warning"), (1_000.0, "fault")):
        monkeypatch.setattr("llmdo.runners.inspecting.doctor.time.time", lambda: now() + ahead)  # noqa: B023
        clock = found(Asked(MODEL, output="r2://llmdo/output/"))["clock"]
        assert clock.level == level, clock
        assert clock.remedy == ("" if level == "ok" else "set this machine's clock: timedatectl set-ntp true")


def test_a_store_that_ignores_conditional_writes_is_a_fault(cloud, monkeypatch):
    store = open_store("r2://llmdo")
    monkeypatch.setattr(type(store), "put_if_absent", lambda self, key, body: self.put(key, body))
    finding = found(Asked(MODEL, output="r2://llmdo/output/"))["output"]
    assert finding.level == "fault" and "two runs could take the same file" in finding.said


def _queue_id(cloud):
    api, account = cloud.api, f"/client/v4/accounts/{cloud.env['CLOUDFLARE_ACCOUNT_ID']}"
    queues = api.get(f"{account}/queues").raise_for_status().json()["result"]
    (queue,) = [one["queue_id"] for one in queues if one["queue_name"] == "llmdo-input"]
    return f"{account}/queues/{queue}", queue, account


def test_a_queue_without_a_pulling_consumer_or_dead_letters_has_a_command_to_paste(cloud):
    url, _, _ = _queue_id(cloud)
    (consumer,) = cloud.api.get(f"{url}/consumers").raise_for_status().json()["result"]
    cloud.api.delete(f"{url}/consumers/{consumer['consumer_id']}").raise_for_status()
    finding = found(Asked(MODEL, queue="llmdo-input"))["queue"]
    assert (finding.level, finding.remedy) == ("fault", "npx wrangler queues consumer http add llmdo-input")
    cloud.api.post(f"{url}/consumers", json={"type": "http_pull", "settings": {"max_retries": 3}}).raise_for_status()
    said = [one for one in examine(Asked(MODEL, queue="llmdo-input")) if one.level == "warning"]
    assert [one.remedy.rpartition(" && ")[2] for one in said if one.what == "queue"] == [
        "npx wrangler queues consumer http add llmdo-input --dead-letter-queue NAME",
        "npx wrangler queues consumer http add llmdo-input --message-retries 100",
    ]


def test_a_bucket_whose_rule_does_not_cover_the_input_has_a_command_to_paste(cloud):
    _, queue, account = _queue_id(cloud)
    rules = {"rules": [{"prefix": "other/", "actions": ["PutObject"]}]}
    place = f"{account}/event_notifications/r2/llmdo/configuration/queues/{queue}"
    cloud.api.put(place, json=rules).raise_for_status()
    finding = found(EVERYTHING)["event rule"]
    assert finding.level == "fault"
    command = "npx wrangler r2 bucket notification create llmdo --event-type object-create"
    assert finding.remedy == f"{command} --queue llmdo-input --prefix input/"


def test_the_command_exits_by_what_it_found(cloud, tmp_path):
    process = cloud.command("doctor", "--output", str(tmp_path / "out"), "--model", MODEL, "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    assert {one["what"] for one in json.loads(out)} >= {"machine", "model", "output", "ledger"}
    process = cloud.command("doctor", "--model", MODEL, "--queue", "nowhere")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "there is no queue of this name" in " ".join(out.decode().split())


def test_a_model_that_the_provider_does_not_list_is_a_fault(cloud):
    finding = found(Asked("@cf/nobody/nothing"))["model"]
    assert (finding.level, finding.remedy) == ("fault", "choose one: llmdo models workers-ai")


def test_without_keys_there_is_a_warning_and_no_traceback(monkeypatch):
    for name in (
        "CLOUDFLARE_API_TOKEN",
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
        "BRAINTRUST_API_KEY",
        "ANTHROPIC_API_KEY",
    ):
        monkeypatch.delenv(name, raising=False)
    finding = found(Asked())["model"]
    assert finding.level == "warning" and "no provider's keys are set" in finding.said
