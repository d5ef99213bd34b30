import pickle

import apache_beam as beam
import pytest

from llmdo.backends.limits.rates import Rates
from llmdo.pipelines.jsonl import build
from llmdo.pipelines.options import check_options
from llmdo.transforms.answers.infer import Infer

SECRETS = {
    "CLOUDFLARE_API_TOKEN": "token-that-nobody-may-see",
    "R2_ACCESS_KEY_ID": "key-id-that-nobody-may-see",
    "R2_SECRET_ACCESS_KEY": "secret-that-nobody-may-see",
}


@pytest.mark.parametrize("source", [{"queue": "0" * 32}, {"input": "r2://bucket/input/"}])
def test_the_graph_is_one_chain_of_six_steps_and_its_proto_holds_no_secret(monkeypatch, tmp_path, source):
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", "0123456789abcdef" * 2)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    pipeline = beam.Pipeline(runner="FnApiRunner")
    build(pipeline, check_options(output="r2://bucket/output/", **source), "run-1")
    proto = pipeline.to_runner_api()
    transforms = proto.components.transforms
    steps = [transforms[step].unique_name for step in transforms[proto.root_transform_ids[0]].subtransforms]
    assert steps == ["Find files", "Open files", "Read lines", "Answer lines", "Write shards", "Settle files"]
    sent = proto.SerializeToString()
    assert not [name for name, value in SECRETS.items() if value.encode() in sent]


@pytest.mark.parametrize(("given", "environment", "gateway"), [("mine", "theirs", "mine"), (None, "theirs", "theirs")])
def test_how_calls_are_made_is_one_value_that_goes_with_the_step_to_whatever_worker_runs_it(
    monkeypatch, given, environment, gateway
):
    monkeypatch.setenv("LLMDO_GATEWAY", environment)
    how = {"mode": "batch", "deadline": 5.0, "workers": 2, "rpm": 60, "tpm": 1000, "concurrency": "fixed:3"}
    options = {"files": ("a.jsonl",), "output": "out/", "model": "local/smollm2-135m-instruct"}
    chosen = check_options(**options, **how, gateway=given)
    step = Infer(chosen.defaults, chosen.calls, chosen.run("run-1"))
    calls = pickle.loads(pickle.dumps(step.calls))
    assert (calls, hash(calls)) == (chosen.calls, hash(chosen.calls))
    assert (calls.mode, calls.retry.deadline_s, calls.workers, calls.gateway) == ("batch", 5.0, 2, gateway)
    assert (calls.rates, calls.window, calls.fixed) == (Rates(60, 1000), 3, True)
    monkeypatch.delenv("LLMDO_GATEWAY")
    calls = check_options(**options).calls
    assert (calls.gateway, calls.mode) == (None, "sync")
